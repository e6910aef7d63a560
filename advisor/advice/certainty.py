"""How sure an answer is, on two scales that GRADE keeps apart: what its rules rest on (`evidence`),
and how clearly it stands above the other answers (`strength`).

Good evidence does not make an answer clear: studies may disagree, or a fact that nobody stated may
decide. GRADE: Guyatt et al., BMJ 2008;336:924 (quality of evidence) and 1049 (strength).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advisor.advice.decide import Decision
from advisor.advice.explain import unknown_words
from advisor.advice.types import Candidate, Certainty, Flip, Reason
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import joined, named_with_flag

# What a rule's `confidence` is worth: the weakest rule that decided sets the word.
GRADES = {
    "study": ("high", "measured studies"),
    "vendor-doc": ("high", "vendors' documentation"),
    "document": ("medium", "the guide's own rows"),
    "practice": ("medium", "common practice"),
    "judgement": ("low", "our judgement"),
}


def certainty_of(
    decision: Decision,
    recommendation: Candidate,
    ruleset: Ruleset,
    base: Mapping[str, Any],
    flips: Sequence[Flip],
) -> Certainty:
    """The two scales, and what makes the recommendation weak."""
    weakest = max(
        (rule.confidence for rule in decision.rules), key=list(GRADES).index, default="judgement"
    )
    evidence, rests_on = GRADES[weakest]
    conflicts = tuple(_conflicts(decision, ruleset))
    doubts = tuple(_doubts(recommendation, ruleset, base, flips, evidence, conflicts))
    return Certainty(
        evidence=evidence,
        rests_on=rests_on,
        strength="weak" if doubts else "strong",
        doubts=doubts,
        conflicts=conflicts,
        incomplete=tuple(dict.fromkeys(map(unknown_words, recommendation.estimate.unknown))),
    )


def _conflicts(decision: Decision, ruleset: Ruleset) -> Iterator[Reason]:
    """What experts say against the rules that decided, with their sources."""
    decided = {rule.id for rule in decision.rules}
    for conflict in ruleset.conflicts:
        against = [rule for rule in conflict.rules if rule in decided]
        if against:
            titles = "; ".join(ruleset.sources[source].title for source in conflict.sources)
            yield Reason(text=conflict.says, rule=against[0], source=titles)


def _doubts(
    recommendation: Candidate,
    ruleset: Ruleset,
    base: Mapping[str, Any],
    flips: Sequence[Flip],
    evidence: str,
    conflicts: Sequence[Reason],
) -> Iterator[str]:
    """Each thing that makes the recommendation weak, as a clause.

    A fact that nobody stated counts where some value of it alone would lead to another answer.
    Signals and the number of tasks do not: unstated is what they are as a rule, and the flips show
    them.
    """
    facts = {fact.answer or fact.id: fact for fact in ruleset.facts.values()}
    changing = dict.fromkeys(name for flip in flips for name in flip.change if name in facts)
    unstated = [
        named_with_flag(facts[name])
        for name in changing
        if facts[name].origin == "asked"
        and not facts[name].signal
        and facts[name].id not in (*base, "gpu", "n_tasks")
    ]
    if unstated:
        yield f"the answer depends on {joined(unstated, 'or')}"
    if conflicts:
        yield "experts disagree here"
    if evidence == "low":
        yield "nobody has measured this case"
    if recommendation.estimate.fits == "tight":
        yield "it fits with little to spare"
    if recommendation.estimate.fits == "may_fit":
        yield "it may not fit"


def certainty_lines(certainty: Certainty) -> tuple[str, ...]:
    """How sure the answer is, a sentence for each scale, and who disagrees."""
    evidence = f"Evidence: {certainty.evidence}; it rests on {certainty.rests_on}."
    strength = f"Recommendation: {certainty.strength}"
    strength += f"; {'; '.join(certainty.doubts)}." if certainty.doubts else "."
    lines = [f"{evidence} {strength}"]
    lines += [
        f"Experts who say otherwise: {one.text} ({one.source})" for one in certainty.conflicts
    ]
    if certainty.incomplete:
        lines.append(f"The estimate is incomplete: {joined(certainty.incomplete)}.")
    return tuple(lines)
