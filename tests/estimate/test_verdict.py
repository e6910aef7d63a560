"""Verdicts on memory: the band of the need against what there is, and the batch that would fit."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.answers import fitting_batch, smallest_batch
from advisor.estimate.memory.bands import memory_fits
from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.spec import run_of_spec
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from tests.estimate.specs import RunSpec, estimate, memory_estimate, shape

WORST_FIRST = ("too_big", "may_fit", "tight", "fits")


def run_of(**spec):
    return run_of_spec({**spec, "counter": "nvidia-smi"}, shape("Qwen/Qwen3-8B"))


def band(need, low, high):
    return SimpleNamespace(need_bytes=need, need_low_bytes=low, need_high_bytes=high)


@pytest.mark.parametrize(
    ("need", "low", "high", "verdict"),
    [
        (80, 70, 90, "fits"),
        (90, 85, 100, "fits"),
        (91, 90, 92, "tight"),  # a narrow band, and less than a tenth free
        (91, 80, 101, "may_fit"),
        (110, 100, 120, "may_fit"),
        (110, 101, 120, "too_big"),
    ],
)
def test_the_band_decides(need, low, high, verdict):
    """Of 100 GiB: all of it within, all of it above, else it may fit."""
    assert memory_fits(band(need, low, high), 100) == verdict
    assert memory_fits(band(need, low, high), None) == "unknown"


@given(
    need=st.integers(1, 10**12), below=st.floats(0, 0.9), above=st.floats(0, 2),
    limits=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
)  # fmt: skip
def test_more_memory_never_fits_less(need, below, above, limits):
    """A larger limit gives the same verdict or a better one."""
    low, high = round(need * (1 - below)), round(need * (1 + above))
    small, large = (
        WORST_FIRST.index(memory_fits(band(need, low, high), limit)) for limit in sorted(limits)
    )
    assert small <= large


@given(
    micro=st.sampled_from([1, 2, 3, 6, 8, 16]),
    seq_len=st.sampled_from([512, 2048, 8192]),
    recompute=st.booleans(),
    update=st.sampled_from(["lora", "full"]),
)
def test_the_smallest_batch_keeps_the_rows_of_a_step(micro, seq_len, recompute, update):
    """As few rows at once as there can be; a LoRA never needs more than as given."""
    run = run_of(
        update=update, micro_batch_size=micro, seq_len=seq_len, grad_accum=3,
        gradient_checkpointing=recompute,
    )  # fmt: skip
    least = smallest_batch(run)
    assert (least.stage.micro_batch_size, least.stage.gradient_checkpointing) == (1, True)
    assert least.stage.effective_batch_size == 3 * micro
    if update == "lora":
        assert memory_of(least).need_bytes <= memory_of(run).need_bytes


def test_what_a_method_refuses_is_not_smaller():
    """KTO takes four rows or more at once, and prefixes are never recomputed."""
    of_feedback = run_of(objective="kto", micro_batch_size=16)
    assert smallest_batch(of_feedback).stage.micro_batch_size == 4
    prefix = run_of(update="prefix", micro_batch_size=4, gradient_checkpointing=False)
    assert smallest_batch(prefix).stage.gradient_checkpointing is False


@pytest.mark.parametrize("size_gib", [4, 12, 24, 48, 80, 400])
def test_the_batch_that_fits_is_the_largest_that_does(size_gib):
    """Recomputed only if no fewer rows without do; else the smallest if it may fit."""
    run = run_of(quantization="nf4", micro_batch_size=8, seq_len=2048, gradient_checkpointing=False)
    order = [(rows, again) for again in (False, True) for rows in (8, 4, 2, 1)]
    verdicts = {}
    for rows, again in order:
        stage = replace(
            run.stage, micro_batch_size=rows, grad_accum=8 // rows, gradient_checkpointing=again
        )
        one = replace(run, stage=stage)
        verdicts[rows, again] = memory_fits(memory_of(one), size_gib * GIB)
    sure = [one for one in order if verdicts[one] in ("fits", "tight")]
    may = [(1, True)] if verdicts[1, True] == "may_fit" else [None]
    found = fitting_batch(run, memory_of, size_gib * GIB)
    need = memory_of(smallest_batch(run)).need_bytes  # of just the need it may fit
    assert fitting_batch(run, memory_of, need).stage == smallest_batch(run).stage
    stage = None if found is None else found.stage
    said = None if stage is None else (stage.micro_batch_size, stage.gradient_checkpointing)
    assert said == (sure or may)[0]


def test_cached_blocks_do_not_decide():
    """A run whose counter would read all of the GPU fits where its need does."""
    spec = RunSpec(
        update="lora", micro_batch_size=8, seq_len=4096, framework="ms-swift", counter="nvidia-smi"
    )
    card = Hardware(
        kind="cuda", origin="stated", gpus=(Gpu(name="card", memory_total_bytes=48 * GIB),)
    )
    found = estimate(spec, shape("mistralai/Mistral-7B-v0.1"), card)
    assert found.memory.peak_bytes > 0.95 * 48 * GIB
    assert found.is_likely
    assert found.fits != "too_big"


def test_weights_alone_settle_what_cannot_fit():
    """However wide the band: nothing fits into less than its weights."""
    found = memory_estimate(RunSpec(), shape("a model of 30B"))
    weights = sum(term.size_bytes for term in found.needed.terms if term.name == "weights")
    assert found.need_low_bytes >= weights > 55 * GIB
    assert memory_fits(found, 48 * GIB) == "too_big"


@pytest.mark.parametrize("framework", [None, "torchtune"])
def test_what_a_known_trainer_holds_throughout_is_no_estimate(framework):
    """Weights, adapters and optimizer states are arithmetic: the band starts at their sum."""
    spec = RunSpec(update="lora", rank=256, framework=framework)
    found = memory_estimate(spec, shape("Qwen/Qwen3-8B"))
    assert _held(found) <= found.need_low_bytes <= found.need_bytes
    guessed = memory_estimate(
        replace(spec, framework="a trainer of one's own"), shape("Qwen/Qwen3-8B")
    )
    assert guessed.need_low_bytes < _held(guessed)


def _held(found):
    names = ("weights", "adapters", "optimizer state")
    return sum(term.size_bytes for term in found.needed.terms if term.name in names)
