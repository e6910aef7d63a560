"""How many questions the wizard asks with and without leaving out what cannot matter, and how long
it takes to know.
"""

import os
import random
import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.advice.case import decide
from advisor.advice.questions import FITS
from advisor.ground.types import AnswerSet
from advisor.ruleset.facts import Fact, read_from
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Ruleset
from advisor.ruleset.space import cells_of
from advisor.wizard.walk import DONT_KNOW, Question, Relevance, walk
from benchmarks.measuring import Row

TITLE = (
    "questions asked over a seeded sample of situations; the method is the same as after every"
    " question"
)
SITUATIONS = int(os.environ.get("BENCHMARK_SITUATIONS", "10000"))
DONT_KNOW_SHARE = 0.2  # of the questions that may be answered so
FILE_SHARE = 0.5  # of the people who have their examples in a file
READ = {
    "data_path": "train.jsonl",
    "model": "a model",
    "gpu": "a card",
}  # questions whose answer is read for further facts


@dataclass(frozen=True)
class Person:
    """One situation: what is answered to each question, what is read from it, what would fit."""

    answers: Mapping[str, Any]
    read: Mapping[str, Any]
    fits: Mapping[str, str]

    def reply(self, question: Question) -> Any:
        value = self.answers.get(question.fact.id)
        return DONT_KNOW if value is None else value

    def facts(self, ruleset: Ruleset, answers: AnswerSet) -> dict[str, Any]:
        """What the rules know once these answers are given."""
        facts = {
            name: answer.value
            for name, answer in answers.known.items()
            if name not in ("signals", *READ)
        }
        for name in answers.signals:
            facts |= dict.fromkeys((name, *ruleset.facts[name].implies), True)
        for question in READ:
            if answers.value(question) is not None:
                facts |= {
                    name: self.read[name]
                    for name in read_from(question)
                    if self.read.get(name) is not None
                }
        return facts


def people(ruleset: Ruleset, count: int, seed: int) -> Iterator[Person]:
    """Random situations: every value that some rule tells apart is as likely as the others."""
    rng = random.Random(seed)
    conditions: dict[str, list[Any]] = {}
    for rules in ruleset.rules.values():
        for rule in rules:
            for condition in rule.when:
                conditions.setdefault(condition.fact, []).append(condition)

    def drawn(fact: Fact, *, known: bool = False) -> Any:
        values = [
            cell.value
            for cell in cells_of(fact, conditions.get(fact.id, ()))
            if cell.value is not None
        ]
        return (
            None
            if not values or (not known and not fact.required and rng.random() < DONT_KNOW_SHARE)
            else rng.choice(values)
        )

    asked = [
        fact
        for fact in ruleset.facts.values()
        if fact.origin == "asked" and fact.order is not None and fact.id not in READ
    ]
    while count:
        answers = {fact.id: drawn(fact) for fact in asked}
        answers |= {
            implied: True for fact in asked if answers[fact.id] is True for implied in fact.implies
        }
        answers |= {
            name: value
            for name, value in READ.items()
            if rng.random() > (FILE_SHARE if name == "data_path" else DONT_KNOW_SHARE)
        }
        read = {
            name: drawn(ruleset.facts[name], known=name in ("data_rows", "data_tokens"))
            for question in READ
            for name in read_from(question)
        }
        # A file has a kind, and is never the kind that stands for no data.
        read["data_kind"] = rng.choice(
            [value for value in ruleset.facts["data_kind"].values if value != "none"]
        )
        fits = {
            name: rng.choice(["fits", "tight", "too_big", "unknown"]) for name in FITS
        }  # over_budget needs a limit, which no question asks for
        if not any(
            all(condition.holds(fits.get(condition.fact)) for condition in found.never)
            for found in ruleset.assume
        ):
            count -= 1
            yield Person(answers, read, fits)


@dataclass(frozen=True)
class Round:
    """One person's way through the questions."""

    asked: int
    of: int  # questions without leaving any out
    composition: str
    in_full: str  # the composition after every question
    milliseconds: tuple[float, ...]  # to know each next question


def rounds(ruleset: Ruleset, count: int, seed: int = 0) -> Iterator[Round]:
    """Each person asked twice: with questions left out, and every question that applies."""
    for person in people(ruleset, count, seed):
        relevance = Relevance(
            ruleset,
            lambda answers, person=person: person.facts(ruleset, answers),
            lambda answers, chain, per_task, person=person: person.fits,
        )
        taken: list[float] = []
        since = time.perf_counter()

        def ask(question: Question, person: Person = person, taken: list[float] = taken) -> Any:
            nonlocal since
            taken.append(1000 * (time.perf_counter() - since))
            reply = person.reply(question)
            since = time.perf_counter()
            return reply

        few, every = asked(ruleset, ask, relevance), asked(ruleset, person.reply, None)
        outcomes = [
            str(decide(ruleset, {**person.facts(ruleset, answers), **person.fits}).composition)
            for answers, _ in (few, every)
        ]
        yield Round(len(few[1]), len(every[1]), outcomes[0], outcomes[1], tuple(taken))


def asked(
    ruleset: Ruleset, ask: Any, relevance: Relevance | None
) -> tuple[AnswerSet, Collection[str]]:
    """The answers, and the questions that were put."""
    history: Collection[str] = ()

    def keep(_: AnswerSet, so_far: tuple[str, ...]) -> None:
        nonlocal history
        history = so_far

    return walk(ruleset.facts, ask, AnswerSet(), relevant=relevance, keep=keep), history


def measure() -> list[Row]:
    ruleset = load_rules()
    found = list(rounds(ruleset, SITUATIONS))
    wrong = [one for one in found if one.composition != one.in_full]
    if wrong:
        raise AssertionError(
            f"{len(wrong)} of {len(found)} situations end elsewhere, such as {wrong[0]}"
        )
    few, every = tuple(one.asked for one in found), tuple(one.of for one in found)
    print(
        f"{len(found):,} situations; mean questions {statistics.mean(few):.2f} of"
        f" {statistics.mean(every):.2f}; every composition as after all questions\n"
    )
    return [
        Row("questions, all that apply", every, "questions"),
        Row("questions, those that matter", few, "questions"),
        Row(
            "to know the next question",
            tuple(value for one in found for value in one.milliseconds),
            "ms",
        ),
    ]
