"""What the sets of rules that can fire together prove of a table: no hole, no tie, no dead rule, no
two values for a setting.

Rules that recommend and forbid are looked at together; the settings key by key, since keys do not
touch one another; a warning by itself. That keeps the sets few without losing a case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from advisor.ruleset.candidates import judged_rules
from advisor.ruleset.decisions import Decisions
from advisor.ruleset.domain import cells_of
from advisor.ruleset.model import Rule, Ruleset, Table
from advisor.ruleset.precedence import deciding
from advisor.ruleset.proved import Clash, Hole, Idle, TableProof
from advisor.ruleset.settings_proof import prove_settings
from advisor.ruleset.space import Space

__all__ = ["Clash", "Hole", "Idle", "TableProof", "alike", "prove"]


def prove(ruleset: Ruleset, table_id: str) -> TableProof:
    """Everything that can be said of one table of the merged rules. Raises TooManyCases."""
    table, rules = ruleset.tables[table_id], judged_rules(ruleset, table_id)
    proof = TableProof(table=table, rules=sum(not rule.candidate for rule in rules))
    if table.per:  # spread over the schemes, its rules are proved with the table that ranks them
        proof.unused_inputs = _unused(table, rules)
        return proof
    space = Space(ruleset, rules)
    proof.cells = space.size
    proof.unused_inputs = _unused(table, rules)
    outcomes = [
        outcome for outcome in ruleset.facts[table.concludes].values if outcome != "unknown"
    ]
    if outcomes:
        Decisions(ruleset, table, deciding(ruleset, rules), proof).run(outcomes)
    prove_settings(ruleset, [rule for rule in rules if rule.kind == "set"], proof)
    for rule in rules:
        if rule.kind == "warn" and not Space(ruleset, [rule]).sets().keys() - {0}:
            proof.unreachable.append(rule)
    _join_candidates(proof, rules, ruleset.rules.get(table.asks, ()))
    return proof


def _unused(table: Table, rules: Sequence[Rule]) -> list[str]:
    """Inputs that no rule of the table looks at; a fact of each scheme counts where one is used."""
    own = [rule for rule in rules if not rule.candidate]
    used = {c.named or c.fact for rule in own for c in rule.when}
    return [
        name
        for name in table.inputs
        if name not in used and not any(fact.startswith(f"{name}_") for fact in used)
    ]


def _join_candidates(proof: TableProof, rules: Sequence[Rule], asked: Iterable[Rule]) -> None:
    """A rule that is asked for each scheme can never fire only if it cannot for every one of them.

    Args:
        proof: What was found of each rule, those of single schemes included.
        rules: The rules that the table judges with.
        asked: The rules of the table that is asked, as they are written.
    """
    counted = Counter(rule.id for rule in rules if rule.candidate)
    dead = Counter(rule.id for rule in proof.unreachable)
    found = {
        rule.id: rule
        for rule in proof.unreachable
        if not rule.candidate or dead[rule.id] == counted[rule.id]
    }
    for rule in asked:
        if rule.kind == "forbid" and rule.id not in counted:
            found[rule.id] = rule
    proof.unreachable = list(found.values())


def alike(ruleset: Ruleset, fact_id: str) -> list[tuple[Any, ...]]:
    """Groups of a fact's values that no rule of any table tells apart: asking for the difference is
    for nothing.
    """
    conditions = [
        condition
        for table_id in ruleset.tables
        for rule in judged_rules(ruleset, table_id)
        for condition in rule.when
        if condition.fact == fact_id
    ]
    groups: dict[tuple[bool, ...], list[Any]] = {}
    for cell in cells_of(ruleset.facts[fact_id], conditions):
        if cell.value is not None:
            groups.setdefault(
                tuple(condition.holds(cell.value) for condition in conditions), []
            ).append(cell.value)
    return [tuple(group) for group in groups.values() if len(group) > 1]
