"""Rules x facts -> findings. A pure function: no clock, no network, no order of files.

Each rule of a table is a bit. Which rules a fact's value lets through is found once for each value;
judging is then one AND a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from advisor.ruleset.candidates import judged_rules
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.space import conditions_by_fact, letting_through


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
    """The rules of one table as bits; for each value of a fact, those that it lets through."""

    def __init__(self, ruleset: Ruleset, table_id: str) -> None:
        self.table = ruleset.tables[table_id]
        self.rules = judged_rules(ruleset, table_id)
        self.every = (1 << len(self.rules)) - 1
        self.conditions = conditions_by_fact(rule.when for rule in self.rules)
        self.passing = lru_cache(4096)(self._passing)
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

    def _passing(self, fact_id: str, value: Any) -> int:
        return letting_through(self.every, self.conditions[fact_id], value)

    def firing(self, facts: Mapping[str, Any]) -> int:
        """The rules that fire, as a bit mask."""
        result = self.every
        for fact_id in self.conditions:
            result &= self.passing(fact_id, facts.get(fact_id))
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


@cache
def compile_table(ruleset: Ruleset, table_id: str) -> CompiledTable:
    """The table ready to judge; rule sets are told apart by identity."""
    return CompiledTable(ruleset, table_id)


def judge(ruleset: Ruleset, table_id: str, facts: Mapping[str, Any]) -> Judgement:
    """What the table says of the facts; a fact that is missing is not known."""
    return compile_table(ruleset, table_id).judge(facts)
