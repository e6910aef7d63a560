"""What runs of a machine teach: towards the formula with few, to what was measured with many."""

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.estimate import estimate
from advisor.estimate.memory.peak import TRANSIENT_SOURCES
from advisor.estimate.past.corrections import (
    MEMORY_K,
    MOST_MEMORY,
    MOST_TIME,
    REPEATED,
    TERM,
    TIME_K,
    Correction,
    band,
    correction_of,
)
from advisor.estimate.past.runs import (
    FAMILY,
    METHOD,
    MODEL,
    SETTINGS,
    PastRun,
    PastRuns,
    Reading,
    closeness,
    device_of,
    method_of,
    settings_key,
    settings_of,
)
from advisor.estimate.types import RunSpec
from advisor.ground.types import Gpu, Hardware
from advisor.probe.catalogue import find_gpu
from advisor.situation.shapes import model_shape
from tests.conftest import examples
from tools.generate.accuracy import answered

SHAPE = model_shape("HuggingFaceTB/SmolLM2-135M-Instruct")[0]
LARGER = model_shape("HuggingFaceTB/SmolLM2-360M-Instruct")[0]
OTHER = model_shape("Qwen/Qwen3-0.6B")[0]
CPU = Hardware(
    kind="cpu", origin="probed", cpu_model="A Processor", cpu_cores=2, ram_total_bytes=2**36,
    software={"torch": "2.9.1+cpu"},
)  # fmt: skip
SPEC = RunSpec(micro_batch_size=4, seq_len=512, rank=8, weights_dtype="float32")
LEVELS = st.sampled_from((SETTINGS, MODEL, FAMILY, METHOD))
BYTES = st.integers(2**20, 2**40)
FACTORS = st.floats(0.4, 2.5)


def gpu_machine(name):
    card = find_gpu(name).spec
    one = Gpu(name=name, memory_total_bytes=card.memory_bytes, spec=card)
    return Hardware(kind="cuda", origin="probed", gpus=(one,), software={"torch": "2.9.1"})


def run_of(spec=SPEC, shape=SHAPE, hardware=CPU, *, memory=1.0, time=1.0, **changes):
    """A past run that measured so many times what the formula says."""
    found = estimate(spec, shape, hardware, tokens_total=10**6, rows_total=5000)
    counters = ("rss_growth",) if hardware.kind == "cpu" else ("allocated", "reserved")
    size = found.memory.peak_bytes - int(0.7 * 2**30)
    fields = {
        "formula": "any",
        "machine": device_of(hardware).machine,
        "torch": hardware.software.get("torch"),
        "family": shape.architecture,
        "params": shape.params,
        "objective": spec.objective,
        "update": spec.update,
        "quantization": spec.quantization,
        "sharding": spec.sharding,
        "settings": settings_of(spec),
        "memory": tuple(
            Reading(counter=one, expected_bytes=size, measured_bytes=round(memory * size))
            for one in counters
        ),
        "expected_step_s": found.step_s,
        "measured_step_s": time * found.step_s,
    }
    return PastRun(**{**fields, **changes})


def after(*runs, spec=SPEC, shape=SHAPE, hardware=CPU):
    return estimate(spec, shape, hardware, tokens_total=10**6, rows_total=5000, past=PastRuns(runs))


# ------------------------------------------------------------------------------ the arithmetic


def test_no_runs_leave_the_formula():
    """Without records nothing is changed and nothing is said."""
    assert correction_of([], MEMORY_K, most=MOST_MEMORY) == Correction()
    assert after() == estimate(SPEC, SHAPE, CPU, tokens_total=10**6, rows_total=5000)


@given(level=LEVELS, expected=BYTES, factor=FACTORS, shifts=st.booleans())
@examples(1)
def test_one_run_moves_part_of_the_way(level, expected, factor, shifts):
    """One record moves the estimate towards what it measured, and not all the way."""
    measured = expected * factor
    found = correction_of(
        [(level, expected, measured)], MEMORY_K, most=MOST_MEMORY, shifts=shifts
    ).of(expected, MOST_MEMORY)
    low, high = sorted((expected, measured))
    assert low <= found * (1 + 1e-9)
    assert found <= high * (1 + 1e-9)
    if abs(factor - 1) > 0.01:
        assert found not in (pytest.approx(expected, rel=1e-4), pytest.approx(measured, rel=1e-4))


@given(level=LEVELS, expected=BYTES, factor=FACTORS, shifts=st.booleans())
@examples(1)
def test_many_equal_runs_give_what_they_measured(level, expected, factor, shifts):
    """A thousand equal records outweigh the formula."""
    found = correction_of(
        [(level, expected, expected * factor)] * 1000, MEMORY_K, most=MOST_MEMORY, shifts=shifts
    )
    assert found.of(expected, MOST_MEMORY) == pytest.approx(expected * factor, rel=0.01)


@given(
    st.lists(st.tuples(LEVELS, BYTES, BYTES), min_size=2, max_size=12), st.randoms(), st.booleans()
)
@examples(1)
def test_the_order_of_runs_does_not_matter(pairs, random, shifts):
    """The same records in another order correct alike."""
    mixed = list(pairs)
    random.shuffle(mixed)
    one, other = (
        correction_of(each, MEMORY_K, most=MOST_MEMORY, shifts=shifts) for each in (pairs, mixed)
    )
    assert one == other


@given(st.lists(st.tuples(LEVELS, BYTES, st.integers(1, 2**60)), max_size=8), BYTES, st.booleans())
@examples(2)
def test_a_correction_stays_within_its_bounds(pairs, number, shifts):
    """Whatever records say, an estimate moves at most three times, and stays above zero."""
    found = correction_of(pairs, MEMORY_K, most=MOST_MEMORY, shifts=shifts)
    assert number / MOST_MEMORY * 0.999 <= found.of(number, MOST_MEMORY) <= number * MOST_MEMORY


@given(st.integers(3, 9), st.floats(0.2, 5.0), LEVELS)
@examples(1)
def test_one_odd_run_moves_little(count, odd, level):
    """Among runs that agree one that does not changes nothing but its share in their number."""
    agreeing = [(level, 1e9, 0.9e9)] * count
    with_odd = correction_of([*agreeing, (level, 1e9, odd * 1e9)], MEMORY_K, most=MOST_MEMORY)
    without = correction_of(agreeing, MEMORY_K, most=MOST_MEMORY)
    assert with_odd.scale == pytest.approx(without.scale, rel=0.03)


@given(LEVELS, LEVELS, FACTORS)
@examples(1)
def test_closer_runs_count_more(one, other, factor):
    """Of two records that disagree the closer one has the last word."""
    near, far = sorted((one, other))
    if near == far:
        return
    pairs = [(near, 1e9, factor * 1e9), (far, 1e9, 1e9)]
    alone = correction_of(pairs[:1], MEMORY_K, most=MOST_MEMORY).scale
    assert correction_of(pairs, MEMORY_K, most=MOST_MEMORY).scale == pytest.approx(alone)


@given(st.lists(st.floats(0.9, 1.1), min_size=1, max_size=30), LEVELS)
@examples(1)
def test_a_band_narrows_and_not_below_the_spread_of_runs(factors, level):
    """More runs make the band no wider than the formula's, and no narrower than they differ."""
    found = correction_of([(level, 1e9, one * 1e9) for one in factors], MEMORY_K, most=MOST_MEMORY)
    low, high = band(0.7, 1.4, found)
    assert low >= 0.7 * 0.999
    assert high <= 1.4 * 1.001
    assert high >= math.exp(max(REPEATED, found.spread)) * 0.999
    assert low <= math.exp(-max(REPEATED, found.spread)) * 1.001


def test_runs_that_differ_widen_a_narrow_band():
    """The closest runs' own spread is the least that a band says."""
    factors = (0.5, 0.8, 1.0, 1.3, 2.0)
    found = correction_of([(SETTINGS, 1e9, one * 1e9) for one in factors], TIME_K, most=MOST_TIME)
    low, high = band(0.97, 1.03, found)
    assert low < 0.7
    assert high > 1.4


# ------------------------------------------------------------------------------ what counts


def test_runs_are_close_by_model_family_and_method():
    """The same settings, the same model, the same family, the same method, the same machine."""
    settings = settings_key(settings_of(SPEC))

    def close(run, torch="2.9.0+cpu"):
        return closeness(run, method_of(SPEC), ("llama", SHAPE.params), torch, settings)

    assert close(run_of()) == SETTINGS
    assert close(run_of(replace(SPEC, micro_batch_size=1)), None) == MODEL
    assert close(run_of(replace(SPEC, seq_len=420)), None) == SETTINGS
    assert close(run_of(replace(SPEC, seq_len=400)), None) == MODEL
    assert close(run_of(replace(SPEC, seq_len=700)), None) == MODEL
    assert close(run_of(shape=LARGER)) == FAMILY
    assert close(run_of(shape=OTHER)) == METHOD
    assert close(run_of(), "2.10.0") == METHOD  # another version of torch
    assert close(run_of(replace(SPEC, update="full"))) > METHOD


def test_a_run_of_another_gpu_changes_nothing():
    """Runs of one GPU are never used for another, nor for the CPU, nor for other processors."""
    ran = run_of(hardware=gpu_machine("RTX 4090"), memory=0.5, time=2.0)
    for hardware in (CPU, gpu_machine("RTX 3090"), replace(CPU, cpu_cores=8)):
        plain = estimate(SPEC, SHAPE, hardware, tokens_total=10**6, rows_total=5000)
        assert after(ran, hardware=hardware) == plain
        assert after(run_of(memory=0.5), ran, hardware=gpu_machine("L4")).learned is None


@pytest.mark.parametrize("hardware", [CPU, gpu_machine("RTX 4090")])
def test_runs_of_this_machine_correct_memory_and_speed(hardware):
    """Three runs of the same settings at 0.8 of the memory and 1.5 times the time are believed."""
    plain = after(hardware=hardware)
    taught = after(*[run_of(hardware=hardware, memory=0.8, time=1.5)] * 3, hardware=hardware)
    assert 0.8 < taught.memory.peak_bytes / plain.memory.peak_bytes < 0.93
    assert 0.75 < taught.memory.need_bytes / plain.memory.need_bytes < 0.93
    assert 1.3 < taught.duration_s / plain.duration_s < 1.5
    assert taught.memory.low_bytes < taught.memory.peak_bytes < taught.memory.high_bytes
    width = [one.memory.need_high_bytes / one.memory.need_bytes for one in (taught, plain)]
    assert width[0] < width[1]
    assert taught.learned.sentence.startswith("3 runs here: memory x 0.8")
    assert taught.learned.closest == "these settings"
    assert [term.name for term in taught.memory.peak.terms][-1] == TERM
    assert sum(t.size_bytes for t in taught.memory.peak.terms) == taught.memory.peak.total_bytes


def test_fixed_parts_are_not_scaled():
    """Interpreter and CUDA context are no part of what a run's counter reads, and stay."""
    runs = [run_of(memory=0.5)] * 1000
    plain, taught = after(), after(*runs)
    fixed = next(t.size_bytes for t in plain.memory.peak.terms if t.name == "Python and libraries")
    assert taught.memory.peak_bytes - fixed == pytest.approx(
        0.5 * (plain.memory.peak_bytes - fixed), rel=0.02
    )


def test_a_small_moving_part_is_shifted():
    """Where activations are a small part a run of other rows shifts by bytes, else it scales."""
    small = replace(SPEC, micro_batch_size=1, seq_len=64)
    large = replace(SPEC, micro_batch_size=16, seq_len=1024)
    for spec in (small, large):
        passing = [
            t for t in after(spec=spec).memory.peak.terms if id(t.source) in TRANSIENT_SOURCES
        ]
        share = sum(t.size_bytes for t in passing) / after(spec=spec).memory.peak_bytes
        assert (share < 1 / 3) is (spec is small)
    runs = [run_of(replace(SPEC, seq_len=128), memory=1.2)] * 1000
    size = runs[0].memory[0]
    shift = size.measured_bytes - size.expected_bytes
    moved = after(*runs, spec=small).memory.peak_bytes - after(spec=small).memory.peak_bytes
    assert moved == pytest.approx(shift, rel=0.02)
    moved = after(*runs, spec=large).memory.peak_bytes - after(spec=large).memory.peak_bytes
    assert moved > 2 * shift


def test_a_spec_of_another_program_is_not_corrected():
    """What our trainers measured says nothing of a spec that names another framework."""
    spec = replace(SPEC, framework="axolotl")
    assert after(run_of(), spec=spec).learned is None


def test_more_batch_never_needs_less_after_learning():
    """Corrections keep the order of micro-batches as far as runs of one of them do."""
    runs = [run_of(replace(SPEC, micro_batch_size=micro), memory=0.8) for micro in (1, 4)]
    peaks = [
        after(*runs, spec=replace(SPEC, micro_batch_size=micro)).memory.peak_bytes
        for micro in (1, 2, 4, 8, 16)
    ]
    assert peaks == sorted(peaks)


# ------------------------------------------------------------------------------ does it help


def test_published_runs_of_one_model_and_method_teach_each_other():
    """Each published peak, predicted from the others of its source, model, method and counter, is
    closer than by the formula alone: the median over sources of the median error falls.
    """
    groups = {}
    for case in answered("cases"):
        facts = case.facts
        key = (facts["source"], facts["model"], facts["update"], facts.get("quantization"),
               facts.get("counter"), facts.get("gpus", 1) > 1)  # fmt: skip
        groups.setdefault(key, []).append(case)
    before, learned = {}, {}
    for key, cases in groups.items():
        for case in cases:
            others = [
                (MODEL, float(one.answer["peak_gib"]), float(one.facts["measured_gib"]))
                for one in cases
                if one is not case
            ]
            if not others:
                continue
            peak, measured = float(case.answer["peak_gib"]), float(case.facts["measured_gib"])
            moving = sum(
                term["gib"] for term in case.answer["terms"] if term["source"] in PASSING_TITLES
            )
            found = correction_of(others, MEMORY_K, most=MOST_MEMORY, shifts=moving < peak / 3).of(
                peak, MOST_MEMORY
            )
            before.setdefault(key[0], []).append(abs(math.log(peak / measured)))
            learned.setdefault(key[0], []).append(abs(math.log(found / measured)))
    assert sum(map(len, before.values())) > 150
    means = [
        statistics.mean(statistics.median(errors) for errors in found.values())
        for found in (before, learned)
    ]
    assert means[1] < means[0]


PASSING_TITLES = {
    source.title
    for source in vars(__import__("advisor.estimate.sources", fromlist=["x"])).values()
    if id(source) in TRANSIENT_SOURCES
}
