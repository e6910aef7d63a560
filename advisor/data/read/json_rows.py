"""Rows of a JSON or JSONL file: a line each, the items of a list, objects one after the other,
or a list inside one object. Files larger than memory are read as they come.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from functools import cache
from json import JSONDecodeError, JSONDecoder
from typing import IO, Any

from advisor.data.formats import formats
from advisor.data.read.lines import (
    BROKEN,
    MOST_ROW_BYTES,
    DataFile,
    Faults,
    encoding_name,
    legacy_encoding,
    open_bytes,
    read_lines,
)

CHUNK_CHARS = 1 << 20
LARGE_BYTES = 64 << 20  # a larger object around a list is read row by row, not at once
TURNS = (("role", "content"), ("from", "value"))  # keys of a conversation's turns, no rows
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
SAVE_ONE = "save the one to train on as a file of its own"
FETCH_AGAIN = "download or export it again"


def jsonl_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """One JSON value a line; blank lines are left out."""
    decoded = JSONDecoder(object_pairs_hook=faults.object_of).decode
    for number, line in read_lines(file, faults):
        faults.key_twice = False
        try:
            row = decoded(line)
        except JSONDecodeError as error:
            if line.isspace():
                continue
            end = len(line.rstrip())
            what = "the line ends inside the row" if error.pos >= end else _message(error)
            at = f"{file.shown}:{number}:{min(error.pos, end) + 1}"
            faults.add(number, f"{at}: invalid JSON: {what}", _hint(line, error.pos))
        except (ValueError, RecursionError) as error:
            faults.add(number, f"{file.shown}:{number}:1: invalid JSON: {_limit(error)}")
        else:
            yield number, row
            continue
        if faults.full:
            return


def _message(error: JSONDecodeError) -> str:
    message = error.msg.lower()
    message = message.replace(
        "unterminated string starting at", "a text begins here and never ends"
    )
    return message.replace(
        "extra data", "something follows the row; one JSON object a line is wanted"
    ).removesuffix(" at")


def _hint(line: str, place: int) -> str:
    """What to do about JSON that is broken at a place."""
    near = line[max(0, place - 20) : place + 20].strip()
    if near[:1] == "'" or "{'" in near or "': " in near:
        return "names and texts need double quotes; write the rows with json.dumps"
    ends = line.strip().endswith((",", "[")) and place >= len(line.rstrip()) - 1
    if ends and line.strip()[:1] in "[{":
        return "remove the comma or bracket at the end of the line"
    if near.startswith(("NaN", "None", "True", "False")) or re.match(
        r"(None|True|False)\b", line[place : place + 6]
    ):
        return "write null, true, false instead of None, True, False"
    return ""


def _limit(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "objects or lists are nested too deeply"
    return str(error)[:120]


def json_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The rows of a list of objects, read as they come; of an object that holds such a list; or of
    objects in a row.
    """
    with open_bytes(file) as stream:
        text = _Window(file, stream, faults)
        try:
            yield from text.items() if text.skip_space() == "[" else text.objects()
        except _Broken:
            return
        except UnicodeDecodeError:
            for _ in read_lines(file, faults):  # names every bad line, which the decoder cannot
                pass
        except BROKEN as error:
            line, _ = text.place(text.position)
            faults.add_broken(line, file, text.place(len(text.buffer))[0], error)


class _Broken(Exception):
    """The JSON is broken, and the fault is noted."""


class _Window:
    """A growing window on a file's text: `buffer[position:]` is what has not been used yet."""

    def __init__(self, file: DataFile, stream: IO[bytes], faults: Faults) -> None:
        self.scan = JSONDecoder(object_pairs_hook=faults.object_of).raw_decode
        self._file, self._faults, self._stream = file, faults, stream
        plain = file.is_wide or file.encoding == "utf-8"
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if plain else file.encoding)()
        if file.encoding != "utf-8":
            faults.note(file, "encoding", encoding_name(file.encoding))
        self.buffer = ""
        self.position = 0
        self.ended = False
        self._line = self._column = 1

    def more(self) -> bool:
        """Read on, dropping what has been used.

        The window doubles if one value does not fit. False at the end.
        """
        if self.ended:
            return False
        self._line, self._column = self.place(self.position)
        rest = self.buffer[self.position :]
        raw = self._stream.read(max(CHUNK_CHARS, len(rest)))
        self.ended = not raw
        try:
            text = self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            text = self._decoded_otherwise(raw, error)
        self.buffer, self.position = rest + text, 0
        return not self.ended

    def _decoded_otherwise(self, raw: bytes, error: UnicodeDecodeError) -> str:
        """Bytes that are not UTF-8 in the encoding that is sure for the whole file.

        Raises the error if none is.
        """
        known = "encoding" in self._faults.read_as.get(self._file.shown, {})
        found = None if known else legacy_encoding(self._file)
        if found is None:
            raise error
        self._faults.note(self._file, "encoding", encoding_name(found))
        waiting, _ = self._decoder.getstate()
        self._decoder = codecs.getincrementaldecoder(found)()
        return self._decoder.decode(waiting + raw, final=self.ended)

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
            if not self.more():
                return ""

    def broken(self, what: str, hint: str = "", *, at: int | None = None) -> _Broken:
        """The error for JSON that is broken at a place, which is noted."""
        line, column = self.place(self.position if at is None else at)
        self._faults.add(line, f"{self._file.shown}:{line}:{column}: invalid JSON: {what}", hint)
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
                raise self.broken(_limit(error)) from None
            if end == len(self.buffer) and not self.ended:
                self.more()  # a number at the edge may go on
                continue
            self.position = end
            return value

    def items(self, *, inside: bool = False) -> Iterator[tuple[int, Any]]:
        """The items of the list at the window's position; `inside` an object, of which more may
        follow.
        """
        self.position += 1
        if self.skip_space() == "]":
            return
        number, following = 0, ","
        while following == ",":
            value = self.value()
            number += 1
            yield number, value
            following = self.skip_space()
            at = self.position
            self.position += 1
            if following == "," and self.skip_space() == "]":
                raise self.broken("a comma before the closing bracket", "remove that comma")
        if following == "]":
            if not inside and self.skip_space():
                hint = "one list a file, or one object a line in a .jsonl file"
                raise self.broken("something follows the list", hint)
        elif following:
            raise self.broken("a comma is missing between two rows", at=at)
        else:
            raise self.broken("the list never ends (cut off?)", FETCH_AGAIN, at=at)

    def objects(self) -> Iterator[tuple[int, Any]]:
        """Objects one after the other, or the list in the only one."""
        is_large = self._file.path.stat().st_size > LARGE_BYTES
        if is_large and (match := _start_of_wrapper().match(self.buffer, self.position)):
            self.position = match.end() - 1
            yield from self.items(inside=True)
            self._read_to_end_of_object(match.group(1))
            return
        number = 0
        while self.skip_space():
            value = self.value()
            if number == 0 and isinstance(value, dict) and not self.skip_space():
                yield from enumerate(self._unwrapped(value), 1)
                return
            number += 1
            yield number, value

    def _read_to_end_of_object(self, read: str) -> None:
        """What follows a list inside its object: a second list of rows must not be lost unsaid."""
        while self.skip_space() == ",":
            self.position += 1
            self.skip_space()
            key = self.value()
            if self.skip_space() != ":":
                raise self.broken("a colon is missing")
            self.position += 1
            self.skip_space()
            value = self.value()
            if key in formats().wrappers and _is_table(value):
                raise self.broken(f"the file holds several lists: {read}, {key}", SAVE_ONE)
        if self.skip_space() != "}":
            raise self.broken("the object never ends (cut off?)", FETCH_AGAIN)

    def _unwrapped(self, value: dict[str, Any]) -> list[Any]:
        """The rows of a file that is one object: the list it holds, or the object as the only
        row.
        """
        shown, lists = (
            self._file.shown,
            [key for key in formats().wrappers if _is_table(value.get(key))],
        )
        rows = value[lists[0]] if len(lists) == 1 else []
        if rows and not any({*turn} <= rows[0].keys() for turn in TURNS):
            return list(rows)
        if len(lists) > 1:
            what = f"{shown}: the file holds several lists: {', '.join(lists)}"
            self._faults.add(1, what, SAVE_ONE)
            return []
        cells = list(value.values())
        if len(cells) > 1 and all(isinstance(cell, dict) for cell in cells):
            by_column = cells[0] and all(key.isdigit() for key in cells[0])
            how = "save the list of its values"
            if by_column:
                how = 'df.to_json("train.jsonl", orient="records", lines=True)'
            self._faults.add(1, f"{shown}: one object of objects, not a list of rows", how)
            return []
        return [value]


@cache
def _start_of_wrapper() -> re.Pattern[str]:
    """An object that begins with plain values and then has a list of rows: {"data": [{...}]}."""
    return re.compile(
        r'\{(?:\s*"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[-+.\deE]+|true|false|null)\s*,)*\s*"('
        + "|".join(formats().wrappers)
        + r')"\s*:\s*\[(?=\s*\{(?!\s*"(?:role|from)"))'
    )


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
