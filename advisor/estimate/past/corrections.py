"""What finished runs and dry runs of a machine teach about the next estimate there.

The formula comes first; runs correct it by what they measured against what the formula alone said
of them. The closest runs count most: those of the same settings, then of the same model and method,
of the same family and method, of the same method, and any on this machine. From far to near each
group moves what is left of the error by n / (n + k) of its median, so that few runs move little and
one odd run cannot move many. A run of another device changes nothing.

A correction scales the estimate. Where the part that comes and goes in a step is below a third of
the peak, runs of the same model shift it instead: what is off is then a constant, not a rate.

Pure: the file of runs is read elsewhere (advisor.situation.past_runs) and handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from advisor.estimate import sources as src
from advisor.estimate.memory.peak import TRANSIENT_SOURCES
from advisor.estimate.past.runs import (
    FAMILY,
    MACHINE,
    METHOD,
    MODEL,
    SETTINGS,
    Device,
    PastRun,
    PastRuns,
    closeness,
    family_of,
    method_of,
    settings_of,
)
from advisor.estimate.types import Learned, MemoryEstimate, Moment, RunSpec, Term, TimeEstimate
from advisor.ground.types import ModelShape, Source
from advisor.ground.units import GIB, format_gib

# Runs that outweigh the formula half and half, by how close they are. From published rows, each
# predicted from the others of its source and group (`python -m benchmarks lessons`). Peaks, 188 to
# 224 of them: k = 2 took the median error from 5.8 to 4.7 % for the same model and method, from 5.7
# to 4.9 % for the same family, 5.5 to 4.8 % for the same method; no other k did clearly better.
# Speeds, 48 to 77 of them: k = 1 took it 9.4 to 5.6 % for the same model and method, k = 2 from
# 15 to 12 % for the same family, 11 to 8 % for the same method, 12 to 8 % for any on the GPU.
# The same settings again are assumed to be nearer by far: the peaks of five runs made twice
# differed by 0.2 to 1.6 %, their times, beside other programs, by up to a third.
# Peaks of any method gained as much (5.7 to 4.8 %), but published ones are of few methods: k = 4.
MEMORY_K: Mapping[int, float] = {SETTINGS: 0.25, MODEL: 2.0, FAMILY: 2.0, METHOD: 2.0, MACHINE: 4.0}
TIME_K: Mapping[int, float] = {SETTINGS: 0.5, MODEL: 1.0, FAMILY: 2.0, METHOD: 2.0, MACHINE: 2.0}
WORDS = (
    "these settings", "this model and method", "this family and method", "this method", "this"
    " device",
)  # fmt: skip
# Below this share of the peak the part that comes and goes is small. A constant that the formula
# lacks would otherwise grow with the weights.
SMALL_MOVING = 1 / 3
# How far a correction may go: twice as far as the furthest of 238 published peaks, 1.5 times off
# (docs/accuracy.md); a little further than runs on two busy cores, which took up to 5.3 times the
# estimated time (whole_time.py).
MOST_MEMORY, MOST_TIME = 3.0, 6.0
# A band is never narrower: assumed, for rows and libraries that change between two runs (the same
# runs made again differed by up to 1.6 %).
REPEATED = 0.03
NINE_IN_TEN = 1.645  # standard deviations to each side that hold nine in ten of a normal spread
TO_DEVIATION = 1.4826  # from the median distance to a standard deviation, of a normal spread
FEWEST_FOR_SPREAD = 3
OF_TENSORS = ("allocated", "active")  # counters of what torch allocated; others count its cache too
# Terms that no counter of a run sees, beside those of the CUDA context.
UNCOUNTED = ("Python and libraries", "vLLM server on the same GPU")
TERM = "learned from runs here"
LEARNED = Source(title="runs on this machine (advise, runs.jsonl)", kind="measured")


class Correction(NamedTuple):
    """How runs change a number: `scale` times it, plus `shift`."""

    scale: float = 1.0
    shift: float = 0.0
    runs: int = 0
    closest: int = MACHINE
    # Of the error's variance that is left; 1: nothing is known of it.
    variance: float = 1.0
    spread: float = 0.0  # of the closest runs among themselves: nine in ten, as a share

    def of(self, number: float, most: float) -> float:
        """The number corrected, at most so many times larger or smaller."""
        return min(max(number * self.scale + self.shift, number / most), number * most)


# ------------------------------------------------------------------------------ the correction


def correction_of(
    pairs: Iterable[tuple[int, float, float]],
    k: Mapping[int, float],
    *,
    most: float,
    shifts: bool = False,
) -> Correction:
    """What (closeness, expected, measured) of past runs say.

    Args:
        k: Closeness -> runs that count as much as what is known without them; others are left out.
        most: A run that is further off than so many times counts as being just that far off.
        shifts: Runs of the same model shift the estimate instead of scaling it.
    """
    groups: dict[int, list[tuple[float, float]]] = {}
    for level, expected, measured in pairs:
        if level in k and expected > 0 and measured > 0:
            bounded = min(max(measured, expected / most), expected * most)
            groups.setdefault(level, []).append((expected, bounded))
    if not groups:
        return Correction()
    scale, shift, variance = 1.0, 0.0, 1.0
    for level in sorted(groups, reverse=True):
        group, share = groups[level], len(groups[level]) / (len(groups[level]) + k[level])
        so_far = [(max(e * scale + shift, e / most), m) for e, m in group]
        if shifts and level <= MODEL:
            shift += share * median(m - e for e, m in so_far)
        else:
            moved = math.exp(share * median(math.log(m / e) for e, m in so_far))
            scale, shift = scale * moved, shift * moved
        # Of the error's variance, the share k / (1 + k) is that of one run among those of its
        # group, and the rest is the group's own, of which n runs leave k / (n + k).
        n, own = len(group), k[level]
        variance *= own * (n + own + 1) / ((n + own) * (own + 1))
    closest = min(groups)
    return Correction(
        scale=scale,
        shift=shift,
        runs=sum(map(len, groups.values())),
        closest=closest,
        variance=variance,
        spread=_spread([math.log(m / e) for e, m in groups[closest]]),
    )


def median(values: Iterable[float]) -> float:
    """The middle one, or the mean of the two in the middle: `statistics` would bring numbers of
    other kinds along, and takes milliseconds to import.
    """
    found = sorted(values)
    half = len(found) // 2
    return found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2


def _spread(errors: Sequence[float]) -> float:
    """What nine in ten of them differ by from their median; 0 where they are too few to tell."""
    if len(errors) < FEWEST_FOR_SPREAD:
        return 0.0
    middle = median(errors)
    return NINE_IN_TEN * TO_DEVIATION * median(abs(error - middle) for error in errors)


class Lesson:
    """What the runs of one machine say of specs of one model, method and settings."""

    def __init__(self, runs: Sequence[tuple[int, PastRun]]) -> None:
        self._runs = runs  # with how close each is
        self._known: dict[tuple[str, bool], Correction] = {}

    def memory(self, counter: str, small: bool) -> Correction:
        """The correction of what a counter reads, where the moving part is small or is not."""
        key = counter, small
        if key not in self._known:
            pairs = (
                (level, reading.expected_bytes, reading.measured_bytes)
                for level, run in self._runs
                for reading in run.memory
                if reading.counter == counter
            )
            self._known[key] = correction_of(pairs, MEMORY_K, most=MOST_MEMORY, shifts=small)
        return self._known[key]

    @cached_property
    def time(self) -> Correction:
        """The correction of seconds."""
        pairs = (
            (level, run.expected_step_s, run.measured_step_s)
            for level, run in self._runs
            if run.expected_step_s and run.measured_step_s
        )
        return correction_of(pairs, TIME_K, most=MOST_TIME)


def lesson_of(past: PastRuns, spec: RunSpec, shape: ModelShape, device: Device) -> Lesson | None:
    """What past runs on the device say of this spec; None where there are none, and of a spec that
    names another program than ours.
    """
    if spec.framework is not None or not past.on(device.machine):
        return None
    return _lesson(
        past,
        device,
        method_of(spec),
        (family_of(shape), shape.params),
        past.known_settings(settings_of(spec)),
    )


@lru_cache(maxsize=512)  # the fit search asks for few methods, mostly in settings that never ran
def _lesson(
    past: PastRuns,
    device: Device,
    method: tuple[str | None, ...],
    model: tuple[str, int],
    settings: tuple[str, float] | None,
) -> Lesson:
    runs = past.on(device.machine)
    return Lesson([(closeness(run, method, model, device.torch, settings), run) for run in runs])


# ------------------------------------------------------------------------------ applied


def counted_bytes(moment: Moment) -> int:
    """The part of a moment that a run's own counter sees: without context, interpreter, server."""
    return sum(term.size_bytes for term in moment.terms if not _is_fixed(term))


def _is_fixed(term: Term) -> bool:
    return term.source is src.CONTEXT or term.name in UNCOUNTED


def moving_share(moment: Moment) -> float:
    """The share of a moment that comes and goes within a step."""
    transient = sum(
        term.size_bytes for term in moment.terms if id(term.source) in TRANSIENT_SOURCES
    )
    return transient / max(1, counted_bytes(moment))


def with_lesson(
    memory: MemoryEstimate, lesson: Lesson | None, *, counter: str, cpu: bool
) -> tuple[MemoryEstimate, Correction]:
    """The estimate as past runs correct it, with the correction as a term of each moment, and the
    correction; the band is as narrow as they allow.

    Args:
        counter: What the estimate counts.
    """
    if lesson is None:
        return memory, Correction()
    small = moving_share(memory.peak) < SMALL_MOVING
    read = "rss_growth" if cpu else "allocated" if counter in OF_TENSORS else "reserved"
    found = lesson.memory(read, small)
    # What must be there holds no cached blocks: the runs' tensors say how far that is off.
    needed = found if cpu else lesson.memory("allocated", small)
    if not found.runs and not needed.runs:
        return memory, found
    moments = tuple(_corrected(moment, found) for moment in memory.moments)
    total = max(moment.total_bytes for moment in moments)
    most = math.inf if memory.readable_bytes is None else memory.readable_bytes
    peak = min(total, most)
    fixed = sum(term.size_bytes for term in memory.peak.terms if _is_fixed(term))
    counted = max(0, memory.need_bytes - fixed)
    need = memory.need_bytes - counted + round(needed.of(counted, MOST_MEMORY))
    low, high = (
        edge / memory.need_bytes for edge in (memory.need_low_bytes, memory.need_high_bytes)
    )
    low_read, high_read = band(low, high, found)
    low_need, high_need = band(low, high, needed)
    return (
        replace(
            memory,
            moments=moments,
            low_bytes=round(peak * low_read),
            high_bytes=round(min(peak * high_read, most)),
            need_bytes=need,
            need_correction=_term(need - memory.need_bytes, needed),
            need_low_bytes=round(need * low_need),
            need_high_bytes=round(need * high_need),
        ),
        found if found.runs else needed,
    )


def _corrected(moment: Moment, found: Correction) -> Moment:
    counted = counted_bytes(moment)
    change = round(found.of(counted, MOST_MEMORY)) - counted
    if not change:
        return moment
    return replace(moment, terms=(*moment.terms, _term(change, found)))


def _term(change_bytes: int, found: Correction) -> Term:
    because = f"{runs_in_words(found)}: {change_in_words(found)}"
    return Term(name=TERM, size_bytes=change_bytes, because=because, source=LEARNED)


def band(low: float, high: float, found: Correction) -> tuple[float, float]:
    """A band around 1, narrowed by what runs leave of the error's variance, and no narrower than
    repeated runs differ, nor than the closest ones did.
    """
    if not found.runs:
        return low, high
    least = max(REPEATED, found.spread)
    narrowed = math.sqrt(found.variance)
    below = max(-math.log(low) * narrowed, least) if 0 < low < 1 else least
    above = max(math.log(high) * narrowed, least) if high > 1 else least
    return math.exp(-below), math.exp(above)


def time_with_lesson(time: TimeEstimate, lesson: Lesson | None) -> TimeEstimate:
    """The estimate as past runs correct it."""
    if lesson is None or not lesson.time.runs:
        return time
    scale = lesson.time.of(1.0, MOST_TIME)
    step_s = time.step_s * scale
    low, high = band(time.low_s / time.step_s, time.high_s / time.step_s, lesson.time)
    return replace(
        time,
        step_s=step_s,
        tokens_per_s_per_gpu=time.tokens_per_s_per_gpu / scale,
        generate_s=time.generate_s * scale,
        served_s=time.served_s * scale,
        parts=tuple((what, seconds * scale) for what, seconds in time.parts),
        low_s=step_s * low if time.low_s else 0.0,
        high_s=step_s * high if time.high_s else 0.0,
    )


def learned(
    lesson: Lesson | None, memory: Correction, before: int, after: int, *, timed: bool
) -> Learned | None:
    """What is said of a correction beside the estimate; None where nothing was corrected.

    Args:
        memory: The correction of the memory.
        before: The peak by the formula alone.
        after: The peak as corrected.
        timed: There is a time to correct.
    """
    if lesson is None:
        return None
    time = lesson.time if timed else Correction()
    if not (memory.runs or time.runs):
        return None
    closest = min(found.closest for found in (memory, time) if found.runs)
    return Learned(
        memory_runs=memory.runs,
        time_runs=time.runs,
        closest=WORDS[closest],
        memory_scale=after / before if memory.runs and before else None,
        time_scale=time.of(1.0, MOST_TIME) if time.runs else None,
        formula_bytes=before if memory.runs else None,
    )


def runs_in_words(found: Correction) -> str:
    """'3 runs here, the closest of this model and method'."""
    return (
        f"{found.runs} run{'s' if found.runs != 1 else ''} here, the closest of"
        f" {WORDS[found.closest]}"
    )


def change_in_words(found: Correction) -> str:
    """'x 0.93', '+ 0.4 GiB', or both."""
    parts = [f"x {found.scale:.2f}"] if abs(found.scale - 1) >= 0.005 else []
    if abs(found.shift) >= 0.01 * GIB:
        parts.append(f"{'+' if found.shift > 0 else '-'} {format_gib(round(abs(found.shift)))}")
    return " ".join(parts) or "as the formula says"


def learned_document(found: Learned) -> dict[str, Any]:
    """What runs of this machine changed, as every answer in JSON says it."""
    by_formula = found.formula_bytes
    return {
        "text": found.sentence,
        "closest": found.closest,
        "memory_runs": found.memory_runs,
        "memory_scale": None if found.memory_scale is None else round(found.memory_scale, 3),
        "speed_runs": found.time_runs,
        "speed_scale": None if found.time_scale is None else round(1 / found.time_scale, 3),
        "formula_peak_gib": None if by_formula is None else round(by_formula / GIB, 4),
    }
