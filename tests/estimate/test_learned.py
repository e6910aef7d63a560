"""What runs of a machine teach: the median of measured / expected of its model and method."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate import past_runs
from advisor.ground.types import Hardware
from tests.conftest import examples
from tests.estimate.specs import RunSpec, estimate, hardware_with, shape

MODEL, ROWS = "HuggingFaceTB/SmolLM2-135M-Instruct", {"tokens_total": 10**6, "rows_total": 5000}
CPU = Hardware(
    kind="cpu", origin="probed", cpu_model="A Processor", cpu_cores=2, ram_total_bytes=2**36,
    software={"torch": "2.9.1+cpu"},
)  # fmt: skip
RTX_4090, RTX_3090, L4 = (
    hardware_with(name, origin="probed", software={"torch": "2.9.1"})
    for name in ("RTX 4090", "RTX 3090", "L4")
)
SPEC = RunSpec(micro_batch_size=4, seq_len=512, rank=8, weights_dtype="float32")


def run_of(spec=SPEC, model=MODEL, hardware=CPU, *, memory=1.0, time=1.0, **changes):
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


def after(*runs, spec=SPEC, hardware=CPU):
    return estimate(spec, MODEL, hardware, past=past_runs.PastRuns(runs), **ROWS)


def test_no_runs_leave_the_formula_and_one_odd_run_moves_nothing():
    """Without records nothing changes or is said, and one odd run beside three is not heard."""
    assert past_runs.median([], past_runs.MOST_MEMORY) == past_runs.Ratio()
    assert after() == estimate(SPEC, MODEL, CPU, **ROWS)
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
    learned = after(run_of(replace(SPEC, **changed), model, memory=0.5)).learned
    assert (learned.runs if learned else 0) == runs


@pytest.mark.parametrize("changes", [{"steps": 19}, {"steps": None}, {"kind": "dry_run"}])
def test_a_run_of_few_steps_never_lowers_memory(changes):
    """It may not have met its peak; what it needed more counts."""
    plain = after().memory.peak_bytes
    assert after(run_of(memory=0.5, **changes)).memory.peak_bytes == plain
    assert after(run_of(memory=1.5, **changes)).memory.peak_bytes > 1.3 * plain
    assert after(run_of(memory=0.5, steps=20)).memory.peak_bytes < 0.7 * plain


@pytest.mark.parametrize("hardware", [CPU, RTX_3090, replace(CPU, cpu_cores=8)])
def test_a_run_of_another_gpu_changes_nothing(hardware):
    """Runs of one GPU are never used for another, nor for the CPU, nor for other processors."""
    ran = run_of(hardware=RTX_4090, memory=0.5, time=2.0)
    assert after(ran, hardware=hardware) == estimate(SPEC, MODEL, hardware, **ROWS)
    assert after(run_of(memory=0.5), ran, hardware=L4).learned is None


@pytest.mark.parametrize("hardware", [CPU, RTX_4090])
def test_runs_of_this_machine_correct_memory_and_speed(hardware):
    """Three runs at 0.8 of the memory and 1.5 times the time are believed, and the band follows."""
    plain = after(hardware=hardware)
    taught = after(*[run_of(hardware=hardware, memory=0.8, time=1.5)] * 3, hardware=hardware)
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
    ran = run_of(memory=0.5)
    plain, taught = after(), after(ran)
    fixed = next(t.size_bytes for t in plain.memory.peak.terms if t.name == "Python and libraries")
    assert (
        taught.memory.peak_bytes - fixed,
        after(ran, spec=replace(SPEC, framework="axolotl")).learned,
    ) == (pytest.approx(0.5 * (plain.memory.peak_bytes - fixed), rel=0.02), None)


def test_more_batch_never_needs_less_after_learning():
    """Corrections keep the order of micro-batches as far as runs of one of them do."""
    runs = [run_of(replace(SPEC, micro_batch_size=micro), memory=0.8) for micro in (1, 4)]
    peaks = [
        after(*runs, spec=replace(SPEC, micro_batch_size=micro)).memory.peak_bytes
        for micro in (1, 2, 4, 8, 16)
    ]
    assert peaks == sorted(peaks)
