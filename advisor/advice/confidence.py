"""How sure a recommendation is, in words: what its rules rest on, and which unknown facts could still change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ruleset.model import Ruleset
from advisor.types import Candidate

from .decide import Decision

# What a rule's `confidence` is worth: the weakest rule that decided sets the word.
GRADES = {
    "study": ("high", "measured studies"),
    "vendor-doc": ("high", "vendors' documentation"),
    "document": ("medium", "the guide's own rows"),
    "practice": ("medium", "common practice"),
    "judgement": ("low", "our judgement"),
}
LOWER = {"high": "medium", "medium": "low", "low": "low"}


def confidence(decision: Decision, recommendation: Candidate, ruleset: Ruleset, base: Mapping[str, Any]) -> str:
    """'medium: rests on the guide's own rows; not known and able to change it: data.kind'."""
    weakest = max((rule.confidence for rule in decision.rules), key=list(GRADES).index, default="judgement")
    word, rests = GRADES[weakest]
    open_facts = deciding_unknowns(decision, ruleset, base)
    if open_facts:
        word = LOWER[word]
    text = f"{word}: rests on {rests}"
    if open_facts:
        text += f"; not known, and able to change it: {', '.join(open_facts)}"
    unsure = recommendation.estimate.unknown
    return text + (f"; {'; '.join(unsure)}" if unsure else "")


def deciding_unknowns(decision: Decision, ruleset: Ruleset, base: Mapping[str, Any]) -> tuple[str, ...]:
    """Facts a person could state that some rule of a higher rank waits for, named as an answers file does.

    Signals are left out: unstated ones are the rule rather than the exception, and flips show them.
    """
    waiting: dict[str, None] = {}
    for table, judgement in decision.steps.items():
        if judgement.winner is None:
            continue
        layers = ["base", *ruleset.layers]
        _, winner = judgement.winner
        rank = (layers.index(winner.layer), ruleset.tiers.get(winner.tier, 0))
        for rule in ruleset.rules[table]:
            if rule.kind != "recommend" or (layers.index(rule.layer), ruleset.tiers[rule.tier]) <= rank or rule.then == winner.then:
                continue
            unmet = [condition for condition in rule.when if not condition.holds(decision.facts.get(condition.fact))]
            facts = [ruleset.facts[condition.fact] for condition in unmet]
            if facts and all(fact.origin == "asked" and not fact.signal and fact.id not in base for fact in facts):
                waiting.update(dict.fromkeys(fact.answer or fact.id for fact in facts))
    return tuple(waiting)
