"""The band around an estimate: what widens it, what it decides, and the batch that would fit."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.answers import fitting_batch, run_specs, smallest_batch
from advisor.estimate.memory.bands import KNOWN, WIDTHS, WORDS, band, log_widths, memory_fits
from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.spec import run_of_spec
from advisor.ground.units import GIB
from advisor.render.estimate import estimate_text
from advisor.situation.models import model_shape
from tests.estimate.specs import RunSpec, memory_estimate, shape

DOUBTS = st.lists(st.sampled_from(list(WORDS)), unique=True).map(tuple)
SPEC = RunSpec(update="lora", rank=16, seq_len=2048, micro_batch_size=2, loss="chunked")
LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"


def test_every_doubt_has_a_width_and_words():
    """What widens a band can be fitted and said; independent errors add in squares."""
    assert {KNOWN, *WORDS} == set(WIDTHS)
    assert all(0 <= width < 2 for pair in WIDTHS.values() for width in pair)
    widths = {KNOWN: (0.3, 0.0), "trainer": (0.4, 0.5)}
    assert log_widths(("trainer",), widths) == pytest.approx((0.5, 0.5))
    assert log_widths((), widths) == pytest.approx((0.3, 0.0))


@given(DOUBTS, st.sampled_from(list(WORDS)))
def test_each_doubt_widens_the_band_or_leaves_it(doubts, more):
    before, after = band(doubts), band((*doubts, more))
    assert all(map(float.__ge__, after, before))
    assert 0 < after[0] < 1


@pytest.mark.parametrize(
    ("changed", "model", "doubts"),
    [
        ({}, LLAMA, ()),
        ({"framework": "a trainer of our own"}, LLAMA, ("trainer",)),
        ({"framework": "a trainer of our own", "date": "2025-03"}, LLAMA, ("newer",)),
        ({}, "nvidia/Llama-3.1-Nemotron-Nano-8B-v1", ()),  # dimensions are Llama's
        ({"counter": "unknown"}, LLAMA, ("counter",)),
        ({"framework": "torchtune Nov 2024", "loss": None}, LLAMA, ("loss",)),
        ({"gradient_checkpointing": "offload"}, LLAMA, ("offload",)),
        ({"optimizer": "adamw_cpu"}, LLAMA, ("offload",)),
        ({"gpus": 4, "sharding": "fsdp"}, LLAMA, ("gpus",)),
        ({}, shape("", params_b=8.0), ("size",)),  # dimensions are guessed from it
        ({}, "mistralai/Mixtral-8x7B-Instruct-v0.1", ("experts",)),
    ],
)
def test_what_is_not_known_of_a_run_is_named(changed, model, doubts):
    """Exactly what is unknown or hard to predict is a doubt; low and high are ends of its band."""
    found = memory_estimate(replace(SPEC, **changed), model)
    assert found.doubts == doubts
    below, above = band(doubts)
    assert found.low_bytes == pytest.approx(found.peak_bytes * (1 - below), rel=1e-6)
    assert found.high_bytes == pytest.approx(found.peak_bytes * (1 + above), rel=1e-6)
    assert math.isclose(1 - below, math.exp(-log_widths(doubts)[0]))


def test_what_widens_the_range_is_said():
    spec = {"model": LLAMA, "seq_len": 512}
    specs = [{**spec, "framework": "a trainer of our own"}, spec]
    unsure, sure = run_specs(json.dumps(specs), find_model=model_shape, find_gpu=None)
    assert (unsure["band_because"], sure["band_because"]) == ([WORDS["trainer"], WORDS["loss"]], [])
    assert unsure["high_gib"] / unsure["peak_gib"] > sure["high_gib"] / sure["peak_gib"]
    text = " ".join(estimate_text(unsure).split())
    assert f"the range is wider because {WORDS['trainer']}" in text
    assert "wider" not in estimate_text(sure)


def verdict(need, low, high, limit):
    bounds = SimpleNamespace(need_bytes=need, need_low_bytes=low, need_high_bytes=high)
    return memory_fits(bounds, limit)


@pytest.mark.parametrize(
    ("need", "low", "high", "said"),
    [
        (80, 70, 90, "fits"),
        (90, 85, 100, "fits"),
        (91, 90, 92, "tight"),  # a narrow band, and less than a tenth free
        (91, 80, 101, "may_fit"),
        (110, 100, 120, "may_fit"),
        (110, 101, 120, "too_big"),
    ],
)
def test_the_band_decides(need, low, high, said):
    """Of 100 GiB: all of it within, all of it above, else it may fit."""
    assert (verdict(need, low, high, 100), verdict(need, low, high, None)) == (said, "unknown")


@given(
    need=st.integers(1, 10**12), below=st.floats(0, 0.9), above=st.floats(0, 2),
    limits=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
)  # fmt: skip
def test_more_memory_never_fits_less(need, below, above, limits):
    """A larger limit gives the same verdict or a better one."""
    low, high = round(need * (1 - below)), round(need * (1 + above))
    small, large = (
        ("too_big", "may_fit", "tight", "fits").index(verdict(need, low, high, limit))
        for limit in sorted(limits)
    )
    assert small <= large


def run_of(**spec):
    return run_of_spec({**spec, "counter": "nvidia-smi"}, shape(QWEN))


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
    assert update == "full" or memory_of(least).need_bytes <= memory_of(run).need_bytes


def test_what_a_method_refuses_is_not_smaller():
    """KTO takes four rows or more at once, and prefixes are never recomputed."""
    assert smallest_batch(run_of(objective="kto", micro_batch_size=16)).stage.micro_batch_size == 4
    prefix = run_of(update="prefix", micro_batch_size=4, gradient_checkpointing=False)
    assert smallest_batch(prefix).stage.gradient_checkpointing is False


@pytest.mark.parametrize("size_gib", [4, 12, 24, 48, 80, 400])
def test_the_batch_that_fits_is_the_largest_that_does(size_gib):
    """Recomputed only if no fewer rows without do; else the smallest if it may fit."""
    run = run_of(quantization="nf4", micro_batch_size=8, seq_len=2048, gradient_checkpointing=False)
    verdicts = {}
    for rows, again in [(rows, again) for again in (False, True) for rows in (8, 4, 2, 1)]:
        stage = replace(
            run.stage, micro_batch_size=rows, grad_accum=8 // rows, gradient_checkpointing=again
        )
        verdicts[rows, again] = memory_fits(memory_of(replace(run, stage=stage)), size_gib * GIB)
    sure = [one for one, said in verdicts.items() if said in ("fits", "tight")]
    may = [(1, True)] if verdicts[1, True] == "may_fit" else [None]
    found = fitting_batch(run, memory_of, size_gib * GIB)
    said = found and (found.stage.micro_batch_size, found.stage.gradient_checkpointing)
    assert said == (sure or may)[0]
    need = memory_of(smallest_batch(run)).need_bytes  # of just the need it may fit
    assert fitting_batch(run, memory_of, need).stage == smallest_batch(run).stage


def held(found, *names):
    return sum(term.size_bytes for term in found.needed.terms if term.name in names)


def test_weights_alone_settle_what_cannot_fit():
    """However wide the band: nothing fits into less than its weights."""
    found = memory_estimate(RunSpec(), "a model of 30B")
    assert found.need_low_bytes >= held(found, "weights") > 55 * GIB
    assert memory_fits(found, 48 * GIB) == "too_big"


@pytest.mark.parametrize(
    ("framework", "is_known"),
    [(None, True), ("torchtune", True), ("a trainer of one's own", False)],
)
def test_what_a_known_trainer_holds_throughout_is_no_estimate(framework, is_known):
    """Weights, adapters and optimizer states are arithmetic: the band starts at their sum."""
    found = memory_estimate(RunSpec(update="lora", rank=256, framework=framework), QWEN)
    least = held(found, "weights", "adapters", "optimizer state")
    assert (least <= found.need_low_bytes) is is_known
    assert found.need_low_bytes <= found.need_bytes
