"""Answers that are typed: asked for again with the reason until they can be read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from advisor.ruleset.facts import Fact
from advisor.wizard.outcome import Check
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply

BACK_SIGN = "<"
EMPTY = {"data_path": "I don't know, or none yet"}  # what an empty line means, else "I don't know"
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)$")
THOUSANDS_BY_POINT = re.compile(r"[0-9]{1,3}(\.[0-9]{3})+$")


def ways_out(question: Question) -> list[Option]:
    """The choices beside the answers: "I don't know", and back."""
    unknown = (
        []
        if question.fact.required
        else [Option(value=DONT_KNOW, label="I don't know", help=question.fact.unknown)]
    )
    return unknown + (
        [Option(value=BACK, label="Back", help="to the question before")]
        if question.can_go_back
        else []
    )


def typed(
    question: Question,
    ui: Ui,
    message: str,
    read: Callable[[str], Any],
    *,
    path: bool = False,
    empty: str = "",
) -> Reply:
    """A typed answer, asked for again with the reason until it can be read.

    Nothing typed is DONT_KNOW; `empty` says what that means. An answer that was given before
    stands in the line: Enter keeps it, and "?" takes it away.
    """
    empty = empty or EMPTY.get(question.fact.id, "I don't know")
    back = f"; {BACK_SIGN} and Enter: back" if question.can_go_back else ""
    default = "" if question.current is None else str(question.current)
    keeps = bool(default)
    while True:
        hint = f"Enter keeps {default}; ? and Enter: {empty}" if keeps else f"Enter alone: {empty}"
        text = ui.enter(message, hint=hint + back, default=default, path=path, keep=keeps).strip()
        if text == BACK_SIGN and question.can_go_back:
            return BACK
        if text in ("", "?"):
            return DONT_KNOW
        try:
            return read(text)
        except ValueError as error:
            ui.say(str(error), tone="warning")
            default, keeps = text, False


def checked(text: str, check: Check) -> str:
    text = os.path.expanduser(text)
    if wrong := check(text):
        raise ValueError(wrong)
    return text


def number_of(text: str, fact: Fact) -> int | float:
    """The number somebody typed: '5000', '5,000', '5 000', '5k', '1.2m'.

    Raises ValueError in words.
    """
    compact = re.sub(r"^(about|ca\.?|circa|~|≈)\s*", "", text.strip().lower())
    compact = re.sub(r"(?<=[0-9])[,_'’ \u00a0\u202f](?=[0-9]{3}(?![0-9]))", "", compact)
    compact = re.sub(r"\s+(?=[kmb]$)", "", compact)
    if fact.integer and THOUSANDS_BY_POINT.match(compact):
        raise ValueError(
            f"{text} can be read in two ways: write {compact.replace('.', '')} or"
            f" {compact.split('.')[0]}."
        )
    match = NUMBER.match(compact)
    if match is None:
        raise ValueError(f"{text} is not a number. Write it like 5000, 5,000 or 5k.")
    value = round(
        float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}[match[2]], 6
    )
    if fact.integer and value != int(value):
        raise ValueError(f"{text} is not a whole number.")
    for limit, wrong, side in (
        (fact.min, fact.min is not None and value < fact.min, "least"),
        (fact.max, fact.max is not None and value > fact.max, "most"),
    ):
        if wrong:
            raise ValueError(f"{text} is not possible: at {side} {limit:g}.")
    return int(value) if fact.integer else value
