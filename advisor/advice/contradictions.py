"""What was stated together though it cannot be, each with the reason: all of it in one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advisor.advice.facts_of_situation import fact_origin, stated_values
from advisor.ground.errors import Fault
from advisor.ground.types import Answers
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import says
from advisor.situation.types import Situation

TAKE_BACK = "take one of them back"


def contradictions(ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> list[Fault]:
    """Every contradiction in what is known of a situation (rules/facts.yaml, `assume`), in what was
    stated (`refuse`), and between what a statement implies and an explicit no.
    """
    answers, said = situation.answers, stated_values(situation.answers)
    faults = []
    for names, because in _broken(ruleset, facts):
        values = {name: facts[name] for name in names}
        # What a file or a model says is said of it, whatever was stated beside it.
        where = {name: fact_origin(situation, name) for name in names}
        where |= {
            name: answers.where[name]
            for name, value in values.items()
            if name in answers.where and said.get(name) == value
        }
        of_model = any(ruleset.facts[name].origin == "model" for name in names)
        hint = (
            f"name another model, such as {situation.instead.model}"
            if of_model and situation.instead is not None
            else TAKE_BACK
        )
        faults.append(_fault(values, where, because, hint))
    return faults + contradictions_in(ruleset, situation.answers)


def contradictions_in(ruleset: Ruleset, answers: Answers) -> list[Fault]:
    """Every contradiction in what was stated; needs no machine, data or model."""
    said = stated_values(answers)
    return [
        _fault({name: said[name] for name in names}, answers.where, because)
        for names, because in _unsayable(ruleset, said)
    ]


def can_be_said(ruleset: Ruleset, said: Mapping[str, Any]) -> bool:
    """Whether a person can state all of this without contradicting themselves."""
    return next(_unsayable(ruleset, said), None) is None


def _broken(ruleset: Ruleset, facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for found in ruleset.contradictions(facts):
        yield tuple(condition.fact for condition in found.never), found.because


def _unsayable(ruleset: Ruleset, said: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for found in ruleset.refuse:
        if found.is_broken_by(said):
            yield tuple(condition.fact for condition in found.never), found.because
    rows, tokens = said.get("data_rows"), said.get("data_tokens")
    if rows and tokens and tokens < rows:
        yield ("data_rows", "data_tokens"), "every example holds a token at least"
    for name, value in said.items():
        # What a no implies gives way to an explicit no: nobody was ever asked both.
        if name not in ruleset.facts or value is False:
            continue
        for implied in ruleset.facts[name].implied_by(value):
            if said.get(implied) is False:
                because = (
                    f"if {says(ruleset.facts[name], value)}, {says(ruleset.facts[implied], True)}"
                )
                yield (name, implied), because


def _fault(
    values: Mapping[str, Any], where: Mapping[str, str], because: str, hint: str = TAKE_BACK
) -> Fault:
    said = " and ".join(
        f"{name} is {_word(value)} ({where.get(name, 'stated')})" for name, value in values.items()
    )
    return Fault(
        where=next(iter(values)), what=f"{said}: this cannot be", allowed=because, hint=hint
    )


def _word(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)
