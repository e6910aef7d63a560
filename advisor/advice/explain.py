"""Why, why not, and what would change it: sentences made from rules, facts and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ruleset.judge import Judgement
from advisor.ruleset.model import Rule, Ruleset
from advisor.types import Estimate, Reason
from advisor.units import format_duration, format_gib, format_usd, gib


def reason_of(rule: Rule, ruleset: Ruleset) -> Reason:
    """A rule's own sentence, with the guide's row where it has one, and its sources' titles."""
    text = f"{rule.because} ({rule.row})" if rule.row else rule.because
    titles = "; ".join(ruleset.sources[source].title for source in rule.sources)
    return Reason(text=text, rule=rule.id, source=titles)


def memory_reason(cost: Estimate, name: str, rule: str | None, *, cards: int, cpu: bool) -> Reason | None:
    """'full: needs 78.1 GiB, this card has 24.0 GiB' for a candidate that is too big."""
    if cost.memory is None or cost.limit_bytes is None:
        return None
    where = "this machine" if cpu else "this card" if cards <= 1 else f"each of these {cards} cards"
    peak = cost.memory.peak_bytes
    return Reason(
        text=f"{name} needs {format_gib(peak)}, {where} has {format_gib(cost.limit_bytes)}",
        rule=rule,
        source="estimate of memory (formula)",
        needs=round(gib(peak), 2),
        has=round(gib(cost.limit_bytes), 2),
        unit="GiB",
    )


def budget_reason(cost: Estimate, facts: Mapping[str, Any], name: str, rule: str | None) -> Reason:
    """Which stated limit a candidate breaks, with both numbers."""
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    if usd is not None and cost.cost_usd is not None and cost.cost_usd > usd:
        return Reason(text=f"{name} costs about {format_usd(cost.cost_usd)}, the budget is {format_usd(usd)}", rule=rule, needs=round(cost.cost_usd, 2), has=float(usd), unit="USD")
    needed = (cost.duration_s or 0.0) / 3600
    return Reason(
        text=f"{name} takes about {format_duration(cost.duration_s or 0.0)}, the limit is {format_duration(float(hours or 0) * 3600)}",
        rule=rule, needs=round(needed, 2), has=float(hours or 0), unit="h",
    )  # fmt: skip


def why_not_outcome(judgement: Judgement, outcome: str, facts: Mapping[str, Any], ruleset: Ruleset) -> list[Reason]:
    """Why a table did not conclude an outcome: the rules that forbid it, or what the rules for it still miss."""
    if outcome in judgement.forbidden:
        return [reason_of(rule, ruleset) for rule in judgement.forbidden[outcome]]
    winner = judgement.winner
    rules = ruleset.rules[judgement.table]
    concludes = ruleset.tables[judgement.table].concludes
    named = [rule for rule in rules if rule.kind == "recommend" and rule.then.get(concludes) == outcome]
    named.sort(key=lambda rule: -ruleset.tiers[rule.tier])
    for rule in named:
        found = first_unmet(rule, facts, ruleset)
        if found is not None:
            wanted, fact_id = found
            row = f" ({rule.row})" if rule.row else ""
            return [Reason(text=f"would come first where {wanted}; here {fact_id} is {shown(facts.get(fact_id))}{row}", rule=rule.id)]
    if named and winner is not None:
        return [Reason(text=f"comes after {winner[0]}: {named[0].because}", rule=named[0].id, source="; ".join(ruleset.sources[s].title for s in named[0].sources))]
    return [Reason(text="no rule of the chosen layers recommends it")]


def first_unmet(rule: Rule, facts: Mapping[str, Any], ruleset: Ruleset) -> tuple[str, str] | None:
    """What a rule still misses, in words, and the fact it is about; None where it fires.

    A fact that another table concluded is followed back to what a person stated: not "open_schemes is adapter" but
    "task is multi_department".
    """
    condition = rule.first_failing(facts)
    if condition is None:
        return None
    table = next((table for table in ruleset.tables.values() if table.concludes == condition.fact), None)
    if table is not None:
        behind = [other for other in ruleset.rules[table.id] if other.kind == "recommend" and other.then.get(table.concludes) in condition.values]
        for other in sorted(behind, key=lambda other: (-ruleset.tiers[other.tier], other.id)):
            found = first_unmet(other, facts, ruleset)
            if found is not None:
                return found
    return condition.text.replace("not known or ", ""), condition.fact


def shown(value: Any) -> str:
    """A fact's value in words."""
    if value is True:
        return "stated"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.10g}"
    return "not known" if value is None or value == "unknown" else str(value)
