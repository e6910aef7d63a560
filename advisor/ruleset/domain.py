"""What a fact can be, as finitely many cells: between two neighbouring thresholds of the rules all
numbers count alike.

The judge looks cells up, the proof goes through all of them, and both read a fact's domain here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Condition

MANY = 5  # values of a choice, above which those that are left out are shorter to read


@dataclass(frozen=True, slots=True)
class Cell:
    """One value, or all numbers of one stretch; `value` stands for them. None: not known."""

    value: Any
    low: float | None = None  # of a stretch of numbers; None is open
    high: float | None = None

    @property
    def is_point(self) -> bool:
        return self.low is not None and self.low == self.high

    def holds(self, value: Any) -> bool:
        """Whether a value of the fact lies in it; None is not known."""
        if value is None or self.value is None or (self.low is None and self.high is None):
            if value is not None and self.value is not None and _is_number(self.value):
                return _is_number(value)  # no rule parts the numbers
            return bool(value == self.value)
        if self.is_point:
            return bool(value == self.low)
        return (self.low is None or value > self.low) and (self.high is None or value < self.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cells_of(fact: Fact, conditions: Iterable[Condition]) -> tuple[Cell, ...]:
    """Every cell that the fact can really be in: within its bounds, whole numbers where it is
    whole, unknown where it may be.
    """
    cells = [] if fact.required or fact.origin == "concluded" else [Cell(None)]
    if fact.type == "number":
        return (*_number_cells(fact, cuts_of(conditions)), *cells)
    values: Iterable[Any] = (
        (True, False)
        if fact.type == "flag"
        else (value for value in fact.values if value != UNKNOWN)
    )
    return (*(Cell(value) for value in values), *cells)


def cuts_of(conditions: Iterable[Condition]) -> list[float]:
    """The thresholds, ascending."""
    return sorted(
        {
            bound
            for condition in conditions
            for interval in condition.intervals
            for bound in (interval.low, interval.high)
            if bound is not None
        }
    )


def _number_cells(fact: Fact, cuts: Sequence[float]) -> list[Cell]:
    edges: list[float | None] = [None, *cuts, None]
    cells = []
    for low, high in pairwise(edges):
        inside = _inside(fact, low, high)
        if inside is not None:
            cells.append(Cell(inside, low, high))
        if high is not None and _allowed(fact, high):
            cells.append(Cell(high, high, high))
    return cells


def _allowed(fact: Fact, value: float) -> bool:
    return not (
        (fact.min is not None and value < fact.min)
        or (fact.max is not None and value > fact.max)
        or (fact.integer and value != math.floor(value))
    )


def _inside(fact: Fact, low: float | None, high: float | None) -> float | None:
    """A number strictly between two cuts that the fact can be, or None where there is none."""
    bottom = low if fact.min is None else fact.min if low is None else max(low, fact.min)
    top = high if fact.max is None else fact.max if high is None else min(high, fact.max)
    if bottom is None and top is None:
        tried: list[float] = [0.0]
    elif bottom is None:
        tried = [top - 1, top] if top is not None else []
    elif top is None:
        tried = [bottom, math.floor(bottom) + 1]
    else:
        tried = [bottom, math.floor(bottom) + 1, (bottom + top) / 2, top]
    return next(
        (
            value
            for value in tried
            if (low is None or value > low)
            and (high is None or value < high)
            and _allowed(fact, value)
        ),
        None,
    )


def in_words(fact: Fact, cells: Sequence[Cell], chosen: Iterable[int]) -> str:
    """The chosen cells as a person writes them: 'budget is low or medium', 'data_rows is at least
    1,000 or not known'.
    """
    picked = sorted(chosen)
    unknown = any(cells[i].value is None for i in picked)
    known = [i for i in picked if cells[i].value is not None]
    parts = (
        _ranges(cells, known) if fact.type == "number" else [_word(cells[i].value) for i in known]
    )
    all_known = len(known) == sum(cell.value is not None for cell in cells)
    if all_known and not unknown and len(known) > 1:
        return f"{fact.id} is known"
    missing = [cell for i, cell in enumerate(cells) if cell.value is not None and i not in picked]
    if fact.type == "choice" and len(known) >= MANY and len(missing) <= len(known) // 3:
        but = " or ".join(_word(cell.value) for cell in missing)
        return f"{fact.id} is {'known and ' if not unknown else ''}not {but}"
    return f"{fact.id} is {' or '.join([*parts, *(['not known'] if unknown else [])])}"


def _word(value: Any) -> str:
    return {True: "stated", False: "denied"}[value] if isinstance(value, bool) else str(value)


def _ranges(cells: Sequence[Cell], known: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for i in known:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [_range(cells[run[0]], cells[run[-1]]) for run in runs]


def _range(first: Cell, last: Cell) -> str:
    if first is last and first.is_point:
        return f"{first.low:,.10g}"
    low = (
        "" if first.low is None else f"{'at least' if first.is_point else 'over'} {first.low:,.10g}"
    )
    high = (
        "" if last.high is None else f"{'at most' if last.is_point else 'under'} {last.high:,.10g}"
    )
    return " and ".join(filter(None, (low, high))) or "any number"
