"""What finished runs and dry runs of a machine teach about the next estimate there: the median of
measured / expected of its machine, method and model scales it.

Pure: the file of runs is read elsewhere (advisor.situation.past_runs) and handed in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advisor.estimate import sources as src
from advisor.estimate.past.runs import Lesson, Ratio
from advisor.estimate.run import Run
from advisor.estimate.types import Learned, MemoryEstimate, Moment, Term, TimeEstimate
from advisor.ground.types import Source
from advisor.ground.units import GIB

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


def with_lesson(
    memory: MemoryEstimate, lesson: Lesson | None, run: Run
) -> tuple[MemoryEstimate, Ratio]:
    """The estimate of a run as past runs correct it, with the correction as a term of each moment,
    and the ratio that did so. Its band moves along.
    """
    if lesson is None:
        return memory, Ratio()
    counter, cpu = run.device.counter, run.device.is_cpu
    read = "rss_growth" if cpu else "allocated" if counter in OF_TENSORS else "reserved"
    found = lesson.memory.get(read, Ratio())
    # What must be there holds no cached blocks: the runs' tensors say how far that is off.
    needed = found if cpu else lesson.memory.get("allocated", Ratio())
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


def time_with_lesson(time: TimeEstimate, lesson: Lesson | None) -> TimeEstimate:
    """The estimate as past runs correct it. Its band moves along."""
    if lesson is None or not lesson.time.runs:
        return time
    scale = lesson.time.value
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
    lesson: Lesson | None,
    memory: Ratio,
    by_formula: MemoryEstimate,
    corrected: MemoryEstimate,
    *,
    timed: bool,
) -> Learned | None:
    """What is said of a correction beside the estimate; None if nothing was corrected.

    Args:
        memory: What corrected the memory.
        timed: There is a time to correct.
    """
    before, after = by_formula.peak.total_bytes, corrected.peak.total_bytes
    time = lesson.time if lesson is not None and timed else Ratio()
    if not (memory.runs or time.runs):
        return None
    return Learned(
        memory_runs=memory.runs,
        time_runs=time.runs,
        memory_scale=after / before if memory.runs and before else None,
        time_scale=time.value if time.runs else None,
        formula_bytes=before if memory.runs else None,
    )


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
