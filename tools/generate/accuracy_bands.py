"""The widths of bands (advisor/estimate/memory/bands.py), fitted over sources, and how many peaks
lie inside.

Rows of one source are alike, so sources are counted, not rows. Each source gives one number for
each side: how far its runs lie from their estimates (WITHIN of its rows are nearer). The width is
the quantile OVER of these numbers, at rank (n + 1) p of n, the correction of conformal prediction
for few of them [Vovk, Gammerman and Shafer 2005]. The upper side has the higher quantile, since a
run above its band runs out of memory.

A width for a run that is known comes first. Each doubt then has the smallest width that, added in
squares, brings the runs under that doubt to the same quantile: runs that are harder to predict by
nature (experts, offload) as they are, and things that can be unknown (trainer, counter, loss,
dimensions) by taking the fact away from every case.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.estimate.memory.bands import KNOWN, WORDS, log_widths
from advisor.ground.units import GIB
from advisor.probe.catalogue import find_gpu
from tools.generate.accuracy import (
    FEW,
    Case,
    Spec,
    answered,
    as_a_process,
    without_counter,
    without_loss,
    without_model,
    without_trainer,
)
from tools.generate.recent import cases

WITHIN = 0.95  # of a source's rows, on either side
# Of sources, below and above the estimate: as runs are, and with a fact taken away. For a newer
# trainer the first: those that nobody had read lay nearer than known ones that lost their name.
OVER, OVER_IN_DOUBT = (0.65, 0.70), (0.90, 0.95)
STEP, STEPS = 0.01, 150  # of a width, and how many are tried
NEWER = "newer"
# What can be unknown, and how to take it away from a case.
TAKEN_AWAY: Mapping[str, Callable[[Spec], Spec]] = {
    "trainer": without_trainer,
    NEWER: without_trainer,
    "counter": without_counter,
    "loss": without_loss,
    "size": without_model,
}
# Kinds of runs, of which nothing is unknown: the first width is for them, too, so that it stands on
# as many sources as there are, and they add what they need beyond it.
KINDS = ("experts", "offload", "gpus")
BY_WORDS = {words: doubt for doubt, words in WORDS.items()}
Widths = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Distance:
    """How far one run lies from its estimate, and the doubts about it."""

    case: Case
    log: float  # log(measured / estimated)
    doubts: tuple[str, ...]

    @property
    def source(self) -> str:
        return str(self.case.facts["source"])


def distances(cases: Iterable[Case]) -> list[Distance]:
    """How far measured peaks lie from their estimates."""
    return [Distance(case, -math.log(case.ratio), doubts_in(case.answer)) for case in cases]


def recent(change: Callable[[Spec], Spec] = dict) -> list[Case]:
    """Peaks published since 2025, of the sources that constants may be mended on."""
    return cases("memory_2025", "cases", "first", change)


def doubts_in(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The doubts that an answer names in words."""
    return tuple(BY_WORDS[words] for words in answer["band_because"])


def all_distances() -> dict[str, list[Distance]]:
    """The distances of all cases as they are (under KNOWN), with recent ones of the half that may
    be looked at, and with each fact taken away.
    """
    return {KNOWN: distances([*answered("cases"), *recent()])} | {
        doubt: distances([*answered("cases", change), *(recent(change) if doubt == NEWER else ())])
        for doubt, change in TAKEN_AWAY.items()
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value at this share of the sorted ones, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def of_sources(rows: Iterable[Distance]) -> list[list[Distance]]:
    """Rows of each source; sources with few rows together."""
    found: dict[str, list[Distance]] = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    together = [row for group in found.values() if len(group) < FEW for row in group]
    return [group for group in found.values() if len(group) >= FEW] + (
        [together] if together else []
    )


def farthest(rows: Iterable[Distance], widths: Widths, side: int, over: float) -> float:
    """The quantile over sources of how far their runs lie out, in widths; at most 1: covered."""
    sign = (-1, 1)[side]
    numbers = []
    for group in of_sources(rows):
        shares = [
            max(0.0, sign * row.log) / max(1e-9, log_widths(row.doubts, widths)[side])
            for row in group
        ]
        numbers.append(quantile(shares, WITHIN))
    rank = min(len(numbers), math.ceil((len(numbers) + 1) * over))
    return sorted(numbers)[rank - 1]


def fitted(found: Mapping[str, Sequence[Distance]]) -> Widths:
    """The widths that cover these distances (as `all_distances` gives them)."""
    widths: Widths = dict.fromkeys((KNOWN, *WORDS), (0.0, 0.0))
    done: set[str] = set()
    for doubt in widths:
        rows = [row for row in found.get(doubt, found[KNOWN]) if doubt in (*row.doubts, KNOWN)]
        # Runs with no other unknown that has no width yet, where two sources have such runs.
        alone = [row for row in rows if {*row.doubts} <= {*done, doubt, *KINDS}]
        rows = alone if len({row.source for row in alone}) > 1 else rows
        for side in (0, 1):
            widths[doubt] = _smallest(rows, widths, doubt, side)
        done.add(doubt)
    return widths


def _smallest(
    rows: Sequence[Distance], widths: Widths, doubt: str, side: int
) -> tuple[float, float]:
    """The pair of this doubt with its smallest width on one side that covers the rows."""
    low, high = widths[doubt]
    is_doubt = doubt in TAKEN_AWAY and doubt != NEWER
    over = (OVER_IN_DOUBT if is_doubt else OVER)[side]

    def tried(steps: int) -> tuple[float, float]:
        width = round(steps * STEP, 2)
        return (width, high) if side == 0 else (low, width)

    def is_short(steps: int) -> bool:
        return bool(rows) and farthest(rows, {**widths, doubt: tried(steps)}, side, over) > 1

    return tried(bisect_left(range(STEPS), True, key=lambda steps: not is_short(steps)))


def is_inside(row: Distance, widths: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a run lies within its band."""
    below, above = log_widths(row.doubts, widths)
    return -below <= row.log <= above


def fitted_without_each(found: Mapping[str, Sequence[Distance]]) -> dict[str, Widths]:
    """By source, the widths that are fitted without it."""
    return {
        source: fitted(
            {key: [row for row in kept if row.source != source] for key, kept in found.items()}
        )
        for source in dict.fromkeys(row.source for row in found[KNOWN])
    }


@dataclass(frozen=True)
class Verdicts:
    """Runs whose GPU is known, by what the band of their need says of its memory."""

    fits: list[Case]  # the whole band is within the memory
    may_fit: list[Case]  # the memory lies inside the band
    too_big: list[Case]  # the whole band is above it
    estimated_above: int  # of them all, those whose estimate is above the memory

    @property
    def total(self) -> int:
        return len(self.fits) + len(self.may_fit) + len(self.too_big)


def verdicts(listed: str) -> Verdicts:
    """The verdicts on the runs of one list of the file, asked for all that a process occupies."""
    found = Verdicts([], [], [], 0)
    for case in answered(listed, as_a_process):
        room = gpu_gib(case.facts)
        if room is None:
            continue
        answer = case.answer
        if answer["need_low_gib"] > room:
            found.too_big.append(case)
        elif answer["need_high_gib"] > room:
            found.may_fit.append(case)
        else:
            found.fits.append(case)
        found = replace(found, estimated_above=found.estimated_above + (answer["need_gib"] > room))
    return found


def gpu_gib(facts: Mapping[str, Any]) -> float | None:
    """Memory of a case's GPU: as the source says, or as the catalogue does; None: not known."""
    if "card_gib" in facts:
        return float(facts["card_gib"])
    if not facts.get("gpu"):
        return None
    spec = find_gpu(facts["gpu"], lenient=True).spec
    return None if spec is None or spec.memory_bytes is None else spec.memory_bytes / GIB
