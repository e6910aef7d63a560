"""The runs of a machine as they are remembered: what each measured, beside what the formula alone
said of it, by machine, method and model.

Pure: their file is read by advisor.situation.past_runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from msgspec.structs import replace

from advisor.estimate import sources as src
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.run import Run
from advisor.estimate.time import Machine, time_estimate
from advisor.estimate.types import Learned, MemoryEstimate, Moment, Term, TimeEstimate, WholeTime
from advisor.estimate.whole_time import EvaluationRows, time_by_parts
from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.types import Gpu, GpuSpec, Hardware, ModelShape, Source
from advisor.ground.units import GIB

FORMAT = 1
ALIKE = 4.0  # runs whose size differs by more than this factor teach nothing: assumed
# Of fewer steps a peak is not sure to be the highest: assumed.
FEW_STEPS = 20
# How far a correction may go: twice as far as the furthest of 238 published peaks, 1.5 times off
# (docs/estimates.md); a little further than runs on two busy cores, which took up to 5.3 times the
# estimated time (whole_time.py).
MOST_MEMORY, MOST_TIME = 3.0, 6.0


class Reading(JsonObject, frozen=True, kw_only=True):
    """A peak that a run measured, beside what the formula alone says of it."""

    counter: Annotated[str, "allocated, reserved (on a GPU) or rss_growth (of the process)"]
    expected_bytes: Annotated[int, "by the formula alone, as this counter counts"]
    measured_bytes: Annotated[int, "what it read"]


class PastRun(JsonObject, frozen=True, kw_only=True):
    """One stage that was trained or measured: a line of runs.jsonl. No names, no paths."""

    format: Annotated[int, "of the line; lines of a newer one are left out"] = FORMAT
    at: Annotated[str, "UTC"] = ""
    kind: Annotated[Literal["run", "dry_run"], "trained, or measured in two steps"] = "run"
    advise_version: Annotated[str | None, "that wrote the line"] = None
    machine: Annotated[str, "the GPU, or the processor and its cores"]
    family: Annotated[str, "model_type of config.json"]
    params: Annotated[int, "parameters of the model"]
    objective: Annotated[str, "sft, dpo, ..."]
    update: Annotated[str, "full, lora, ..."]
    quantization: Annotated[str | None, "of the frozen base"] = None
    sharding: Annotated[str | None, "how several GPUs share the work"] = None
    steps: Annotated[int | None, "optimizer steps", OMIT_NULL] = None
    memory: Annotated[tuple[Reading, ...], "the peaks"] = ()
    expected_step_s: Annotated[float | None, "seconds of a step by the formula alone"] = None
    measured_step_s: Annotated[float | None, "seconds of a step, median"] = None


class Ratio(NamedTuple):
    """The median of measured / expected, and of how many runs it is."""

    value: float = 1.0
    runs: int = 0


class Lesson(NamedTuple):
    """What the runs of one machine, method and model say: (expected, measured / expected)."""

    memory: dict[str, list[tuple[float, float]]]  # bytes, by counter
    time: list[tuple[float, float]]  # seconds of a step

    def memory_of(self, counter: str, expected_bytes: float) -> Ratio:
        """How far off the formula was for runs of about this size."""
        return median(_alike(self.memory.get(counter, []), expected_bytes), MOST_MEMORY)

    def time_of(self, expected_step_s: float) -> Ratio:
        """The same of the time of a step."""
        return median(_alike(self.time, expected_step_s), MOST_TIME)


def _alike(pairs: Iterable[tuple[float, float]], size: float) -> list[float]:
    return [ratio for one, ratio in pairs if size / ALIKE <= one <= size * ALIKE]


Key = tuple[str | int | None, ...]  # machine, method and model


class PastRuns:
    """The lessons that are known. Equal only to itself, so that looking up is cheap."""

    def __init__(self, runs: Iterable[PastRun] = ()) -> None:
        self.runs = tuple(runs)
        groups: dict[Key, list[PastRun]] = {}
        for run in self.runs:
            method = (run.objective, run.update, run.quantization, run.sharding)
            groups.setdefault((run.machine, *method, run.family, run.params), []).append(run)
        self._lessons = {key: _lesson(group) for key, group in groups.items()}

    def __bool__(self) -> bool:
        return bool(self.runs)

    def lesson(self, run: Run, machine: str | None) -> Lesson | None:
        """What past runs say of this one; None if there are none of its machine, method and model,
        and for another trainer than ours.
        """
        if not run.is_ours:
            return None
        stage, model = run.stage, run.model
        method = (stage.objective, stage.update, stage.quantization, run.device.sharding)
        return self._lessons.get((machine, *method, family_of(model), model.params))


NO_RUNS = PastRuns()


def _lesson(runs: Iterable[PastRun]) -> Lesson:
    memory: dict[str, list[tuple[float, float]]] = {}
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}  # of short runs or not
    for run in runs:
        is_short = run.kind == "dry_run" or (run.steps or 0) < FEW_STEPS
        for one in run.memory:
            ratio = one.measured_bytes / one.expected_bytes
            ratio = max(1.0, ratio) if is_short else ratio
            memory.setdefault(one.counter, []).append((one.expected_bytes, ratio))
        if (expected := run.expected_step_s) and run.measured_step_s:
            times[is_short].append((expected, run.measured_step_s / expected))
    return Lesson(memory, times[False] or times[True])


def median(ratios: Iterable[float], most: float) -> Ratio:
    """The middle one, or the mean of the two in the middle, within its bounds: `statistics` would
    take milliseconds to import.
    """
    found = sorted(ratios)
    if not found:
        return Ratio()
    middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
    return Ratio(min(max(middle, 1 / most), most), len(found))


# ------------------------------------------------------------------------------ what is compared


def gpu_machine(spec: GpuSpec | None, gpu: Gpu | None = None) -> str | None:
    """The name by which runs on a GPU are found: that of the catalogue, else its own."""
    name = spec.name if spec is not None else gpu.name if gpu is not None else None
    part = f" MIG {gpu.mig_profile}" if gpu is not None and gpu.mig_profile else ""
    return None if name is None else f"{name}{part}"


def machine_name(hardware: Hardware) -> str | None:
    """The GPU, or the processor and its usable cores; None where it is not known."""
    if hardware.kind == "cpu":
        if hardware.cpu_model is None or hardware.cpu_cores is None:
            return None
        return f"{hardware.cpu_model}, {hardware.cpu_cores} cores"
    return gpu_machine(hardware.gpus[0].spec, hardware.gpus[0]) if hardware.gpus else None


def family_of(shape: ModelShape) -> str:
    """The model_type of config.json; of a model known by its size alone that it is."""
    return shape.architecture or "unknown"


OF_TENSORS = ("allocated", "active")  # counters of what torch allocated; others count its cache too
# Terms that no counter of a run sees, beside those of the CUDA context.
UNCOUNTED = ("Python and libraries", "vLLM server on the same GPU")
TERM = "learned from runs here"
LEARNED = Source(title="runs on this machine (advise, runs.jsonl)", kind="measured")


def counted_bytes(moment: Moment) -> int:
    """The part of a moment that a run's own counter sees: without context, interpreter, server."""
    return sum(term.size_bytes for term in moment.terms if not _is_fixed(term))


def _is_fixed(term: Term) -> bool:
    return term.source is src.CONTEXT or term.name in UNCOUNTED


def correct_memory(
    memory: MemoryEstimate, lesson: Lesson | None, run: Run
) -> tuple[MemoryEstimate, Ratio]:
    """The estimate of a run as past runs correct it, with the correction as a term of each moment,
    and the ratio that did so. Its band moves along.
    """
    if lesson is None:
        return memory, Ratio()
    counter, cpu = run.device.counter, run.device.is_cpu
    read = "rss_growth" if cpu else "allocated" if counter in OF_TENSORS else "reserved"
    size = counted_bytes(memory.peak)
    found = lesson.memory_of(read, size)
    # What must be there holds no cached blocks: the runs' tensors say how far that is off.
    needed = found if cpu else lesson.memory_of("allocated", size)
    if not found.runs and not needed.runs:
        return memory, found
    low, high = (
        edge / memory.need_bytes for edge in (memory.need_low_bytes, memory.need_high_bytes)
    )
    moments = tuple(_corrected(moment, found) for moment in memory.moments)
    peak, most_bytes = max(moment.total_bytes for moment in moments), memory.readable_bytes
    peak = peak if most_bytes is None else min(peak, most_bytes)
    fixed = sum(term.size_bytes for term in memory.peak.terms if _is_fixed(term))
    change = round(max(0, memory.need_bytes - fixed) * (needed.value - 1))
    need = memory.need_bytes + change
    highest = round(peak * high)
    return (
        replace(
            memory,
            moments=moments,
            low_bytes=round(peak * low),
            high_bytes=highest if most_bytes is None else min(highest, most_bytes),
            need_bytes=need,
            need_correction=_term(change, needed),
            need_low_bytes=round(need * low),
            need_high_bytes=round(need * high),
        ),
        found if found.runs else needed,
    )


def _corrected(moment: Moment, found: Ratio) -> Moment:
    change = round(counted_bytes(moment) * (found.value - 1))
    return replace(moment, terms=(*moment.terms, _term(change, found))) if change else moment


def _term(change_bytes: int, found: Ratio) -> Term:
    count = f"{found.runs} run{'s' if found.runs != 1 else ''}"
    because = f"{count} of this model and method here: x {found.value:.2f}"
    return Term(name=TERM, size_bytes=change_bytes, because=because, source=LEARNED)


def correct_time(time: TimeEstimate, found: Ratio) -> TimeEstimate:
    """The estimate as past runs correct it. Its band moves along."""
    if not found.runs:
        return time
    scale = found.value
    return replace(
        time,
        step_s=time.step_s * scale,
        tokens_per_s_per_gpu=time.tokens_per_s_per_gpu / scale,
        generate_s=time.generate_s * scale,
        served_s=time.served_s * scale,
        parts=tuple((what, seconds * scale) for what, seconds in time.parts),
        low_s=time.low_s * scale,
        high_s=time.high_s * scale,
    )


def learned(
    memory: Ratio, time: Ratio, by_formula: MemoryEstimate, corrected: MemoryEstimate
) -> Learned | None:
    """What is said of a correction beside the estimate; None if nothing was corrected.

    Args:
        memory: What corrected the memory.
        time: What corrected the time.
    """
    before, after = by_formula.peak.total_bytes, corrected.peak.total_bytes
    if not (memory.runs or time.runs):
        return None
    return Learned(
        memory_runs=memory.runs,
        time_runs=time.runs,
        memory_scale=after / before if memory.runs and before else None,
        time_scale=time.value if time.runs else None,
        formula_bytes=before if memory.runs else None,
    )


class CorrectedCosts(NamedTuple):
    """Memory and time of a run, as past runs of its machine correct them."""

    memory: MemoryEstimate
    time: TimeEstimate | None  # None: the machine's speed is not known
    times: WholeTime | None  # by its parts, if it is known what it is evaluated on
    lesson: Lesson | None
    learned: Learned | None


def costs_of(
    run: Run,
    machine: Machine | None,
    *,
    evaluated: EvaluationRows | None = None,
    past: PastRuns = NO_RUNS,
    ran_on: str | None = None,
) -> CorrectedCosts | None:
    """What a run costs, corrected by the runs of the machine `ran_on`; None if the model's
    dimensions are not known.
    """
    by_formula = memory_estimate(run)
    if by_formula is None:
        return None
    lesson = past.lesson(run, ran_on) if past else None
    memory, correction = correct_memory(by_formula, lesson, run)
    time = None if machine is None else time_estimate(run, machine)
    pace = lesson.time_of(time.step_s) if lesson is not None and time is not None else Ratio()
    taught = learned(correction, pace, by_formula, memory)
    times = None
    if machine is not None and time is not None:
        if taught is not None:
            taught = replace(taught, formula_step_s=time.step_s, formula_duration_s=time.duration_s)
        time = correct_time(time, pace)
        if time.duration_s is not None and evaluated is not None:
            times = time_by_parts(run, machine, evaluated, time)
    return CorrectedCosts(memory, time, times, lesson, taught)


def learned_document(found: Learned) -> dict[str, Any]:
    """What runs of this machine changed, as every answer in JSON says it."""
    by_formula = found.formula_bytes
    return {
        "text": found.sentence,
        "memory_runs": found.memory_runs,
        "memory_scale": None if found.memory_scale is None else round(found.memory_scale, 3),
        "speed_runs": found.time_runs,
        "speed_scale": None if found.time_scale is None else round(1 / found.time_scale, 3),
        "formula_peak_gib": None if by_formula is None else round(by_formula / GIB, 4),
    }
