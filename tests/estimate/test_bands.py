"""The band around an estimate: what widens it, what it decides, the batch that would fit, and what runs of a
machine teach."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate import past_runs
from advisor.estimate.answers import fitting_batch, run_specs, smallest_batch
from advisor.estimate.memory.bands import KNOWN, WIDTHS, WORDS, band, log_widths, memory_fits
from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.spec import run_of_spec
from advisor.ground.types import Hardware
from advisor.ground.units import GIB
from advisor.render.estimate import estimate_text
from advisor.situation.models import model_shape
from tests.conftest import examples
from tests.estimate.specs import RunSpec, estimate, hardware_with, memory_estimate, shape

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


MODEL, ROWS = "HuggingFaceTB/SmolLM2-135M-Instruct", {"tokens_total": 10**6, "rows_total": 5000}
CPU = Hardware(
    kind="cpu", origin="probed", cpu_model="A Processor", cpu_cores=2, ram_total_bytes=2**36,
    software={"torch": "2.9.1+cpu"},
)  # fmt: skip
RTX_4090, RTX_3090, L4 = (
    hardware_with(name, origin="probed", software={"torch": "2.9.1"})
    for name in ("RTX 4090", "RTX 3090", "L4")
)
RAN = RunSpec(micro_batch_size=4, seq_len=512, rank=8, weights_dtype="float32")


def past_run(spec=RAN, model=MODEL, hardware=CPU, *, memory=1.0, time=1.0, **changes):
    """A past run that measured so many times what the formula says."""
    found, known = estimate(spec, model, hardware, **ROWS), shape(model)
    counters = ("rss_growth",) if hardware.kind == "cpu" else ("allocated", "reserved")
    size = found.memory.peak_bytes - int(0.7 * 2**30)
    readings = [
        past_runs.Reading(counter=one, expected_bytes=size, measured_bytes=round(memory * size))
        for one in counters
    ]
    fields = {
        "machine": past_runs.machine_name(hardware), "family": known.architecture, "params": known.params,
        "objective": spec.objective, "update": spec.update, "quantization": spec.quantization,
        "sharding": spec.sharding, "steps": 100, "memory": tuple(readings),
        "expected_step_s": found.step_s, "measured_step_s": time * found.step_s,
    }  # fmt: skip
    return past_runs.PastRun(**{**fields, **changes})


def after(*runs, spec=RAN, hardware=CPU):
    return estimate(spec, MODEL, hardware, past=past_runs.PastRuns(runs), **ROWS)


def test_no_runs_leave_the_formula_and_one_odd_run_moves_nothing():
    """Without records nothing changes or is said, and one odd run beside three is not heard."""
    assert past_runs.median([], past_runs.MOST_MEMORY) == past_runs.Ratio()
    assert after() == estimate(RAN, MODEL, CPU, **ROWS)
    assert past_runs.median([0.9, 0.9, 0.9, 5.0], past_runs.MOST_MEMORY).value == pytest.approx(0.9)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.randoms())
@examples(2)
def test_the_median_is_within_its_bounds_in_any_order(ratios, random):
    """Whatever records say, an estimate moves at most three times; their order does not matter."""
    found = past_runs.median(ratios, past_runs.MOST_MEMORY)
    assert found == past_runs.median(random.sample(ratios, len(ratios)), past_runs.MOST_MEMORY)
    assert 1 / past_runs.MOST_MEMORY <= found.value <= past_runs.MOST_MEMORY
    assert found.runs == len(ratios)


@pytest.mark.parametrize(
    ("changed", "model", "runs"),
    [
        ({}, "HuggingFaceTB/SmolLM2-360M-Instruct", 0),
        ({}, "Qwen/Qwen3-0.6B", 0),
        ({"update": "full"}, MODEL, 0),
        ({"objective": "dpo"}, MODEL, 0),
        ({"micro_batch_size": 1, "seq_len": 64}, MODEL, 1),
    ],
)
def test_only_runs_of_the_same_model_and_method_count(changed, model, runs):
    """Another model, update or objective says nothing; other rows and batches do not matter."""
    learned = after(past_run(replace(RAN, **changed), model, memory=0.5)).learned
    assert (learned.runs if learned else 0) == runs


@pytest.mark.parametrize("changes", [{"steps": 19}, {"steps": None}, {"kind": "dry_run"}])
def test_a_run_of_few_steps_never_lowers_memory(changes):
    """It may not have met its peak; what it needed more counts."""
    plain = after().memory.peak_bytes
    assert after(past_run(memory=0.5, **changes)).memory.peak_bytes == plain
    assert after(past_run(memory=1.5, **changes)).memory.peak_bytes > 1.3 * plain
    assert after(past_run(memory=0.5, steps=20)).memory.peak_bytes < 0.7 * plain


@pytest.mark.parametrize("hardware", [CPU, RTX_3090, replace(CPU, cpu_cores=8)])
def test_a_run_of_another_gpu_changes_nothing(hardware):
    """Runs of one GPU are never used for another, nor for the CPU, nor for other processors."""
    ran = past_run(hardware=RTX_4090, memory=0.5, time=2.0)
    assert after(ran, hardware=hardware) == estimate(RAN, MODEL, hardware, **ROWS)
    assert after(past_run(memory=0.5), ran, hardware=L4).learned is None


@pytest.mark.parametrize("hardware", [CPU, RTX_4090])
def test_runs_of_this_machine_correct_memory_and_speed(hardware):
    """Three runs at 0.8 of the memory and 1.5 times the time are believed, and the band follows."""
    plain = after(hardware=hardware)
    taught = after(*[past_run(hardware=hardware, memory=0.8, time=1.5)] * 3, hardware=hardware)
    assert 0.8 < taught.memory.peak_bytes / plain.memory.peak_bytes < 0.9
    assert 0.8 < taught.memory.need_bytes / plain.memory.need_bytes < 0.9
    assert taught.duration_s == pytest.approx(1.5 * plain.duration_s)
    assert taught.memory.low_bytes < taught.memory.peak_bytes < taught.memory.high_bytes
    width = [one.memory.need_high_bytes / one.memory.need_bytes for one in (taught, plain)]
    assert width[0] == pytest.approx(width[1])
    assert taught.learned.sentence.startswith("3 runs here: memory x 0.8")
    assert [term.name for term in taught.memory.peak.terms][-1] == past_runs.TERM
    assert sum(t.size_bytes for t in taught.memory.peak.terms) == taught.memory.peak.total_bytes


def test_fixed_parts_are_not_scaled():
    """Interpreter and CUDA context are in no run's counter; other frameworks are not corrected."""
    ran = past_run(memory=0.5)
    plain, taught = after(), after(ran)
    fixed = next(t.size_bytes for t in plain.memory.peak.terms if t.name == "Python and libraries")
    assert (
        taught.memory.peak_bytes - fixed,
        after(ran, spec=replace(RAN, framework="axolotl")).learned,
    ) == (pytest.approx(0.5 * (plain.memory.peak_bytes - fixed), rel=0.02), None)


def test_more_batch_never_needs_less_after_learning():
    """Corrections keep the order of micro-batches as far as runs of one of them do."""
    runs = [past_run(replace(RAN, micro_batch_size=micro), memory=0.8) for micro in (1, 4)]
    peaks = [
        after(*runs, spec=replace(RAN, micro_batch_size=micro)).memory.peak_bytes
        for micro in (1, 2, 4, 8, 16)
    ]
    assert peaks == sorted(peaks)
