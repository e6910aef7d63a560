"""A row in the shape that another tool's loader reads.

Each function takes a usable row (rows.py) and gives rows, or a short reason why the tool cannot
hold this one. A tool's own shapes are in tools/; here is what several have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advisor.data.example import Example, Message
from advisor.other_tools.writing.rows import (
    Shape,
)

WRONG_ORDER = "user and assistant do not take turns, beginning with the user"
LONG_ANSWER = "an answer of more than one turn"
MORE_TURNS = "more than one question"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the rows of a stage are written."""

    name: str  # what the keys that name the data depend on
    shape: Shape
    notes: tuple[str, ...] = ()  # what is another training than ours


def as_map(turn: Message) -> dict[str, Any]:
    """One message as a map."""
    return {"role": turn.role, "content": turn.content, **turn.extra}


def as_maps(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as maps."""
    return [as_map(turn) for turn in messages]


def tools_of(example: Example) -> dict[str, Any]:
    """The column of tools, if the row has some."""
    return {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}


def texts(example: Example) -> list[dict[str, Any]] | str:
    """A row of plain text."""
    return [{"text": example.text}]


def messages(example: Example) -> list[dict[str, Any]] | str:
    """A whole conversation."""
    return [{"messages": as_maps(example.messages), **tools_of(example)}]
