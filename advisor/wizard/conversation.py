"""The answers after the questions, and how they change: one question again, what was left out, or a
change that is only tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advisor.advice.types import Advice
from advisor.ground.types import Answers, Hardware
from advisor.ruleset.facts import Fact
from advisor.wizard.asking import asker
from advisor.wizard.outcome import Checks
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.saved import Saved
from advisor.wizard.walk import (
    BACK,
    Question,
    Relevant,
    Reply,
    Skipped,
    answer_of,
    applies,
    for_now,
    questions,
    skipped_questions,
    walk,
    with_reply,
    without_stale,
)
from advisor.wizard.what_if import change_answers
from advisor.wizard.words import words_of

LeftOut = Callable[[Answers, Sequence[Fact]], list[Skipped]]


class Conversation:
    """The answers so far, which the menu can change."""

    def __init__(
        self,
        progress: Saved,
        *,
        facts: Mapping[str, Fact],
        hardware: Hardware,
        ui: Ui,
        checks: Checks,
        relevant: Relevant | None,
        left_out: LeftOut | None,
    ) -> None:
        self.progress, self.facts, self.hardware = progress, facts, hardware
        self.ui, self.checks, self.relevant, self.left_out = ui, checks, relevant, left_out
        self.taken: str | None = None  # the method that was chosen in place of the recommended one
        # Answers and chosen method before each change that was tried, and what they led to.
        self.before: list[tuple[Saved, str | None, str]] = []

    @property
    def answers(self) -> Answers:
        """What is known."""
        return self.progress.answers

    def put(self, facts: Sequence[Fact]) -> bool:
        """Put these questions, answered before or not. False where no answer came of it."""
        before = self.answers
        for fact in facts:
            reply = self._ask_one(fact, number=len(self.progress.asked) + 1)
            if reply is BACK:
                break
            self._take(with_reply(self.facts, self.answers, fact, reply), asked=fact.id)
        return dict(self.answers.known) != dict(before.known)

    def _ask_one(self, fact: Fact, *, number: int) -> Reply:
        return asker(self.ui, self.hardware, self.checks)(
            Question(
                fact=fact, number=number, current=answer_of(self.answers, fact), can_go_back=True
            )
        )

    # ----------------------------------------------------------------------- what was not asked

    def skipped(self) -> list[Fact]:
        """The questions that were not asked."""
        return skipped_questions(self.facts, self.answers, self.progress.asked)

    def mattering(self, skipped: Sequence[Fact]) -> set[str]:
        """Those of the questions not asked that matter by now: another answer was tried since."""
        opened = frozenset(fact.id for fact in skipped)
        return {
            fact.id
            for fact in skipped
            if self.relevant is None or self.relevant(fact.id, self.answers, opened)
        }

    def _say_left_out(self) -> None:
        """Which questions were not asked, by the reason why not."""
        skipped = self.skipped()
        if not skipped or self.left_out is None:
            return
        mattering = self.mattering(skipped)
        by_reason: dict[str, list[Fact]] = {
            "Not asked yet, and it may change the method:": [
                fact for fact in skipped if fact.id in mattering
            ]
        }
        for one in self.left_out(
            self.answers, [fact for fact in skipped if fact.id not in mattering]
        ):
            by_reason.setdefault(f"Not asked, since {one.because}:", []).append(one.fact)
        self.ui.say("")
        for reason, facts in by_reason.items():
            for place, fact in enumerate(facts):
                if place == 0:
                    self.ui.say(reason, tone="quiet")
                self.ui.say(fact.ask.split(" (")[0], tone="quiet", lead="  - ")

    def answer_skipped(self) -> bool:
        """Say why questions were left out, and put them after all."""
        self._say_left_out()
        wanted = {fact.id for fact in self.skipped()}
        before = self.answers
        self._walk(lambda fact_id, answers, opened: fact_id in wanted)
        return self.answers is not before

    def _walk(self, relevant: Relevant | None) -> None:
        """Put the questions that are still open and relevant."""

        def keep(answers: Answers, asked: tuple[str, ...]) -> None:
            self.progress = Saved(answers=answers, asked=asked)

        answers = walk(
            self.facts,
            asker(self.ui, self.hardware, self.checks),
            self.answers,
            asked=self.progress.asked,
            relevant=relevant,
            keep=keep,
            leave=True,
        )
        self.progress = Saved(answers=answers, asked=self.progress.asked)

    # ----------------------------------------------------------------------- other answers

    def change(self) -> bool:
        """Ask one question again, then those that only now apply.

        False where nothing was changed.
        """
        open_facts = [
            fact for fact in questions(self.facts) if applies(fact, self.answers, self.facts)
        ]
        open_facts += [
            fact
            for fact in self.facts.values()
            if fact.order is None and fact.id in self.progress.asked
        ]
        options = [
            Option(value=fact.id, label=fact.ask.split(" (")[0], help=self._answer_words(fact))
            for fact in open_facts
        ]
        chosen = self.ui.choose("Which answer?", [*options, Option(value=BACK, label="Back")])
        if chosen is BACK:
            return False
        fact = self.facts[chosen]
        reply = self._ask_one(fact, number=1 + open_facts.index(fact))
        if reply is BACK:
            return False
        self._take(with_reply(self.facts, self.answers, fact, reply), asked=fact.id)
        return True

    def _take(self, answers: Answers, *, asked: str) -> None:
        """Go on with one other answer: what no longer applies is dropped, what only now matters is
        asked.
        """
        history = (*self.progress.asked, *((asked,) if asked not in self.progress.asked else ()))
        self.progress = Saved(answers=without_stale(self.facts, answers), asked=history)
        self._walk(for_now(self.relevant))

    def try_change(self, advice: Advice, change: Mapping[str, Any]) -> None:
        """Go on with one change, which can be undone; what only now matters can be answered from
        the menu.
        """
        self.remember(advice)
        self.taken = None  # what the change leads to is the recommendation
        answers = without_stale(
            self.facts, change_answers(self.answers, change, advice, self.facts)
        )
        stated = (
            fact.id
            for fact in questions(self.facts)
            if fact.id in answers.known and fact.id not in self.progress.asked
        )
        self.progress = Saved(answers=answers, asked=(*self.progress.asked, *stated))

    def remember(self, advice: Advice) -> None:
        """Keep the answers as they are now, for `undo`."""
        led_to = str(advice.recommendation.composition)
        self.before.append((self.progress, self.taken, led_to))

    def undo(self) -> bool:
        """Go back to the answers before the last change that was tried: they are others now."""
        self.progress, self.taken, _ = self.before.pop()
        return True

    def _answer_words(self, fact: Fact) -> str:
        value = answer_of(self.answers, fact)
        if value is not None:
            return words_of(fact, value)
        if fact.id not in self.progress.asked:
            return "not asked"
        return "this machine" if fact.id == "gpu" else "I don't know"
