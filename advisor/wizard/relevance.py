"""Which questions are left out, and why: what the rules answer, for the wizard."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from advisor.advice.questions import (
    ASKED_BESIDE,
    FITS,
    NEEDED_TO_TRAIN,
    fixed_chain,
    may_train,
    still_matters,
)
from advisor.ground.types import Answers
from advisor.ruleset.facts import Fact, read_from
from advisor.ruleset.model import Ruleset
from advisor.wizard.walk import SkippedQuestion, answer_of, applies, may_apply

Known = Callable[[Answers], Mapping[str, Any]]  # what the rules know once these answers are given
Estimate = Callable[
    [Answers, str, bool], Mapping[str, Any]
]  # what fits, for a chain with or without a module for each task
NOTHING_TO_TRAIN = "there is nothing to train, whatever the answer"
SAME = "every answer leads to the same method"


class Relevance:
    """Tells whether a question can still change the outcome."""

    def __init__(self, ruleset: Ruleset, known: Known, estimate: Estimate | None = None) -> None:
        self.ruleset, self.known, self.estimate = ruleset, known, estimate
        self._last: tuple[Answers, Mapping[str, Any]] | None = None
        self._fits: dict[tuple[Any, ...], Mapping[str, Any]] = {}

    def facts(self, answers: Answers, opened: Collection[str]) -> Mapping[str, Any]:
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

    def __call__(self, fact_id: str, answers: Answers, opened: Collection[str]) -> bool:
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

    def left_out(self, answers: Answers, skipped: Sequence[Fact]) -> list[SkippedQuestion]:
        """The questions that were not asked, each with the answers that made them needless."""
        closed = {fact.id for fact in skipped}
        facts = self.facts(answers, closed)
        if not may_train(self.ruleset, facts, closed):
            return [SkippedQuestion(fact=fact, because=NOTHING_TO_TRAIN) for fact in skipped]
        return [
            SkippedQuestion(fact=fact, because=self._because(fact, answers, facts, closed))
            for fact in skipped
        ]

    def _because(
        self, fact: Fact, answers: Answers, facts: Mapping[str, Any], skipped: Collection[str]
    ) -> str:
        """The first answer without which the question would have mattered."""
        groups = {
            "data": ("data_path", *read_from("data_path")),
            "model": ("model", *read_from("model")),
            "gpu": ("gpu", *read_from("gpu"), *FITS),
        }
        for name, other in self.ruleset.facts.items():
            if other.origin != "asked" or other.order is None or name == fact.id or name in skipped:
                continue
            group = next((names for names in groups.values() if name in names), (name,))
            if not any(facts.get(part) is not None for part in group) or (
                name in read_from("data_path") and answers.value("data_path")
            ):
                continue
            without = {part: value for part, value in facts.items() if part not in group}
            if may_apply(fact, answers, self.ruleset.facts, {*skipped, name}) and still_matters(
                self.ruleset, without, fact.id, {*skipped, *group}
            ):
                return f"with {self._words(other, answers)} {SAME}"
        return f"here {SAME}"

    def _words(self, fact: Fact, answers: Answers) -> str:
        if fact.id in ("data_path", *read_from("data_path")):
            return "these examples"
        if fact.id in ("model", "gpu"):
            return {"model": "this model", "gpu": "this machine"}[fact.id]
        value = answer_of(answers, fact)
        if fact.signal:
            return f"{'yes' if value else 'no'} to “{fact.ask.split(' (')[0]}”"
        return f"“{fact.values[value].label if value in fact.values else value}”"
