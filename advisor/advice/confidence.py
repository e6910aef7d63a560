"""How sure a recommendation is, in words: what its rules rest on, and which unknown facts could
still change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.advice.types import Candidate, Flip
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import joined, named_with_flag

from .decide import Decision
from .explain import unknown_words

# What a rule's `confidence` is worth: the weakest rule that decided sets the word.
GRADES = {
    "study": ("high", "measured studies"),
    "vendor-doc": ("high", "vendors' documentation"),
    "document": ("medium", "the guide's own rows"),
    "practice": ("medium", "common practice"),
    "judgement": ("low", "our judgement"),
}
LOWER = {"high": "medium", "medium": "low", "low": "low"}


def confidence(
    decision: Decision,
    recommendation: Candidate,
    ruleset: Ruleset,
    base: Mapping[str, Any],
    flips: Sequence[Flip],
) -> str:
    """'medium: rests on the guide's own rows. Telling us how much it may cost (`--budget`) could
    change the recommendation'.

    A fact that nobody stated counts where some value of it alone would lead to another answer.
    Signals and the number of tasks do not: unstated is what they are as a rule, and the flips show
    them.
    """
    weakest = max(
        (rule.confidence for rule in decision.rules), key=list(GRADES).index, default="judgement"
    )
    word, rests = GRADES[weakest]
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
        word = LOWER[word]
    text = f"{word}: rests on {rests}"
    if unstated:
        text += f". Telling us {joined(unstated, 'or')} could change the recommendation"
    unsure = dict.fromkeys(map(unknown_words, recommendation.estimate.unknown))
    return text + (f". The estimate is incomplete: {joined(unsure)}" if unsure else "")
