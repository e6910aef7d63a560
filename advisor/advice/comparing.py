"""What two rule sets answer differently: the steps from their tables, and for each a scenario of
the rules with both answers, if one shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from advisor.advice.case import Undecided, decide
from advisor.ruleset.compare import Difference, RulesComparison, compare_rules
from advisor.ruleset.judge import spread_given
from advisor.ruleset.model import Ruleset

Conclusions = Mapping[str, tuple[Any, Any]]  # table -> what it concludes under each rule set


class Answered(Struct, frozen=True, kw_only=True):
    """One situation, and what each rule set answers."""

    facts: Mapping[str, Any]
    first: str
    second: str


class ComparedRules(Struct, frozen=True, kw_only=True):
    """Two rule sets side by side."""

    comparison: RulesComparison
    tried: tuple[tuple[Answered, Conclusions], ...]

    def example(self, difference: Difference) -> Answered | None:
        """A situation with both conclusions, at best one whose answer changes; None for a setting,
        and if no scenario shows it.
        """
        sides = (difference.first, difference.second)
        shown = [
            answered
            for answered, conclusions in self.tried
            if not difference.key and conclusions.get(difference.table) == sides
        ]
        return min(shown, key=lambda one: one.first == one.second, default=None)


def compare_answers(first: Ruleset, second: Ruleset) -> ComparedRules:
    """Every difference of the tables, and what both rule sets answer to their scenarios."""
    comparison = compare_rules(first, second)
    return ComparedRules(comparison=comparison, tried=tuple(_tried(first, second)))


def _tried(first: Ruleset, second: Ruleset) -> Iterator[tuple[Answered, Conclusions]]:
    sets = (first, second)
    listed = (rule for ruleset in sets for rules in ruleset.rules.values() for rule in rules)
    scenarios = {rule.id: rule.scenarios for rule in listed}
    for entry in (entry for entries in scenarios.values() for entry in entries):
        facts = spread_given(entry["given"], second.facts)
        if "task" not in facts or any(one.contradictions(facts) for one in sets):
            continue
        try:
            one, other = (decide(ruleset, facts) for ruleset in sets)
        except Undecided:
            continue
        conclusions = {
            table: (one.facts.get(concludes), other.facts.get(concludes))
            for table, concludes in ((each.id, each.concludes) for each in second.tables.values())
        }
        answered = Answered(facts=facts, first=str(one.composition), second=str(other.composition))
        yield answered, conclusions
