"""What was stated together though it cannot be, each with the reason: all of it in one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advisor.advice.facts_of_situation import fact_origin, stated_values
from advisor.ground.errors import Fault
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import says
from advisor.situation.types import Situation


def contradictions(ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> list[Fault]:
    """Every contradiction in what is known of a situation (rules/facts.yaml, `assume`), in what was
    stated (`refuse`), and between what a statement implies and an explicit no.
    """
    said = stated_values(situation.answers)
    faults = [
        _fault(ruleset, situation, {name: facts[name] for name in names}, because)
        for names, because in _broken(ruleset, facts)
    ]
    faults += [
        _fault(ruleset, situation, {name: said[name] for name in names}, because)
        for names, because in _unsayable(ruleset, said)
    ]
    return faults


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
    ruleset: Ruleset, situation: Situation, values: Mapping[str, Any], because: str
) -> Fault:
    said = " and ".join(
        f"{name} is {_word(value)} ({fact_origin(situation, name)})"
        for name, value in values.items()
    )
    of_model = any(ruleset.facts[name].origin == "model" for name in values)
    hint = (
        f"name another model, such as {situation.instead.model}"
        if of_model and situation.instead is not None
        else "take one of them back"
    )
    return Fault(what=f"{said}: this cannot be", allowed=because, hint=hint)


def _word(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)
