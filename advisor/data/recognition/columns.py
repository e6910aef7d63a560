"""What the cells of each column look like in a sample of rows, and columns inside columns:
{"ticket": {"text": ...}} has the column ticket.text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from advisor.data.example import (
    CALL_TURNS,
    CALLS,
    as_turns,
    read_transcript,
    role_of_speaker,
    text_of,
    turn_keys,
)
from advisor.data.formats import formats

MAX_CLASSES = 200
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,. /]*%?")
_ADDRESS = re.compile(r"\S+@\S+\.\S+|https?://\S+")
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}\.?([ T,]+\d{1,2}[:.]\d{2}.*)?")
KEPT_VALUES = 300  # distinct values kept of a column
DEPTH = 4  # objects inside objects that are looked into


class Column(Struct):
    """What a sample of one column's cells looks like."""

    filled: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    characters: int = 0
    values: set[str] = field(default_factory=set)
    # How many cells are `checkable` (a number, or end with one after ####), a `verdict`, a list of
    # `several` texts, a written `dialogue`; how many conversations are in `from_value` turns, end
    # `open` with a question, or hold `calls`.
    are: Counter[str] = field(default_factory=Counter)

    @property
    def shape(self) -> str:
        """text, number, bool, turns, texts, object or list: what most filled cells are."""
        return max(self.shapes, key=lambda shape: self.shapes[shape]) if self.shapes else "null"

    @property
    def mean_characters(self) -> float:
        return self.characters / max(1, self.filled)

    @property
    def holds_addresses(self) -> bool:
        """True for a column of e-mail addresses or links, which are no text to learn from."""
        return self._mostly(_ADDRESS.fullmatch)

    @property
    def holds_dates(self) -> bool:
        """True for a column of days or of days and times, which are no category."""
        return self._mostly(_DATE.fullmatch)

    @property
    def holds_names(self) -> bool:
        """True for a column of names of people, firms or products, which nobody asks or answers."""
        return self._mostly(_is_name)

    def _mostly(self, test: Callable[[str], object]) -> bool:
        found = sum(bool(test(value.strip())) for value in self.values)
        return found > 0.5 * len(self.values) > 0

    def is_label(self, *, named: bool) -> bool:
        """Whether the column has few distinct short values."""
        if self.shape not in ("text", "number", "bool", "texts") or not self.values:
            return False
        distinct = len(self.values)
        if distinct > MAX_CLASSES or self.mean_characters > 60:
            return False
        if named:
            return (
                self.shape == "bool"
                or distinct <= max(2, int(0.7 * self.filled))
                or distinct == self.filled == 1
            )
        return self.filled >= 8 and 2 <= distinct <= self.filled / 3


def _is_name(text: str) -> bool:
    """Whether it is one to four words that begin with a capital, small ones ("van de") apart."""
    words = text.split()
    capitals = [word for word in words if word[0].isupper()]
    small = all(len(word) <= 3 for word in words if word not in capitals)
    return bool(capitals) and len(words) <= 4 and small and not set(text) & set("?!:;0123456789")


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    """What the cells of each column look like."""
    columns: dict[str, Column] = {}
    for row in rows:
        for name, cell in row.items():
            column = columns.setdefault(str(name), Column())
            if cell is not None:
                _add(column, cell)
    return columns


def _add(column: Column, cell: Any) -> None:
    column.filled += 1
    shape, text = "object", None
    turns = as_turns(cell)
    if isinstance(cell, bool):
        shape, text = "bool", str(cell).lower()
    elif isinstance(cell, (int, float)):
        shape, text = "number", str(cell)
    elif turns is not None and turn_keys(turns[0]) is not None:
        shape = "turns"
        _add_turns(column, turns)
    elif isinstance(cell, str):
        shape, text = "text", cell
        begins = cell[:40]
        if ":" in begins or "：" in begins:
            column.are["dialogue"] += read_transcript(cell) is not None
    elif isinstance(cell, list):
        are_texts = all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in cell)
        shape, text = ("texts", ", ".join(map(str, cell))) if are_texts else ("list", None)
        column.are["several"] += len(cell) > 1 and all(isinstance(item, str) for item in cell)
    elif isinstance(cell, dict) and isinstance(cell.get("text"), list):  # SQuAD
        column.are["several"] += len(cell["text"]) > 1
    column.shapes[shape] = column.shapes.get(shape, 0) + 1
    if text is not None:
        column.are["checkable"] += checkable(text) is not None
        column.characters += len(text)
        column.are["verdict"] += text.strip().lower() in formats().is_good
        if len(column.values) <= KEPT_VALUES:
            column.values.add(text[:200])


def _add_turns(column: Column, turns: list[Any]) -> None:
    first, last = turn_keys(turns[0]), turn_keys(turns[-1])
    column.are["from_value"] += first is not None and first[0] == "from"
    role = role_of_speaker(turns[-1].get(last[0])) if last else None
    column.are["open"] += role not in ("assistant", None)
    names, keys = ("tool", "function", "observation", *CALL_TURNS), formats().turns.speaker
    column.are["calls"] += any(
        any(turn.get(key) for key in CALLS) or any(turn.get(key) in names for key in keys)
        for turn in turns
        if isinstance(turn, dict)
    )


def checkable(text: str) -> str | None:
    """The result in an answer that a program can compare: a bare number, or what stands after ####
    (GSM8K); None if there is none.
    """
    if "####" in text:
        result = text.rsplit("####", 1)[1].strip()
        return result if 0 < len(result) <= 40 else None
    return text.strip() if len(text) <= 24 and _NUMBER.fullmatch(text.strip()) else None


def text_cell(value: Any) -> str | None:
    """The text of an answer, label or context cell: text, a number, text parts, or the usual small
    objects around one.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return (
            str(value) if value == value else None
        )  # NaN: what other tools write for an empty cell
    if isinstance(value, Mapping):  # SQuAD answers, verl reward_model
        key = next((key for key in formats().inside if key in value), None)
        return None if key is None else text_cell(value[key])
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (str, int, float)) for item in value):
            return str(value[0])
        return text_of(value)
    return None


def reach(row: Mapping[str, Any], path: str) -> Any:
    """The cell of a column whose name may be a path; None if the row does not have it."""
    if path in row:
        return row[path]
    name, dot, rest = path.partition(".")
    while dot:
        inner = row.get(name)
        if isinstance(inner, Mapping):
            return reach(inner, rest)
        more, dot, rest = rest.partition(".")
        name = f"{name}.{more}"
    return None


def with_paths(row: Mapping[str, Any], paths: Iterable[str]) -> Mapping[str, Any]:
    """The row with the cells of nested columns beside its own."""
    found = {path: reach(row, path) for path in paths if path not in row}
    return {**row, **found} if found else row


def with_leaves(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every nested column beside its own."""
    return {**row, **dict(_leaves(row, "", DEPTH))}


def _leaves(row: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        path = f"{prefix}{name}"
        if isinstance(cell, Mapping) and depth and turn_keys(cell) is None:
            yield from _leaves(cell, f"{path}.", depth - 1)
        elif prefix:
            yield path, cell
