"""Rows of a JSON or JSONL file: a line each, the items of a list, objects one after the other,
or a list inside one object. Files larger than memory are read as they come.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

from advisor.data.formats import formats
from advisor.data.read.lines import (
    MOST_ROW_BYTES,
    PIECE_BYTES,
    DataFile,
    Faults,
    read_lines,
    read_text,
)

TURNS = (("role", "content"), ("from", "value"))  # keys of a conversation's turns, no rows
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
# What Python's reader says of broken JSON -> what to say of it.
MESSAGES = (
    ("unterminated string starting", "a text begins here and never ends"),
    ("extra data", "something follows the row; one JSON object a line is wanted"),
)
BY_COLUMN = 'df.to_json("train.jsonl", orient="records", lines=True)'


def jsonl_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """One JSON value a line; blank lines are left out."""
    decoded = JSONDecoder(object_pairs_hook=faults.object_of).decode
    for number, line in read_lines(file, faults):
        faults.key_twice = False
        try:
            row = decoded(line)
        except (ValueError, RecursionError) as error:
            end = len(line.rstrip())
            if not end:
                continue
            at = min(error.pos, end) if isinstance(error, JSONDecodeError) else 0
            what = "the line ends inside the row" if at == end else _message(error)
            where = f"{file.shown}:{number}:{at + 1}"
            faults.add(where, number, f"invalid JSON: {what}", _hint(line, at))
        else:
            yield number, row
            continue
        if faults.full:
            return


def _message(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "objects or lists are nested too deeply"
    message = getattr(error, "msg", str(error)[:120]).lower().removesuffix(" at")
    return next((said for begins, said in MESSAGES if message.startswith(begins)), message)


def _hint(text: str, place: int) -> str:
    """What to do about JSON that is broken at a place."""
    near = text[max(0, place - 20) : place + 20].strip()
    if near[:1] == "'" or "{'" in near or "': " in near:
        return "names and texts need double quotes; write the rows with json.dumps"
    if re.match(r"(None|True|False)\b", text[place : place + 6]):
        return "write null, true, false instead of None, True, False"
    return ""


def json_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The rows of a list of objects, read as they come; of an object that holds such a list; or of
    objects in a row.
    """
    text = _Window(file, faults)
    try:
        rows = text.items() if text.skip_space() == "[" else text.objects()
        yield from enumerate(rows, 1)
    except _Broken:
        return


class _Broken(Exception):
    """The JSON is broken, and the fault is noted."""


class _Window:
    """A growing window on a file's text: `buffer[position:]` is what has not been used yet."""

    def __init__(self, file: DataFile, faults: Faults) -> None:
        self.scan = JSONDecoder(object_pairs_hook=faults.object_of).raw_decode
        self._file, self._faults, self._before = file, faults, len(faults.items)
        self._pieces = read_text(file, faults)
        self.buffer, self.position, self.ended = "", 0, False
        self._line = self._column = 1

    def more(self) -> bool:
        """Read on, dropping what has been used; the window doubles if one value does not fit.
        False at the end.
        """
        if self.ended:
            return False
        self._line, self._column = self.place(self.position)
        pieces = [self.buffer[self.position :]]
        wanted = max(PIECE_BYTES, 2 * len(pieces[0]))
        while not self.ended and sum(map(len, pieces)) < wanted:
            piece = next(self._pieces, None)
            self.ended = piece is None
            pieces.append(piece or "")
        self.buffer, self.position = "".join(pieces), 0
        return not self.ended

    def place(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the window."""
        newlines = self.buffer.count("\n", 0, position)
        if newlines:
            return self._line + newlines, position - self.buffer.rfind("\n", 0, position)
        return self._line, self._column + position

    def skip_space(self) -> str:
        """The next character that is not space, or an empty string at the end."""
        while True:
            match = _SPACE.match(self.buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.more() and self.position == len(self.buffer):
                return ""

    def broken(self, what: str, hint: str = "", *, at: int | None = None) -> _Broken:
        """The error for JSON that is broken at a place, which is noted unless the file itself broke
        off there.
        """
        if self.ended and len(self._faults.items) > self._before:
            return _Broken()
        line, column = self.place(self.position if at is None else at)
        where = f"{self._file.shown}:{line}:{column}"
        self._faults.add(where, line, f"invalid JSON: {what}", hint)
        return _Broken()

    def refused(self, what: str, hint: str) -> _Broken:
        """The error for JSON that is sound and holds no rows."""
        self._faults.add(self._file.shown, 1, what, hint)
        return _Broken()

    def value(self) -> Any:
        """The JSON value at the window's position. Raises _Broken after its fault was noted."""
        while True:
            try:
                value, end = self.scan(self.buffer, self.position)
            except JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                # At the window's edge the value may only be incomplete.
                if not self.ended and (is_open or error.pos >= len(self.buffer) - 16):
                    if len(self.buffer) - self.position > MOST_ROW_BYTES:
                        self._faults.add_too_long(self.place(self.position)[0], self._file)
                        raise _Broken from None
                    self.more()
                    continue
                is_open = is_open or error.pos >= len(self.buffer) - 1
                what = "the file ends inside a row (cut off?)" if is_open else _message(error)
                start = max(0, error.pos - 200)
                hint = _hint(self.buffer[start : error.pos + 200], error.pos - start)
                raise self.broken(what, hint, at=error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.broken(_message(error)) from None
            if end == len(self.buffer) and not self.ended:
                self.more()  # a number at the edge may go on
                continue
            self.position = end
            return value

    def parts(self, closing: str) -> Iterator[None]:
        """Stands at each part of the list or object that opens at the window's position, and ends
        behind it.
        """
        self.position += 1
        following = "" if self.skip_space() == closing else ","
        while following != closing:
            if following:
                yield
            following = self.skip_space()
            at = self.position
            self.position += 1
            if following == "," and self.skip_space() == closing:
                raise self.broken("a comma before the closing bracket", "remove that comma")
            if not following:
                what = f"the {'list' if closing == ']' else 'object'} never ends (cut off?)"
                raise self.broken(what, "download or export it again", at=at)
            if following not in (",", closing):
                raise self.broken("a comma is missing", at=at)

    def items(self) -> Iterator[Any]:
        """The items of the list at the window's position, with which the file ends."""
        for _ in self.parts("]"):
            yield self.value()
        if self.skip_space():
            hint = "one list a file, or one object a line in a .jsonl file"
            raise self.broken("something follows the list", hint)

    def objects(self) -> Iterator[Any]:
        """Objects one after the other, or the list in the only one: {"data": [{...}, ...]}."""
        if self.skip_space() == "{":
            first: dict[str, Any] = {}
            if (yield from self._list_inside(first)):
                if self.skip_space():
                    hint = "one list a file, or one object a line in a .jsonl file"
                    raise self.broken("something follows the list", hint)
            else:
                cells = list(first.values())
                are_objects = len(cells) > 1 and all(isinstance(cell, dict) for cell in cells)
                if are_objects and not self.skip_space():
                    by_column = cells[0] and all(key.isdigit() for key in cells[0])
                    how = BY_COLUMN if by_column else "save the list of its values"
                    raise self.refused("one object of objects, not a list of rows", how)
                yield first
        while self.skip_space():
            yield self.value()

    def _list_inside(self, row: dict[str, Any]) -> Generator[Any, None, str]:
        """The rows in the one list of rows that the object at the window's position holds, and the
        key of that list; without one "", and its members go into `row`.
        """
        found = ""
        for _ in self.parts("}"):
            key = self.value()
            if not isinstance(key, str) or self.skip_space() != ":":
                raise self.broken("a name in double quotes and a colon are missing")
            self.position += 1
            self._faults.key_twice = self._faults.key_twice or key in row
            if self.skip_space() != "[" or key not in formats().wrappers:
                row[key] = self.value()
                continue
            kept: list[Any] = []
            row[key], is_table = kept, False
            for _ in self.parts("]"):
                item = self.value()
                if not kept and not is_table:  # the first item decides
                    are_turns = isinstance(item, dict) and any({*one} <= {*item} for one in TURNS)
                    is_table = isinstance(item, dict) and not are_turns
                if not is_table:
                    kept.append(item)
                    continue
                if found not in ("", key):
                    what = f"the file holds several lists: {found}, {key}"
                    raise self.refused(what, "save the one to train on as a file of its own")
                found = key
                yield item
        return found
