"""Every set of rules that can fire together, with a witness each.

Exact, and without enumerating situations.

Everything the linter asks depends only on which rules fire. So the facts are gone through one at a
time, keeping for each set of rules that still may fire one way to get there: a value's rules are
ANDed in, equal sets are kept once. The product of all cells (often millions) is never visited; the
sets that remain (often hundreds) stand for all of it.

What cannot occur (`assume` in rules/facts.yaml, and what a signal implies) is one more bit each: a
set whose bit of an assumption is still up when the last fact of it has been gone through is
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Condition, Rule, Ruleset

MAX_SETS = 100_000  # more sets than this and a table is refused: a second of work or two
# Sets looked at to make one witness general; after that it stays as general as it is.
MAX_EFFORT = 400_000
Within = Mapping[str, frozenset[int]]  # fact -> indexes of the cells it is held to
Chain = tuple[Any, int] | None  # a witness: the cell chosen last and the chain before it
# A set of rules, how many facts were gone through -> the set without what no longer matters.
Shorten = Callable[[int, int], int]


class TooManyCases(Exception):
    """A table that has more sets of firing rules than can be proved."""

    def __init__(self, sets: int) -> None:
        super().__init__(f"more than {sets:,} sets of rules can fire together")
        self.sets = sets


class Region(Struct, frozen=True):
    """Situations in which something holds: for each fact that matters, the cells it may be in."""

    within: Within
    text: str
    facts: Mapping[str, Any]  # one situation of it; what is not known is left out


class Space:
    """The facts that some rules look at, their cells, and the rules that each cell lets through."""

    def __init__(self, ruleset: Ruleset, rules: Sequence[Rule]) -> None:
        self.ruleset = ruleset
        self.rules = tuple(rules)
        whens: list[tuple[Condition, ...]] = [rule.when for rule in rules]
        impossible = _relevant(
            _impossible(ruleset), {condition.fact for when in whens for condition in when}
        )
        self.rule_bits = (1 << len(whens)) - 1
        whens += impossible
        self.every = (1 << len(whens)) - 1
        self.effort = 0  # sets looked at so far
        conditions = conditions_by_fact(whens)
        self.facts: dict[str, Fact] = {fact_id: ruleset.facts[fact_id] for fact_id in conditions}
        self.cells: dict[str, tuple[Cell, ...]] = {
            fact_id: cells_of(self.facts[fact_id], (c for _, c in tested))
            for fact_id, tested in conditions.items()
        }
        self.masks = {
            fact_id: tuple(
                letting_through(self.every, conditions[fact_id], cell.value) for cell in cells
            )
            for fact_id, cells in self.cells.items()
        }
        # Facts of assumptions first: what they rule out is dropped before it multiplies.
        tied = {condition.fact for when in impossible for condition in when}
        self.order = sorted(
            conditions,
            key=lambda fact_id: (fact_id not in tied, len(set(self.masks[fact_id])), fact_id),
        )
        # Fact -> the assumptions that are decided once it has been gone through.
        self.complete: dict[str, int] = {}
        for offset, when in enumerate(impossible):
            last = max((condition.fact for condition in when), key=self.order.index)
            self.complete[last] = self.complete.get(last, 0) | 1 << (len(rules) + offset)

    @property
    def size(self) -> int:
        """How many cells the product of all facts has."""
        product = 1
        for cells in self.cells.values():
            product *= len(cells)
        return product

    def decided(self) -> list[int]:
        """For each number of facts gone through the rules that look at no others."""
        last = [
            max((self.order.index(condition.fact) + 1 for condition in rule.when), default=0)
            for rule in self.rules
        ]
        return [
            sum(1 << bit for bit, needed in enumerate(last) if needed <= number)
            for number in range(len(self.order) + 1)
        ]

    def sets(
        self, within: Within | None = None, shorten: Shorten | None = None
    ) -> dict[int, Chain]:
        """Every set of rules that can fire together (as a bit mask) with one witness.

        Raises TooManyCases.

        Args:
            within: Cells that facts are held to.
            shorten: Takes rules out of a set whose outcome they no longer change, so that fewer
                sets remain.
        """
        self.effort += 1
        states: dict[int, Chain] = {self.every: None}
        if shorten is not None:
            states = {shorten(self.every, 0): None}
        for number, fact_id in enumerate(self.order, 1):
            classes: dict[int, int] = {}
            held = None if within is None else within.get(fact_id)
            for index, mask in enumerate(self.masks[fact_id]):
                if held is None or index in held:
                    classes.setdefault(mask, index)
            impossible = self.complete.get(fact_id, 0)
            after: dict[int, Chain] = {}
            for state, chain in states.items():
                for mask, index in classes.items():
                    both = state & mask
                    if both & impossible:
                        continue
                    if shorten is not None:
                        both = shorten(both, number)
                    if both not in after:
                        after[both] = (chain, index)
                if len(after) > MAX_SETS:
                    raise TooManyCases(MAX_SETS)
            self.effort += len(after)
            states = after
        return states

    def cells_matching(self, rule: Rule) -> Within:
        """The cells in which a rule fires."""
        return {
            c.fact: frozenset(i for i, cell in enumerate(self.cells[c.fact]) if c.holds(cell.value))
            for c in rule.when
        }

    def witness(self, chain: Chain) -> dict[str, int]:
        """Fact -> index of its cell, of one witness."""
        indexes = []
        while chain is not None:
            chain, index = chain
            indexes.append(index)
        return dict(zip(self.order, reversed(indexes), strict=True))

    def box(
        self, chain: Chain, holds: Callable[[int], bool], shorten: Shorten | None = None
    ) -> Region:
        """The witness made as general as possible."""

        limit = self.effort + MAX_EFFORT

        def everywhere(within: Within) -> bool:
            if self.effort > limit:
                return False
            found = self.sets(within, shorten)
            return bool(found) and all(holds(state) for state in found)

        witness = self.witness(chain)
        within = {fact_id: frozenset([index]) for fact_id, index in witness.items()}
        for fact_id in sorted(
            within, key=lambda fact_id: (self.facts[fact_id].origin == "asked", fact_id)
        ):
            trial = {other: held for other, held in within.items() if other != fact_id}
            if everywhere(trial):
                within = trial
        for fact_id in list(within):
            for index in range(len(self.cells[fact_id])):
                wider = {**within, fact_id: within[fact_id] | {index}}
                if index not in within[fact_id] and everywhere(wider):
                    within = wider
        known = list(self.ruleset.facts)
        parts = [
            in_words(self.facts[fact_id], self.cells[fact_id], within[fact_id])
            for fact_id in sorted(within, key=known.index)
        ]
        values = {fact_id: self.cells[fact_id][witness[fact_id]].value for fact_id in self.order}
        return Region(
            within=within,
            text=" and ".join(parts) or "always",
            facts={fact_id: value for fact_id, value in values.items() if value is not None},
        )

    def outside(self, boxes: Iterable[Region]) -> list[Within]:
        """The cells outside all boxes, as boxes of their own."""
        rest: list[Within] = [{}]
        for box in boxes:
            cut: list[Within] = []
            for part in rest:
                inside = dict(part)
                for fact_id, held in box.within.items():
                    have = inside.get(fact_id, frozenset(range(len(self.cells[fact_id]))))
                    if have - held:
                        cut.append({**inside, fact_id: have - held})
                    inside[fact_id] = have & held
                    if not inside[fact_id]:
                        break
            rest = cut
        return rest


def conditions_by_fact(
    whens: Iterable[tuple[Condition, ...]],
) -> dict[str, list[tuple[int, Condition]]]:
    """Fact -> what conjunctions want of it, each with the number of its conjunction."""
    found: dict[str, list[tuple[int, Condition]]] = {}
    for bit, when in enumerate(whens):
        for condition in when:
            found.setdefault(condition.fact, []).append((bit, condition))
    return found


def letting_through(every: int, tested: Iterable[tuple[int, Condition]], value: Any) -> int:
    """The bits of `every` less those of the conditions that a value does not meet."""
    failing = 0
    for bit, condition in tested:
        if not condition.holds(value):
            failing |= 1 << bit
    return every & ~failing


def _impossible(ruleset: Ruleset) -> list[tuple[Condition, ...]]:
    """The combinations that cannot occur: stated ones, and a signal without what it implies."""
    boxes = [assumption.never for assumption in ruleset.assume]
    for fact in ruleset.facts.values():
        for implied in fact.implies:
            boxes.append(
                (
                    Condition(fact=fact.id, values=frozenset([True])),
                    Condition(fact=implied, values=frozenset([False]), unknown=True),
                )
            )
    return boxes


def _relevant(
    impossible: Iterable[tuple[Condition, ...]], facts: set[str]
) -> list[tuple[Condition, ...]]:
    """Those that are tied to the facts, directly or through one another."""
    rest, known = list(impossible), set(facts)
    chosen: list[tuple[Condition, ...]] = []
    while True:
        tied = [when for when in rest if known & {condition.fact for condition in when}]
        if not tied:
            return chosen
        chosen += tied
        known |= {condition.fact for when in tied for condition in when}
        rest = [when for when in rest if when not in tied]


MANY = 5  # values of a choice, above which those that are left out are shorter to read


class Cell(Struct, frozen=True):
    """One value, or all numbers of one stretch; `value` stands for them. None: not known."""

    value: Any
    low: float | None = None  # of a stretch of numbers; None is open
    high: float | None = None

    @property
    def is_point(self) -> bool:
        return self.low is not None and self.low == self.high


def cells_of(fact: Fact, conditions: Iterable[Condition]) -> tuple[Cell, ...]:
    """Every cell that the fact can be in, within its bounds; unknown if it may be."""
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
    """The cells as a person writes them: 'data_rows is at least 1,000 or not known'."""
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
