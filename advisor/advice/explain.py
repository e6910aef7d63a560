"""Why, why not, and what would change it: sentences made from rules, facts and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.advice.facts_of_situation import fact_origin
from advisor.advice.types import KnownFact, Reason
from advisor.estimate.types import Estimate
from advisor.ground.units import format_duration, format_gib, format_usd, gib
from advisor.ruleset.facts import UNKNOWN
from advisor.ruleset.judge import Judgement
from advisor.ruleset.model import Condition, Rule, Ruleset
from advisor.situation.types import Situation

from .decide import Decision


def reason_of(rule: Rule, ruleset: Ruleset) -> Reason:
    """A rule's own sentence, with the guide's row where it has one, and its sources' titles."""
    text = f"{rule.because} ({rule.row})" if rule.row else rule.because
    return Reason(text=text, rule=rule.id, source=_titles(rule, ruleset))


def facts_seen_by(
    rule: Rule, decision: Decision, situation: Situation, ruleset: Ruleset
) -> tuple[KnownFact, ...]:
    """The facts that a rule looked at and that are known, each with where it came from."""
    concluded = {
        table.concludes: decision.steps[table.id].winner
        for table in ruleset.tables.values()
        if table.id in decision.steps
    }
    found = []
    for condition in rule.when:
        value = decision.facts.get(condition.fact)
        if value is None or value == UNKNOWN:
            continue
        winner = concluded.get(condition.fact)
        if winner is not None:
            origin = f"concluded by {winner[1].id}"
        elif condition.fact.startswith("fits_"):
            origin = "estimated"
        else:
            origin = fact_origin(situation, condition.fact)
        found.append(KnownFact(fact=condition.fact, value=value, origin=origin))
    return tuple(found)


def memory_reason(
    cost: Estimate, name: str, rule: str | None, *, cards: int, cpu: bool
) -> Reason | None:
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
        return Reason(
            text=f"{name} costs about {format_usd(cost.cost_usd)}, the budget is {format_usd(usd)}",
            rule=rule,
            needs=round(cost.cost_usd, 2),
            has=float(usd),
            unit="USD",
        )
    needed = (cost.duration_s or 0.0) / 3600
    return Reason(
        text=f"{name} takes about {format_duration(cost.duration_s or 0.0)}, the limit is {format_duration(float(hours or 0) * 3600)}",
        rule=rule, needs=round(needed, 2), has=float(hours or 0), unit="h",
    )  # fmt: skip


def why_not_outcome(
    judgement: Judgement, outcome: str, facts: Mapping[str, Any], ruleset: Ruleset
) -> list[Reason]:
    """Why a table did not conclude an outcome: the rules that forbid it, what the nearest rule for
    it misses, or what outranks it.
    """
    if outcome in judgement.forbidden:
        return [reason_of(rule, ruleset) for rule in judgement.forbidden[outcome]]
    winner = judgement.winner
    concludes = ruleset.tables[judgement.table].concludes
    named = [
        rule
        for rule in ruleset.rules[judgement.table]
        if rule.kind == "recommend" and rule.then.get(concludes) == outcome
    ]
    above = [
        rule
        for rule in named
        if winner is None or _rank(rule, ruleset) >= _rank(winner[1], ruleset)
    ]  # of equal rank: never both fire, the linter proves it
    waiting = [
        (rule, missed) for rule in above if (missed := unmet_conditions(rule, facts, ruleset))
    ]
    if waiting:
        # The rule that misses least is the one a person could still make true; of equals the one
        # that would win.
        rule, missed = min(
            waiting,
            key=lambda entry: (
                len(entry[1]),
                *(-part for part in _rank(entry[0], ruleset)),
                entry[0].id,
            ),
        )
        wanted = " and ".join(text for text, _ in missed)
        here = " and ".join(
            f"{fact_words(fact_id)} is"
            f" {value_words(facts.get(fact_id))}{_why_unknown(fact_id, facts)}"
            for fact_id in dict.fromkeys(fact_id for _, fact_id in missed)
        )
        return [
            Reason(
                text=(
                    f"would come first where {wanted}; here"
                    f" {here}{f' ({rule.row})' if rule.row else ''}"
                ),
                rule=rule.id,
                source=_titles(rule, ruleset),
            )
        ]
    if named and winner is not None:
        rule = _ranking_rule(judgement, outcome, facts, ruleset) or winner[1]
        return [
            Reason(
                text=f"comes after {winner[0]}: {rule.because}",
                rule=rule.id,
                source=_titles(rule, ruleset),
            )
        ]
    return [Reason(text="no rule of the chosen layers recommends it here")]


def _ranking_rule(
    judgement: Judgement, outcome: str, facts: Mapping[str, Any], ruleset: Ruleset
) -> Rule | None:
    """Of the rules that speak for the winner, the least one that puts it before the outcome: a
    higher one is about another rival.
    """
    placed = dict(judgement.ranking).get(outcome)
    if placed is None or judgement.winner is None:
        return None
    concludes = ruleset.tables[judgement.table].concludes
    before = [
        rule
        for rule in ruleset.rules[judgement.table]
        if rule.kind == "recommend" and rule.then.get(concludes) == judgement.winner[0]
    ]
    before = [
        rule
        for rule in before
        if _rank(rule, ruleset) > _rank(placed, ruleset) and rule.first_failing(facts) is None
    ]
    return min(before, key=lambda rule: (_rank(rule, ruleset), rule.id), default=None)


def _rank(rule: Rule, ruleset: Ruleset) -> tuple[int, int]:
    return (["base", *ruleset.layers].index(rule.layer), ruleset.tiers.get(rule.tier, 0))


def _titles(rule: Rule, ruleset: Ruleset) -> str:
    return "; ".join(ruleset.sources[source].title for source in rule.sources)


def unmet_conditions(
    rule: Rule, facts: Mapping[str, Any], ruleset: Ruleset
) -> list[tuple[str, str]]:
    """What a rule still misses: each condition in words with the fact it is about; empty where it
    fires.

    A fact that another table concluded is followed back to what a person stated: not "open_schemes
    is adapter" but "task is multi_department".
    """
    found: list[tuple[str, str]] = []
    for condition in rule.when:
        if condition.holds(facts.get(condition.fact)):
            continue
        table = next(
            (table for table in ruleset.tables.values() if table.concludes == condition.fact), None
        )
        behind: list[list[tuple[str, str]]] = (
            []
            if table is None
            else _leading_to(table.id, table.concludes, condition.values, facts, ruleset)
        )
        least = min(behind, key=len) if behind else [(_wanted(condition), condition.fact)]
        found += least
    return list(dict.fromkeys(found))


def _leading_to(
    table: str, concludes: str, values: frozenset[Any], facts: Mapping[str, Any], ruleset: Ruleset
) -> list[list[tuple[str, str]]]:
    """For each rule of a table that concludes one of the values: what it misses, the highest ranked
    first.
    """
    rules = [
        rule
        for rule in ruleset.rules[table]
        if rule.kind == "recommend" and rule.then.get(concludes) in values
    ]
    rules.sort(key=lambda rule: (*(-part for part in _rank(rule, ruleset)), rule.id))
    return [missed for rule in rules if (missed := unmet_conditions(rule, facts, ruleset))]


def _wanted(condition: Condition) -> str:
    """A condition as a person reads it: 'prompt meets quality bar is yes'."""
    text = condition.text.replace("not known or ", "").replace(
        condition.fact, fact_words(condition.fact), 1
    )
    return text.replace(" is stated", " is yes").replace(" is denied", " is no")


def _why_unknown(fact_id: str, facts: Mapping[str, Any]) -> str:
    """Why an estimate is no known fact, though numbers of a suggested model may stand beside it."""
    if (
        not fact_id.startswith("fits_")
        or facts.get(fact_id) not in (None, UNKNOWN)
        or facts.get("device") in (None, UNKNOWN)
    ):
        return ""
    return (
        ""
        if "params_b" in facts
        else ", since no model is named (the numbers shown are those of the suggested model)"
    )


def fact_words(fact_id: str) -> str:
    """A fact's name without underscores."""
    return fact_id.replace("_", " ")


def value_words(value: Any) -> str:
    """A fact's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.10g}"
    return "not known" if value is None or value == "unknown" else str(value)
