"""The answers after the questions, and how the menu changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.advice.types import Flip
from advisor.ground.types import AnswerSet
from advisor.ruleset.facts import Fact
from advisor.situation.answers import GROUPS
from advisor.wizard.asking import asker
from advisor.wizard.outcome import Interview
from advisor.wizard.prompts import GO_BACK, Option
from advisor.wizard.saved import Saved
from advisor.wizard.walk import (
    BACK,
    DONT_KNOW,
    SEVERAL,
    Question,
    Relevant,
    Reply,
    Several,
    answer_of,
    applies,
    for_now,
    known_words,
    questions,
    short_question,
    skipped_questions,
    walk,
    with_reply,
    without_stale,
)

SKIPPED = {  # whether a question matters -> what is said of it
    True: "Not asked yet, and it may change the method:",
    False: "Not asked, since every answer leads to the same method:",
}


class Conversation:
    """The answers so far, which the menu can change."""

    def __init__(self, interview: Interview, progress: Saved) -> None:
        self.interview, self.progress = interview, progress
        self.facts, self.ui = interview.facts, interview.ui
        self.chosen: str | None = None  # the method that was chosen in place of the recommended one

    @property
    def answers(self) -> AnswerSet:
        """What is known."""
        return self.progress.answers

    def put(self, facts: Sequence[Fact]) -> bool:
        """Put these questions, answered before or not. False if no answer came of it."""
        before = dict(self.answers.known)
        for fact in facts:
            reply = self._ask_one(fact)
            if reply is BACK:
                break
            self._continue_with(fact, reply)
        return dict(self.answers.known) != before

    def _ask_one(self, fact: Fact) -> Reply:
        current = answer_of(self.answers, fact)
        # No number: it is none of those that were counted.
        question = Question(fact=fact, number=1, current=current, can_go_back=True, asks=fact.ask)
        return asker(self.interview)(question)

    # ----------------------------------------------------------------------- what was not asked

    def skipped(self) -> list[Fact]:
        """The questions that were not asked."""
        return skipped_questions(self.facts, self.answers, self.progress.asked)

    def mattering(self, skipped: Sequence[Fact]) -> set[str]:
        """Those of the questions not asked that matter by now: another answer was tried since."""
        opened = frozenset(fact.id for fact in skipped)
        relevant = self.interview.relevant or (lambda *_: True)
        return {fact_id for fact_id in opened if relevant(fact_id, self.answers, opened)}

    def answer_skipped(self) -> bool:
        """List the questions that were left out, and put them after all."""
        skipped = self.skipped()
        self._say_skipped(skipped)
        wanted = {fact.id for fact in skipped}
        before = self.answers
        self._walk(lambda fact_id, answers, opened: fact_id in wanted)
        return self.answers is not before

    def _say_skipped(self, skipped: Sequence[Fact]) -> None:
        mattering = self.mattering(skipped)
        self.ui.say("")
        for matters, reason in SKIPPED.items():
            facts = [fact for fact in skipped if (fact.id in mattering) == matters]
            if facts:
                self.ui.say(reason, tone="quiet")
            for fact in facts:
                self.ui.say(short_question(fact), tone="quiet", lead="  - ")

    def _walk(self, relevant: Relevant | None) -> None:

        def keep(answers: AnswerSet, asked: tuple[str, ...]) -> None:
            self.progress = Saved(answers=answers, asked=asked)

        answers = walk(
            self.facts,
            asker(self.interview),
            self.answers,
            asked=self.progress.asked,
            relevant=relevant,
            keep=keep,
            leave=True,
        )
        keep(answers, self.progress.asked)

    # ----------------------------------------------------------------------- other answers

    def change(self) -> bool:
        """Ask one question again, then those that only now apply. False if nothing was changed."""
        facts, asked = self.facts, self.progress.asked
        listed = [fact for fact in questions(facts) if applies(fact, self.answers, facts)]
        listed += [fact for fact in facts.values() if fact.order is None and fact.id in asked]
        options = [
            Option(value=place, label=short_question(fact), help=self._answer_words(fact))
            for place, fact in enumerate(listed)
        ]
        place = self.ui.choose("Which answer?", [*options, GO_BACK])
        reply = BACK if place is BACK else self._ask_one(listed[place])
        if reply is not BACK:
            self._continue_with(listed[place], reply)
        return reply is not BACK

    def _answer_words(self, fact: Fact) -> str:
        names = {fact.id, *SEVERAL.get(fact.id, ())}
        if names & self.answers.known.keys() or fact.id in self.answers.signals:
            return known_words(self.answers, fact)
        if fact.id not in self.progress.asked:
            return "not asked"
        return "this machine" if fact.id == "gpu" else "I don't know"

    def _continue_with(self, fact: Fact, reply: Reply) -> None:
        """Take in one answer: drop what no longer applies, ask what only now matters."""
        answers = with_reply(self.facts, self.answers, fact, reply)
        asked = tuple(dict.fromkeys((*self.progress.asked, fact.id)))
        self.progress = Saved(answers=without_stale(self.facts, answers), asked=asked)
        self._walk(for_now(self.facts, self.interview.relevant))

    def try_change(self, change: Mapping[str, Any]) -> None:
        """Take in one change; the menu asks what only now matters."""
        self.chosen = None  # what the change leads to is the recommendation
        answers = without_stale(self.facts, change_answers(self.answers, change, self.facts))
        stated = (fact.id for fact in questions(self.facts) if fact.id in answers.known)
        asked = tuple(dict.fromkeys((*self.progress.asked, *stated)))
        self.progress = Saved(answers=answers, asked=asked)


# --------------------------------------------------------------------------- a change as answers


def can_be_tried(flip: Flip) -> bool:
    """Whether a person can answer so; other data or another task is only worth knowing."""
    return flip.effort in ("answer", "money")


def change_answers(
    answers: AnswerSet, change: Mapping[str, Any], facts: Mapping[str, Fact]
) -> AnswerSet:
    """The answers with a change taken in, named as in an answers file; None takes an answer away.

    Facts that are one choice, such as a GPU and its memory, go with the first of them.
    """
    by_name = {name: fact for fact in facts.values() for name in (fact.id, fact.answer or fact.id)}
    for name, value in change.items():
        fact = by_name[name]
        reply: Reply = DONT_KNOW if value is None else value
        if fact.id in GROUPS:
            reply = Several(values=dict.fromkeys(GROUPS[fact.id]) | {fact.id: value})
        answers = with_reply(facts, answers, fact, reply)
    return answers
