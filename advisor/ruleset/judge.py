"""Rules x facts -> findings. A pure function: no clock, no network, no order of files.

A table is compiled once into bit masks: for each input fact, which rules its value allows. Judging
is then one AND a fact. Numbers are cut at every threshold that a rule uses; between two cuts all
rules behave alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from advisor.ruleset.candidates import judged_rules
from advisor.ruleset.facts import UNKNOWN
from advisor.ruleset.model import Condition, Rule, Ruleset
from advisor.ruleset.space import cuts_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What one table says of one set of facts."""

    table: str
    # Outcome and the rule that placed it, best first; forbidden ones left out.
    ranking: tuple[tuple[Any, Rule], ...]
    forbidden: Mapping[Any, tuple[Rule, ...]]
    settings: Mapping[str, tuple[Any, Rule]]
    warnings: tuple[Rule, ...]
    wanted: tuple[tuple[Any, Rule], ...]  # the ranking as it would be if nothing were forbidden

    @property
    def winner(self) -> tuple[Any, Rule] | None:
        return self.ranking[0] if self.ranking else None


class CompiledTable:
    """The rules of one table as bit masks per fact value."""

    def __init__(self, ruleset: Ruleset, table_id: str) -> None:
        self.ruleset = ruleset
        self.table = ruleset.tables[table_id]
        self.rules = judged_rules(ruleset, table_id)
        self.every = (1 << len(self.rules)) - 1
        self.cuts: dict[str, list[float]] = {}
        self.masks: dict[str, dict[Any, int]] = {}  # fact -> value -> rules it allows
        self.number_masks: dict[str, list[int]] = {}
        layers = ["base", *ruleset.layers]
        # A later layer wins over an earlier one, a higher tier inside a layer, then the id: never
        # the order of files.
        self.order = sorted(
            (i for i, rule in enumerate(self.rules) if rule.kind == "recommend"),
            key=lambda i: (
                -layers.index(self.rules[i].layer),
                -ruleset.tiers[self.rules[i].tier],
                self.rules[i].id,
            ),
        )
        # Settings likewise: the value of the latest layer stands. Two values inside one layer are a
        # fault that the linter finds.
        self.set_order = sorted(
            (i for i, rule in enumerate(self.rules) if rule.kind == "set"),
            key=lambda i: (layers.index(self.rules[i].layer), self.rules[i].id),
        )
        for fact_id in self.table.seen:
            self._compile(fact_id)

    def _compile(self, fact_id: str) -> None:
        fact = self.ruleset.facts[fact_id]
        tested = [
            (i, condition)
            for i, rule in enumerate(self.rules)
            for condition in rule.when
            if condition.fact == fact_id
        ]

        mask = partial(letting_through, self.every, tested)
        if fact.type == "number":
            self.cuts[fact_id] = cuts = cuts_of(condition for _, condition in tested)
            self.number_masks[fact_id] = [mask(point) for point in cell_points(cuts)]
            self.masks[fact_id] = {UNKNOWN: mask(None)}
        else:
            values: Iterable[Any] = (True, False) if fact.type == "flag" else fact.values
            self.masks[fact_id] = {UNKNOWN: mask(None), **{value: mask(value) for value in values}}

    def firing(self, facts: Mapping[str, Any]) -> int:
        """The rules that fire, as a bit mask."""
        result = self.every
        for fact_id in self.table.seen:
            value = facts.get(fact_id)
            if value is None or value == UNKNOWN:
                result &= self.masks[fact_id][UNKNOWN]
            elif fact_id in self.cuts:
                result &= self.number_masks[fact_id][cell_of(value, self.cuts[fact_id])]
            else:
                result &= self.masks[fact_id][value]
        return result

    def judge(self, facts: Mapping[str, Any]) -> Judgement:
        firing = self.firing(facts)
        forbidden: dict[Any, list[Rule]] = {}
        settings: dict[str, tuple[Any, Rule]] = {}
        warnings: list[Rule] = []
        for i, rule in enumerate(self.rules):
            if not firing >> i & 1:
                continue
            if rule.kind == "forbid":
                outcomes = rule.then[self.table.concludes]
                for outcome in outcomes if isinstance(outcomes, list) else [outcomes]:
                    forbidden.setdefault(outcome, []).append(rule)
            elif rule.kind == "warn":
                warnings.append(rule)
        for i in self.set_order:
            if firing >> i & 1:
                then = self.rules[i].then.items()
                settings.update({key: (value, self.rules[i]) for key, value in then})
        wanted: dict[Any, Rule] = {}
        for i in self.order:
            if firing >> i & 1:
                wanted.setdefault(self.rules[i].then[self.table.concludes], self.rules[i])
        return Judgement(
            table=self.table.id,
            ranking=tuple(
                (outcome, rule) for outcome, rule in wanted.items() if outcome not in forbidden
            ),
            forbidden={outcome: tuple(rules) for outcome, rules in forbidden.items()},
            settings=settings,
            warnings=tuple(warnings),
            wanted=tuple(wanted.items()),
        )


def letting_through(every: int, tested: Iterable[tuple[int, Condition]], value: Any) -> int:
    """The bits of `every` less those of the conditions that a value does not meet."""
    failing = 0
    for bit, condition in tested:
        if not condition.holds(value):
            failing |= 1 << bit
    return every & ~failing


def cell_points(cuts: list[float]) -> list[float]:
    """One number in each cell of the real line: below, at and between the cuts, above."""
    if not cuts:
        return [0.0]
    points = [cuts[0] - 1]
    for i, cut in enumerate(cuts):
        points.append(cut)
        points.append((cut + cuts[i + 1]) / 2 if i + 1 < len(cuts) else cut + 1)
    return points


def cell_of(value: float, cuts: list[float]) -> int:
    """Index of the cell that holds a number: odd ones are the cuts themselves."""
    i = bisect_left(cuts, value)
    return 2 * i + 1 if i < len(cuts) and cuts[i] == value else 2 * i


@cache
def compile_table(ruleset: Ruleset, table_id: str) -> CompiledTable:
    """The table ready to judge; rule sets are told apart by identity."""
    return CompiledTable(ruleset, table_id)


def judge(ruleset: Ruleset, table_id: str, facts: Mapping[str, Any]) -> Judgement:
    """What the table says of the facts; a fact that is missing is not known."""
    return compile_table(ruleset, table_id).judge(facts)
