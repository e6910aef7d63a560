"""A change that would lead elsewhere, as answers: what "what would change it?" and the ways out do
when they are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.advice.types import Advice, Flip
from advisor.ground.types import Answer, Answers
from advisor.ruleset.facts import Fact
from advisor.wizard.machine import CARD_FACTS
from advisor.wizard.walk import DONT_KNOW, Several, with_reply
from advisor.wizard.words import words_of

DATA_FACTS = (
    "data_path",
    "data_kind",
    "data_rows",
    "data_tokens",
    "data_mapping",
    "data_examples",
    "tasks",
)
LIMITS = ("budget", "budget_usd", "budget_hours")
START = {"base": "base_model_untuned", "instruct": "instruct_model_start"}


def flip_words(flip: Flip, facts: Mapping[str, Fact]) -> str:
    """The change as the answer that a person would give: 'How much may it cost? Quality comes
    first'.
    """
    if len(flip.change) == 1 and flip.effort != "money":
        (name, value), by_name = next(iter(flip.change.items())), _by_name(facts)
        if name == "checkpoint_kind" and value in START:
            name, value = START[value], True
        fact = by_name.get(name)
        if fact is not None and fact.ask and fact.type in ("choice", "flag"):
            return f"{fact.ask.split(' (')[0]} {words_of(fact, value)}"
    text = flip.text or ", ".join(f"{name} = {value}" for name, value in flip.change.items())
    return text[0].upper() + text[1:]


def change_answers(
    answers: Answers, change: Mapping[str, Any], advice: Advice, facts: Mapping[str, Fact]
) -> Answers:
    """The answers with a change taken in, named as in an answers file; None takes an answer away.

    Where what the data hold is changed, the data file is set aside and what was read from it is
    kept as stated.
    """
    by_name = _by_name(facts)
    for name, value in change.items():
        fact_id = by_name[name].id if name in by_name else name
        if fact_id in DATA_FACTS:
            answers = _without_files(answers, advice, facts)
        if fact_id == "budget":
            answers = _set(answers, {**dict.fromkeys(LIMITS), "budget": value}, facts)
        elif fact_id == "gpu":
            answers = _set(answers, {**dict.fromkeys(CARD_FACTS), "gpu": value}, facts)
        elif fact_id == "params_b":
            answers = _set(answers, {"model": None, "model_params_b": value}, facts)
        elif fact_id == "model":
            answers = _set(answers, {"model": value, "model_params_b": None}, facts)
        elif fact_id == "checkpoint_kind":
            for start, signal in START.items():
                answers = with_reply(
                    facts, answers, facts[signal], True if start == value else DONT_KNOW
                )
        else:
            answers = with_reply(
                facts, answers, facts[fact_id], DONT_KNOW if value is None else value
            )
    return answers


def _by_name(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {name: fact for fact in facts.values() for name in (fact.id, fact.answer or fact.id)}


def _set(answers: Answers, values: Mapping[str, Any], facts: Mapping[str, Fact]) -> Answers:
    return with_reply(facts, answers, facts[next(iter(values))], Several(values=values))


def _without_files(answers: Answers, advice: Advice, facts: Mapping[str, Fact]) -> Answers:
    """What was read from the data, as if it had been stated."""
    if answers.value("data_path") is None and answers.value("tasks") is None:
        return answers
    read = {
        name: advice.facts[name]
        for name in ("data_kind", "data_rows", "data_tokens")
        if advice.facts.get(name) is not None
    }
    known = {name: answer for name, answer in answers.known.items() if name not in DATA_FACTS}
    return Answers(
        known={
            **known,
            **{name: Answer(value=value, origin="asked") for name, value in read.items()},
        }
    )
