"""What two rule sets answer differently: the steps from their tables, and for each a situation with
both answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from advisor.advice.decide import SETTINGS, Undecided, decide
from advisor.ruleset.compare import Difference, RulesComparison, compare_rules
from advisor.ruleset.decisions import Precedence, deciding
from advisor.ruleset.judge import judged_rules
from advisor.ruleset.model import DecisionTable, Ruleset
from advisor.ruleset.space import Space, TooManyCases

Pair = tuple[Ruleset, Ruleset]
MAX_TRIED = 20  # ways to an earlier step's conclusion that are followed


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One situation with as few facts as lead there, and what each rule set answers."""

    facts: Mapping[str, Any]
    first: str
    second: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRules:
    """Two rule sets side by side."""

    comparison: RulesComparison
    examples: Mapping[int, Answered]  # id() of a difference -> a situation that shows it

    def example(self, difference: Difference) -> Answered | None:
        """None for a setting, and if no whole situation leads there."""
        return self.examples.get(id(difference))


def compare_answers(first: Ruleset, second: Ruleset) -> ComparedRules:
    """Every difference of the tables, with a situation of each if one can be found."""
    comparison = compare_rules(first, second)
    differences = [one for table in comparison.tables for one in table.differences if not one.key]
    found = {id(one): _example((first, second), one) for one in differences}
    return ComparedRules(
        comparison=comparison, examples={key: one for key, one in found.items() if one is not None}
    )


def _example(rulesets: Pair, difference: Difference) -> Answered | None:
    """A situation in which the step concludes what the difference says under both."""
    for ruleset in reversed(rulesets):
        for facts in _situations_in(ruleset, difference):
            known = {name: value for name, value in facts.items() if value is not None}
            if _differs_as_said(rulesets, difference, known):
                return _shorten(rulesets, difference, known)
    return None


def _situations_in(ruleset: Ruleset, difference: Difference) -> Iterator[dict[str, Any]]:
    """Situations that lead to the region, in facts that a person states."""
    tables = [table for table in ruleset.tables.values() if not table.per and table.id != SETTINGS]
    names = [table.id for table in tables]
    if difference.table in names:
        before = tables[: names.index(difference.table)]
        yield from _trace_back(ruleset, before, dict(difference.region.facts))


def _trace_back(
    ruleset: Ruleset, before: Sequence[DecisionTable], facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The facts with every conclusion replaced by what leads to it; None: has to stay unknown."""
    if not before:
        yield facts
        return
    *earlier, table = before
    wanted = facts.pop(table.concludes, None)
    if wanted is None:
        yield from _trace_back(ruleset, earlier, facts)
        return
    rules = deciding(ruleset, judged_rules(ruleset, table.id))
    space = Space(ruleset, rules)
    precedence = Precedence(rules, table.concludes, space.decided())
    try:
        states = space.sets(space.cells_of_facts(facts), precedence.shorten)
    except TooManyCases:
        return
    ways = (
        chain
        for state, chain in states.items()
        if (bit := precedence.winner(state)) >= 0 and precedence.outcome[bit] == wanted
    )
    for chain in islice(ways, MAX_TRIED):
        cells = {name: space.cells[name][i].value for name, i in space.witness(chain).items()}
        yield from _trace_back(ruleset, earlier, {**cells, **facts})


def _differs_as_said(rulesets: Pair, difference: Difference, facts: Mapping[str, Any]) -> bool:
    """Whether the step concludes there what the difference says."""
    for ruleset, expected in zip(rulesets, (difference.first, difference.second), strict=True):
        if ruleset.contradictions(facts) or "task" not in facts:
            return False
        try:
            winner = decide(ruleset, facts).steps[difference.table].winner
        except Undecided:
            return False
        if repr(winner[0] if winner else None) != repr(expected):
            return False
    return True


def _shorten(rulesets: Pair, difference: Difference, facts: dict[str, Any]) -> Answered:
    """The situation without the facts that neither the step nor the whole answer needs."""

    def answers(found: Mapping[str, Any]) -> list[str]:
        return [str(decide(ruleset, found).composition) for ruleset in rulesets]

    differs = len(set(answers(facts))) == 2
    for name in list(facts):
        rest = {other: value for other, value in facts.items() if other != name}
        if not _differs_as_said(rulesets, difference, rest):
            continue
        if len(set(answers(rest))) == 2 or not differs:
            facts = rest
    one, other = answers(facts)
    return Answered(facts=facts, first=one, second=other)
