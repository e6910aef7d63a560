"""Which question comes next, and what becomes of its answer: pure, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Final

from msgspec import Struct, field

from advisor.advice.questions import ASKED_BESIDE, NEEDED_TO_TRAIN, fixed_chain, still_matters
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.units import format_usd
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import GROUPS

EXAMPLES = ("data_path", "tasks", "data_kind")  # any of them tells something of the examples
GIVEN_BEFORE = ("file", "flag")  # origins of answers that are not asked for again


class Special(Enum):
    """Replies that are no answer."""

    BACK = "back"
    DONT_KNOW = "I don't know"


BACK: Final = Special.BACK
DONT_KNOW: Final = Special.DONT_KNOW


class Several(Struct, frozen=True, kw_only=True):
    """A reply that sets several facts at once; None takes an answer away."""

    values: Mapping[str, Any]


Reply = Any  # BACK, DONT_KNOW, Several, or the answer's value


class Question(Struct, frozen=True, kw_only=True):
    """One question to ask now."""

    fact: Fact
    number: int  # from 1
    current: Any = None  # what was answered before, for a question asked again
    can_go_back: bool = False
    again: bool = False  # by "Back" from the question after it
    answers: AnswerSet = field(default_factory=AnswerSet)  # all that is known by now
    asks: str = ""  # in other words than the fact does

    @property
    def message(self) -> str:
        """What is asked, with the number of the question."""
        return self.asks or f"{self.number}. {self.fact.ask}"


Ask = Callable[[Question], Reply]
# a question, the answers so far, the questions still open -> whether to ask
Relevant = Callable[[str, AnswerSet, Collection[str]], bool]
Keep = Callable[[AnswerSet, tuple[str, ...]], None]


def walk(
    facts: Mapping[str, Fact],
    ask: Ask,
    answers: AnswerSet,
    *,
    asked: Sequence[str] = (),
    relevant: Relevant | None = None,
    keep: Keep = lambda answers, asked: None,
    leave: bool = False,
) -> AnswerSet:
    """The answers after every question that applies has been put, in the order of facts.yaml.

    Args:
        ask: Puts one question; its reply may be BACK, DONT_KNOW, Several or a value.
        answers: What is known already. Those from files and flags are not asked for again.
        asked: Ids of questions that have been put before (also those answered by "I don't know").
        relevant: False for a question whose answer cannot change the outcome; it is left out.
        keep: Told of every step, so that an interruption loses nothing.
        leave: BACK from the first question of this walk ends it, and does not go to the one asked
            before.
    """
    history = [fact_id for fact_id in asked if fact_id in facts]
    before = len(history) if leave else 0
    again = False
    while (fact := _next_question(facts, answers, history, relevant)) is not None:
        reply = ask(
            Question(
                fact=fact,
                number=len(history) + 1,
                current=answer_of(answers, fact),
                can_go_back=leave or bool(history),
                again=again,
                answers=answers,
                asks=fact.ask if leave else "",
            )
        )
        again = reply is BACK
        if again:
            if leave and len(history) == before:
                break
            history = history[:-1]
            continue
        answers = with_reply(facts, answers, fact, reply)
        history.append(fact.id)
        keep(answers, tuple(history))
    return without_stale(facts, answers)


def _next_question(
    facts: Mapping[str, Fact], answers: AnswerSet, asked: Collection[str], relevant: Relevant | None
) -> Fact | None:
    opened = open_questions(facts, answers, asked)
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
    facts: Mapping[str, Fact], answers: AnswerSet, asked: Collection[str]
) -> frozenset[str]:
    """The questions that may still be put, now or after an answer that makes them apply."""
    left = {fact.id for fact in _not_put(facts, answers, asked)}
    waiting: set[str] = set()
    while left != waiting:  # one that waits for an answer goes with the question it waits for
        waiting = left
        left = {name for name in waiting if may_apply(facts[name], answers, facts, waiting)}
    return frozenset(left)


def skipped_questions(
    facts: Mapping[str, Fact], answers: AnswerSet, asked: Collection[str]
) -> list[Fact]:
    """The questions that apply and were not put."""
    return [fact for fact in _not_put(facts, answers, asked) if applies(fact, answers, facts)]


def _not_put(facts: Mapping[str, Fact], answers: AnswerSet, asked: Collection[str]) -> list[Fact]:

    def was_given(fact: Fact) -> bool:
        listed = fact.signal and fact.id in answers.signals
        answer = answers.known.get(fact.id, answers.known.get("signals") if listed else None)
        return answer is not None and answer.origin in GIVEN_BEFORE

    return [fact for fact in questions(facts) if fact.id not in asked and not was_given(fact)]


def for_now(facts: Mapping[str, Fact], relevant: Relevant | None) -> Relevant | None:
    """The same without questions that refine a choice, while nothing is known of the examples: the
    answer is then mostly which ones to collect. They can be answered afterwards.
    """

    def is_relevant_now(fact_id: str, answers: AnswerSet, opened: Collection[str]) -> bool:
        waits = facts[fact_id].refines and _none_stated(EXAMPLES, answers)
        return not waits and (relevant is None or relevant(fact_id, answers, opened))

    return relevant and is_relevant_now


def questions(facts: Mapping[str, Fact]) -> list[Fact]:
    """The facts the wizard asks for, in its order."""
    asked = (fact for fact in facts.values() if fact.order is not None and fact.origin == "asked")
    return sorted(asked, key=lambda fact: fact.order or 0)


def applies(fact: Fact, answers: AnswerSet, facts: Mapping[str, Fact]) -> bool:
    """Whether `ask_when` holds and nothing of `ask_without` is stated."""
    return may_apply(fact, answers, facts, ())


def may_apply(
    fact: Fact, answers: AnswerSet, facts: Mapping[str, Fact], waiting: Collection[str]
) -> bool:
    """Whether the question applies, or can come to apply by an answer to one of the waiting
    questions. `unknown` in `ask_when` matches what nobody answered.
    """
    for other, allowed in fact.ask_when.items():
        value = answer_of(answers, facts[other]) if other in facts else answers.value(other)
        if (UNKNOWN if value is None else value) not in allowed and other not in waiting:
            return False
    return _none_stated(fact.ask_without, answers)


def _none_stated(names: Sequence[str], answers: AnswerSet) -> bool:
    return all(answers.value(name) is None for name in names)


def answer_of(answers: AnswerSet, fact: Fact) -> Any:
    """What was answered; for a signal also if it was only listed under `signals`."""
    value = answers.value(fact.id)
    return True if value is None and fact.signal and fact.id in answers.signals else value


def with_reply(
    facts: Mapping[str, Fact], answers: AnswerSet, fact: Fact, reply: Reply
) -> AnswerSet:
    """The answers with a reply and what it implies; it outranks files and flags."""
    given = {fact.id: None if reply is DONT_KNOW else reply}
    values = reply.values if isinstance(reply, Several) else given
    known = {name: answer for name, answer in answers.known.items() if name not in values}
    for name, value in values.items():
        if value is not None:
            known[name] = Answer(value=value, origin="asked")
    if fact.signal:  # the list under `signals` keeps step with the signal's own answer
        before = known.pop("signals", None)
        others = tuple(name for name in answers.signals if name != fact.id)
        listed = (*others, fact.id) if reply is True else others
        if listed:
            asked = Answer(value=listed, origin="asked")
            known["signals"] = before if before and before.value == listed else asked
    answers = AnswerSet(known=known)
    for implied in fact.implied_by(values.get(fact.id)):
        answers = with_reply(facts, answers, facts[implied], True)
    return answers


def without_stale(facts: Mapping[str, Fact], answers: AnswerSet) -> AnswerSet:
    """The answers without those asked for under a condition that no longer holds."""
    for fact in questions(facts):
        answer = answers.known.get(fact.id)
        if answer is not None and answer.origin == "asked" and not applies(fact, answers, facts):
            answers = with_reply(facts, answers, fact, DONT_KNOW)
    return answers


# --------------------------------------------------------------------------- in words

SEVERAL = {name: GROUPS[name] for name in ("gpu", "budget")}  # answered by one question


def known_words(answers: AnswerSet, fact: Fact) -> str:
    """What was answered before, as it was shown then."""
    names = (fact.id, *SEVERAL.get(fact.id, ()))
    several = Several(values={name: answers.value(name) for name in names})
    return reply_words(fact, several if fact.id in SEVERAL else answer_of(answers, fact))


def short_question(fact: Fact) -> str:
    """The question without its remark in brackets, which is for answering it."""
    return fact.ask.split(" (")[0]


def reply_words(fact: Fact, reply: Reply) -> str:
    """A reply as it is shown back."""
    unknown = f"I don't know ({fact.unknown})" if fact.unknown else "I don't know"
    if isinstance(reply, Several) and fact.id == "gpu":
        parts = (reply.values.get(name) for name in ("gpus", "gpu"))
        name = " × ".join(str(part) for part in parts if part is not None)
        memory = reply.values.get("gpu_memory_gib")
        own = "this machine, without a GPU"
        named = {"none": own, "unknown": unknown, "": "this machine"}.get(name, name)
        return named + (f", {memory:g} GiB" if memory is not None else "")
    if isinstance(reply, Several) and (limits := limit_words(reply.values)):
        return limits
    value = reply.values.get(fact.id) if isinstance(reply, Several) else reply
    return unknown if value is None or value is DONT_KNOW else words_of(fact, value)


def limit_words(values: Mapping[str, Any]) -> str:
    """'$30 and 6 h' of the limits that were stated; empty without one."""
    usd, hours = values.get("budget_usd"), values.get("budget_hours")
    found = ["" if usd is None else format_usd(usd), "" if hours is None else f"{hours:g} h"]
    return " and ".join(filter(None, found))


def words_of(fact: Fact, value: Any) -> str:
    """A value as the person chose it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value in fact.values:
        return fact.values[value].label
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def given_words(facts: Mapping[str, Fact], answers: AnswerSet) -> list[str]:
    """What files and flags said already, one line each."""
    return [
        f"{fact.ask or fact.id} {words_of(fact, answer.value)} (from a {answer.origin})"
        for fact in facts.values()
        if (answer := answers.known.get(fact.id)) and answer.origin in GIVEN_BEFORE
    ]


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
