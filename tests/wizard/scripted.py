"""A wizard without a terminal: answers from a list, and what was asked, said and offered."""

from collections.abc import Sequence
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet, DataProfile, Hardware
from advisor.ruleset.facts import load_facts
from advisor.wizard.asking import ask_round
from advisor.wizard.outcome import Checks, Interview
from advisor.wizard.prompts import Option
from advisor.wizard.walk import DONT_KNOW, walk
from tests.render.example_advice import CPU

FACTS = load_facts()
ENTER, DOWN, UP, CTRL_C = "\r", "\x1b[B", "\x1b[A", "\x03"
PROFILE = DataProfile(
    path="train.jsonl", kind="paired", format="messages", mapping={}, rows=60, tokens=None,
    objectives=("sft",),
)  # fmt: skip


def read_profile(path: str, *_: Any) -> DataProfile:
    """The one file that there is."""
    if path != "train.jsonl":
        raise InputError(f"There is no {path}.")
    return PROFILE


CARDS = Checks(profile=read_profile)


def answers_of(
    ui: Any,
    *relevant: str,
    earlier: AnswerSet | None = None,
    hardware: Hardware = CPU,
    checks: Checks = CARDS,
) -> AnswerSet:
    """What one round answers, of all questions or beside the task of these alone."""
    more = {"relevant": lambda fact, *_: fact in relevant} if relevant else {}
    interview = Interview(facts=FACTS, hardware=hardware, ui=ui, checks=checks, **more)
    return ask_round(interview, earlier).answers


class ScriptedUi:
    """A Ui that answers from a list, by a choice's label or as typed; None raises Ctrl-C."""

    def __init__(self, *replies: str | None, rows: int = 100) -> None:
        self.rows, self.replies = rows, list(replies)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.offered: list[list[str]] = []
        self.helps: list[list[str]] = []
        self.hints: list[str] = []

    def say(self, text: str, *, tone: str = "plain", lead: str = "") -> None:
        self.said.append(lead + text)

    def begin(self, question: str, *, again: bool) -> None:
        pass

    def say_line(self, text: str) -> None:
        self.said.append(text)

    def answered(self, question: str, answer: str) -> None:
        self.said.append(f"{question} -> {answer}")

    def _next(self) -> str:
        reply = self.replies.pop(0)
        if reply is None:
            raise KeyboardInterrupt
        return reply

    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        self.asked.append(message)
        self.offered.append([option.label for option in options])
        self.helps.append([option.help for option in options])
        wanted = self._next()
        return next(option.value for option in options if option.label == wanted)

    def enter(self, message: str, *, hint: str = "", default: str = "", **more: bool) -> str:
        self.asked.append(message)
        self.hints.append(hint)
        return self._next()


def asked_set(**values: Any) -> AnswerSet:
    """Answers as they were given to questions."""
    return AnswerSet(
        known={fact: Answer(value=value, origin="asked") for fact, value in values.items()}
    )


def known(answers: AnswerSet) -> dict[str, Any]:
    """Fact id -> value."""
    return {fact: answer.value for fact, answer in answers.known.items()}


def walked(
    replies: dict[str, Any], answers: AnswerSet | None = None, *, facts: Any = FACTS, **more: Any
) -> tuple[AnswerSet, list[str]]:
    """Answers and order of questions of a walk with fixed replies, and else I don't know."""
    order: list[str] = []

    def ask(question):
        order.append(question.fact.id)
        return replies.get(question.fact.id, DONT_KNOW)

    return walk(facts, ask, answers or AnswerSet(), **more), order
