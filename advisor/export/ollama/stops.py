"""The tokens at which an answer ends, from every place that knows one: what the model stops at
when it generates, its tokenizer, and what its chat template writes behind an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.data.measure.tokenizer import json_object, special_texts
from advisor.export.ollama.shape import Shape
from advisor.ground.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """One stop line."""

    text: str
    because: str


def stops(folder: Path, shape: Shape) -> tuple[Stop, ...]:
    """What ends an answer, each once, in the order in which it was found.

    Raises InputError if nothing does, or a number stands for no token.

    Args:
        folder: Of the result: its tokenizer, and its generation_config.json if it has one.
    """
    special = special_tokens(folder)
    found: dict[str, str] = {}
    for number in end_ids(folder):
        text = special.get(number) or _text_of_id(folder, number)
        if not text:
            raise InputError(
                f"generation_config.json ends answers with token {number}, which the tokenizer"
                " does not have",
                where=str(folder),
                hint="take the tokenizer that the model was trained with",
            )
        found.setdefault(text, "the model stops at it (generation_config.json)")
    if eos := special_texts(folder).get("eos_token"):
        found.setdefault(eos, "the end token of the tokenizer")
    marks = (*special.values(), *special_texts(folder).values())
    if turn_end := first_special(shape.answer[1], marks):
        found.setdefault(turn_end, "the chat template writes it behind an answer")
    elif mark := (shape.user[0] or shape.head).strip():
        # Turns end with no token: the model may go on with the next question.
        found.setdefault(mark, "the chat template begins the next question with it")
    if not found:
        raise InputError(
            "nothing says where an answer ends: the result has no end token",
            where=str(folder),
            hint="train it again: a run adds the end token to each answer",
        )
    return tuple(Stop(text=text, because=because) for text, because in found.items())


def end_ids(folder: Path) -> list[int]:
    """The tokens at which the model stops, by its generation_config.json."""
    given = generation_config(folder).get("eos_token_id")
    numbers = given if isinstance(given, list) else [given]
    return [number for number in numbers if isinstance(number, int)]


def generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json of a result; {} if there is none."""
    return json_object(folder / "generation_config.json")


def first_special(text: str, tokens: Sequence[str]) -> str | None:
    """The first special token in a text."""
    longest = sorted((token for token in tokens if token), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, longest)), text) if longest else None
    return found[0] if found else None


def special_tokens(folder: Path) -> dict[int, str]:
    """Number -> text of the special tokens of the tokenizer in a folder."""
    return {
        entry["id"]: entry["content"]
        for entry in json_object(folder / "tokenizer.json").get("added_tokens") or []
        if entry.get("special")
    }


def _text_of_id(folder: Path, number: int) -> str | None:
    """The text of a token, special or not; None if the tokenizer does not have it."""
    tokenizer = json_object(folder / "tokenizer.json")
    for entry in tokenizer.get("added_tokens") or []:
        if entry.get("id") == number:
            return str(entry["content"])
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # [piece, score] by number
        return str(vocabulary[number][0]) if number < len(vocabulary) else None
    return next((text for text, other in vocabulary.items() if other == number), None)
