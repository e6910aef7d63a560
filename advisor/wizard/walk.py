"""Which question comes next: a pure walk over the facts, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from advisor.ground.types import Answer, Answers
from advisor.ruleset.facts import UNKNOWN, Fact

EXAMPLES = ("data_path", "tasks", "data_kind")  # any of them tells something of the examples
REFINING = (
    "latency_critical", "teacher", "domain_covered_by_base_model", "reward_model_available",
    "instruct_model_start", "serve_with", "priority",
)  # fmt: skip
GIVEN_BEFORE = ("file", "flag")  # origins of answers that are not asked for again


class Special(Enum):
    """Replies that are no answer."""

    BACK = "back"
    DONT_KNOW = "I don't know"


BACK: Final = Special.BACK
DONT_KNOW: Final = Special.DONT_KNOW


@dataclass(frozen=True, kw_only=True, slots=True)
class Several:
    """A reply that sets several facts at once; None takes an answer away (the graphics card: name,
    memory, count).
    """

    values: Mapping[str, Any]


Reply = Any  # BACK, DONT_KNOW, Several, or the answer's value


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question to ask now."""

    fact: Fact
    number: int  # from 1
    current: Any = None  # what was answered before, for a question asked again
    can_go_back: bool = False
    answers: Answers = field(default_factory=Answers)  # all that is known by now


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A question that was not asked, and why not: "with these examples, every answer leads to the
    same method".
    """

    fact: Fact
    because: str


Ask = Callable[[Question], Reply]
Relevant = Callable[
    [str, Answers, Collection[str]], bool
]  # a question, the answers so far, the questions still open
Keep = Callable[[Answers, tuple[str, ...]], None]


def walk(
    facts: Mapping[str, Fact],
    ask: Ask,
    answers: Answers,
    *,
    asked: Sequence[str] = (),
    relevant: Relevant | None = None,
    keep: Keep | None = None,
    leave: bool = False,
) -> Answers:
    """The answers after every question that applies has been put, in the order of facts.yaml.

    Args:
        ask: Puts one question; its reply may be BACK, DONT_KNOW, Several or a value.
        answers: What is known already. Answers from files and flags are not asked for again.
        asked: Ids of questions that have been put before (also those answered by "I don't know").
        relevant: False for a question whose answer cannot change the outcome; it is left out.
        keep: Told of every step, so that an interruption loses nothing.
        leave: BACK from the first question of this walk ends it, where it would go to the one asked
            before.
    """
    history = [fact_id for fact_id in asked if fact_id in facts]
    before = len(history) if leave else 0
    while (fact := _next(facts, answers, history, relevant)) is not None:
        reply = ask(
            Question(
                fact=fact,
                number=len(history) + 1,
                current=answer_of(answers, fact),
                can_go_back=leave or bool(history),
                answers=answers,
            )
        )
        if reply is BACK:
            if leave and len(history) == before:
                break
            if history:
                history.pop()
            continue
        answers = with_reply(facts, answers, fact, reply)
        history.append(fact.id)
        if keep is not None:
            keep(answers, tuple(history))
    return without_stale(facts, answers)


def _next(
    facts: Mapping[str, Fact], answers: Answers, history: Sequence[str], relevant: Relevant | None
) -> Fact | None:
    opened = open_questions(facts, answers, history)
    for fact in questions(facts):
        if fact.id not in opened or not applies(fact, answers, facts):
            continue
        if relevant is None or fact.required or relevant(fact.id, answers, opened):
            return fact
        # No answer to it changes anything: to the questions after it, it is as good as answered by
        # "I don't know".
        opened = opened - {fact.id}
    return None


def open_questions(
    facts: Mapping[str, Fact], answers: Answers, asked: Collection[str]
) -> frozenset[str]:
    """The questions that may still be put, now or after an answer that makes them apply."""
    waiting = {
        fact.id
        for fact in questions(facts)
        if fact.id not in asked and not was_given(answers, fact)
    }
    while True:  # one that waits for an answer goes with the question it waits for
        left = {
            fact_id for fact_id in waiting if may_apply(facts[fact_id], answers, facts, waiting)
        }
        if left == waiting:
            return frozenset(left)
        waiting = left


def for_now(relevant: Relevant | None) -> Relevant | None:
    """The same without questions that refine a choice, while nothing is known of the examples: the
    answer is then mostly which ones to collect. They can be answered afterwards.
    """
    if relevant is None:
        return None

    def now(fact_id: str, answers: Answers, opened: Collection[str]) -> bool:
        refines = fact_id in REFINING and _none_stated(EXAMPLES, answers)
        return not refines and relevant(fact_id, answers, opened)

    return now


def skipped_questions(
    facts: Mapping[str, Fact], answers: Answers, asked: Collection[str]
) -> list[Fact]:
    """The questions that apply and were not put."""
    return [
        fact
        for fact in questions(facts)
        if fact.id not in asked and not was_given(answers, fact) and applies(fact, answers, facts)
    ]


def questions(facts: Mapping[str, Fact]) -> list[Fact]:
    """The facts the wizard asks for, in its order."""
    return sorted(
        (fact for fact in facts.values() if fact.order is not None and fact.origin == "asked"),
        key=lambda fact: fact.order or 0,
    )


def applies(fact: Fact, answers: Answers, facts: Mapping[str, Fact]) -> bool:
    """True where `ask_when` holds and nothing of `ask_without` is stated."""
    return may_apply(fact, answers, facts, ())


def may_apply(
    fact: Fact, answers: Answers, facts: Mapping[str, Fact], waiting: Collection[str]
) -> bool:
    """True where the question applies, or can come to apply by an answer to one of the waiting
    questions. `unknown` in `ask_when` matches what nobody answered.
    """
    for other, allowed in fact.ask_when.items():
        value = answer_of(answers, facts[other]) if other in facts else answers.value(other)
        if (UNKNOWN if value is None else value) not in allowed and other not in waiting:
            return False
    return _none_stated(fact.ask_without, answers)


def _none_stated(names: Sequence[str], answers: Answers) -> bool:
    return all(answers.value(name) is None for name in names)


def was_given(answers: Answers, fact: Fact) -> bool:
    """True where a file or a flag has answered it.

    Signals given together count as the ones named.
    """
    answer = answers.known.get(fact.id)
    if answer is None and fact.signal and fact.id in answers.signals:
        answer = answers.known.get("signals")
    return answer is not None and answer.origin in GIVEN_BEFORE


def answer_of(answers: Answers, fact: Fact) -> Any:
    """What was answered; for a signal also when it was only listed under `signals`."""
    value = answers.value(fact.id)
    return True if value is None and fact.signal and fact.id in answers.signals else value


def with_reply(facts: Mapping[str, Fact], answers: Answers, fact: Fact, reply: Reply) -> Answers:
    """The answers with one reply and what it implies taken in, as asked: it outranks files and
    flags.
    """
    values: Mapping[str, Any] = (
        reply.values
        if isinstance(reply, Several)
        else {fact.id: None if reply is DONT_KNOW else reply}
    )
    known = dict(answers.known)
    for fact_id, value in values.items():
        known.pop(fact_id, None)
        if value is not None:
            known[fact_id] = Answer(value=value, origin="asked")
    if fact.signal:
        _list_signal(known, answers, fact.id, stated=reply is True)
    answers = Answers(known=known)
    for implied in fact.implied_by(values.get(fact.id)):
        answers = with_reply(facts, answers, facts[implied], True)
    return answers


def _list_signal(known: dict[str, Answer], answers: Answers, signal: str, *, stated: bool) -> None:
    """Keep the list under `signals` in step with the signal's own answer."""
    others = tuple(name for name in answers.signals if name != signal)
    listed = (*others, signal) if stated else others
    known.pop("signals", None)
    if listed:
        before = answers.known.get("signals")
        known["signals"] = Answer(
            value=listed,
            origin=before.origin if before is not None and before.value == listed else "asked",
        )


def without_stale(facts: Mapping[str, Fact], answers: Answers) -> Answers:
    """The answers without those asked for under a condition that no longer holds (another task, a
    data file after all).
    """
    for fact in questions(facts):
        answer = answers.known.get(fact.id)
        if answer is not None and answer.origin == "asked" and not applies(fact, answers, facts):
            answers = with_reply(facts, answers, fact, DONT_KNOW)
    return answers
