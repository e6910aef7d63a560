"""Which questions are left out: what the rules answer, for the wizard."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from advisor.advice.questions import ASKED_BESIDE, NEEDED_TO_TRAIN, fixed_chain, still_matters
from advisor.ground.types import AnswerSet
from advisor.ruleset.model import Ruleset
from advisor.wizard.walk import applies

Known = Callable[[AnswerSet], Mapping[str, Any]]  # what the rules know once these answers are given
Estimate = Callable[
    [AnswerSet, str, bool], Mapping[str, Any]
]  # what fits, for a chain with or without a module for each task


class Relevance:
    """Tells whether a question can still change the outcome."""

    def __init__(self, ruleset: Ruleset, known: Known, estimate: Estimate | None = None) -> None:
        self.ruleset, self.known, self.estimate = ruleset, known, estimate
        self._last: tuple[AnswerSet, Mapping[str, Any]] | None = None
        self._fits: dict[tuple[Any, ...], Mapping[str, Any]] = {}

    def facts(self, answers: AnswerSet, opened: Collection[str]) -> Mapping[str, Any]:
        """What the rules know by now; with what fits, once an estimate can be made."""
        if self._last is None or self._last[0] is not answers:
            self._last = (answers, self.known(answers))
        facts = self._last[1]
        if self.estimate is None or not set(opened).isdisjoint(
            (*NEEDED_TO_TRAIN, "data_kind", "budget")
        ):
            return facts
        found = fixed_chain(self.ruleset, facts, opened)
        if found is None:
            return facts
        key = (*found, *sorted((name, str(value)) for name, value in facts.items()))
        if key not in self._fits:
            self._fits[key] = self.estimate(answers, *found)
        return {**facts, **self._fits[key]}

    def __call__(self, fact_id: str, answers: AnswerSet, opened: Collection[str]) -> bool:
        """Whether the answer can change the outcome, or opens a question whose answer can."""
        facts = self.facts(answers, opened)
        if still_matters(self.ruleset, facts, fact_id, opened):
            return True
        behind = (
            fact
            for fact in self.ruleset.facts.values()
            if fact_id in fact.ask_when and fact.id in opened and fact.id not in ASKED_BESIDE
        )
        return any(
            still_matters(self.ruleset, facts, fact.id, opened)
            for fact in behind
            if not applies(fact, answers, self.ruleset.facts)
        )
