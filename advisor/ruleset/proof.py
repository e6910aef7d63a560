"""What the sets of rules that can fire together prove of a table: no hole, no tie, no dead rule, no
two values for a setting.

Rules that recommend and forbid are looked at together; the settings key by key, since keys do not
touch one another; a warning by itself. That keeps the sets few without losing a case.
"""

from __future__ import annotations

from typing import Any

from advisor.ruleset.decisions import Decisions
from advisor.ruleset.domain import cells_of
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.proved import Clash, Hole, Idle, TableProof, layer_of
from advisor.ruleset.settings_proof import prove_settings
from advisor.ruleset.space import Space

__all__ = ["Clash", "Hole", "Idle", "TableProof", "alike", "prove"]


def prove(ruleset: Ruleset, table_id: str) -> TableProof:
    """Everything that can be said of one table of the merged rules. Raises TooManyCases."""
    table, rules = ruleset.tables[table_id], ruleset.rules[table_id]
    proof = TableProof(table=table, rules=len(rules))
    deciding = sorted(
        (rule for rule in rules if rule.kind in ("recommend", "forbid")),
        key=lambda rule: _rank(ruleset, rule),
    )
    space = Space(ruleset, rules)
    proof.cells = space.size
    proof.unused_inputs = [
        fact_id
        for fact_id in table.inputs
        if not any(condition.fact == fact_id for rule in rules for condition in rule.when)
    ]
    outcomes = [
        outcome for outcome in ruleset.facts[table.concludes].values if outcome != "unknown"
    ]
    if outcomes:
        Decisions(ruleset, table, deciding, proof).run(outcomes)
    prove_settings(ruleset, [rule for rule in rules if rule.kind == "set"], proof)
    for rule in rules:
        if rule.kind == "warn" and not Space(ruleset, [rule]).sets().keys() - {0}:
            proof.unreachable.append(rule)
    return proof


def _rank(ruleset: Ruleset, rule: Rule) -> tuple[bool, int, int, str]:
    """The judge's order: recommendations first, latest layer, highest tier, id."""
    return (
        rule.kind != "recommend",
        -layer_of(ruleset, rule),
        -ruleset.tiers.get(rule.tier, 0),
        rule.id,
    )


def alike(ruleset: Ruleset, fact_id: str) -> list[tuple[Any, ...]]:
    """Groups of a fact's values that no rule of any table tells apart: asking for the difference is
    for nothing.
    """
    conditions = [
        condition
        for rules in ruleset.rules.values()
        for rule in rules
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
