"""Rows of a JSON or JSONL file: a line each, the items of a list, objects one after the other,
or a list inside one object. Files larger than memory are read as they come.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import IO, Any

from advisor.data.read.decoding import encoding_name, legacy_encoding
from advisor.data.read.found import DataFile
from advisor.data.read.lines import (
    MOST_ROW_BYTES,
    Faults,
    broken_stream,
    is_broken_gzip,
    open_bytes,
    read_lines,
    too_long,
)

CHUNK_CHARS = 1 << 20
# A data set inside one object: {"data": [...]}.
WRAPPERS = (
    "data",
    "rows",
    "train",
    "examples",
    "instances",
    "records",
    "items",
    "entries",
    "samples",
)
LARGE_BYTES = 64 << 20  # a larger object around a list is read row by row, not at once
# An object that begins with plain values and then such a list of objects.
_WRAPPER = re.compile(
    r'\{(?:\s*"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[-+.\deE]+|true|false|null)\s*,)*\s*"('
    + "|".join(WRAPPERS)
    + r')"\s*:\s*\[(?=\s*\{(?!\s*"(?:role|from)"))'
)
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")


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
            what = "the line ends inside the row" if error.pos >= end else json_message(error)
            faults.add(
                number,
                f"{file.shown}:{number}:{min(error.pos, end) + 1}: invalid JSON: {what}",
                _json_hint(line, error),
            )
        except (ValueError, RecursionError) as error:
            faults.add(number, f"{file.shown}:{number}:1: invalid JSON: {_limit(error)}")
        else:
            yield number, row
            continue
        if faults.full:
            return


def json_message(error: JSONDecodeError) -> str:
    message = error.msg.lower().replace(
        "unterminated string starting at", "a text begins here and never ends"
    )
    return message.replace(
        "extra data", "something follows the row; one JSON object a line is wanted"
    ).removesuffix(" at")


def _json_hint(line: str, error: JSONDecodeError) -> str:
    near = line[max(0, error.pos - 20) : error.pos + 20].strip()
    if near[:1] == "'" or "{'" in near or "': " in near:
        return "names and texts need double quotes; write the rows with json.dumps"
    if (
        line.strip().endswith((",", "["))
        and line.strip()[:1] in "[{"
        and error.pos >= len(line.rstrip()) - 1
    ):
        return "remove the comma or bracket at the end of the line"
    if near.startswith(("NaN", "None", "True", "False")) or re.match(
        r"(None|True|False)\b", line[error.pos : error.pos + 6]
    ):
        return "write null, true, false instead of None, True, False"
    return ""


def _limit(error: Exception) -> str:
    return (
        "objects or lists are nested too deeply"
        if isinstance(error, RecursionError)
        else str(error)[:120]
    )


class _Text:
    """A growing window on a file's text: `buffer[position:]` is what has not been used yet."""

    def __init__(self, file: DataFile, stream: IO[bytes], faults: Faults) -> None:
        import codecs

        self.scan = JSONDecoder(object_pairs_hook=faults.object_of).raw_decode

        self._file, self._faults, self._stream = file, faults, stream
        plain = file.is_wide or file.encoding == "utf-8"
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if plain else file.encoding)()
        if file.encoding != "utf-8":
            faults.note(file, "encoding", encoding_name(file.encoding))
        self.buffer = ""
        self.position = 0
        self.ended = False
        self._line = 1
        self._column = 1

    def more(self) -> bool:
        """Read on, dropping what has been used.

        The window doubles where one value does not fit. False at the end.
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
        self.buffer = rest + text
        self.position = 0
        return not self.ended

    def _decoded_otherwise(self, raw: bytes, error: UnicodeDecodeError) -> str:
        """Bytes that are not UTF-8 in the encoding that is sure for the whole file.

        Raises the error where none is.
        """
        import codecs

        known = "encoding" in self._faults.read_as.get(self._file.shown, {})
        found = None if known else legacy_encoding(self._file, open_bytes)
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


def json_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The rows of a list of objects, read as they come; of an object that holds such a list; or of
    objects in a row.
    """
    with open_bytes(file) as stream:
        text = _Text(file, stream, faults)
        try:
            if text.skip_space() == "[":
                yield from _list_items(file, text, faults)
            else:
                yield from _objects(file, text, faults)
        except UnicodeDecodeError:
            for _ in read_lines(file, faults):  # names every bad line, which the decoder cannot
                pass
        except (OSError, EOFError) as error:
            faults.add(
                text.place(text.position)[0],
                *broken_stream(file, text.place(len(text.buffer))[0], error),
            )
        except Exception as error:
            if not is_broken_gzip(error):
                raise
            faults.add(
                text.place(text.position)[0],
                *broken_stream(file, text.place(len(text.buffer))[0], error),
            )


_BROKEN = object()


def _value(file: DataFile, text: _Text, faults: Faults) -> Any:
    """The JSON value at the window's position, or _BROKEN after its fault has been noted."""
    while True:
        try:
            value, end = text.scan(text.buffer, text.position)
        except JSONDecodeError as error:
            # At the window's edge the value may only be incomplete.
            if not text.ended and (
                error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - 16
            ):
                if len(text.buffer) - text.position > MOST_ROW_BYTES:
                    line, _ = text.place(text.position)
                    faults.add(line, *too_long(file, line))
                    return _BROKEN
                text.more()
                continue
            line, column = text.place(error.pos)
            what = (
                "the file ends inside a row (cut off?)"
                if error.pos >= len(text.buffer) - 1 or error.msg.startswith("Unterminated")
                else json_message(error)
            )
            start = text.buffer[max(0, error.pos - 200) : error.pos + 200]
            faults.add(
                line,
                f"{file.shown}:{line}:{column}: invalid JSON: {what}",
                _json_hint(start, JSONDecodeError(error.msg, start, min(200, error.pos))),
            )
            return _BROKEN
        except (ValueError, RecursionError) as error:
            line, column = text.place(text.position)
            faults.add(line, f"{file.shown}:{line}:{column}: invalid JSON: {_limit(error)}")
            return _BROKEN
        if end == len(text.buffer) and not text.ended:
            text.more()  # a number at the edge may go on
            continue
        text.position = end
        return value


def _list_items(
    file: DataFile, text: _Text, faults: Faults, *, inside: bool = False
) -> Iterator[tuple[int, Any]]:
    """The items of the list at the window's position; `inside` an object, of which more may
    follow.
    """
    text.position += 1
    number = 0
    if text.skip_space() == "]":
        return
    while True:
        value = _value(file, text, faults)
        if value is _BROKEN:
            return
        number += 1
        yield number, value
        following = text.skip_space()
        at = text.position
        text.position += 1
        if following == ",":
            if text.skip_space() != "]":
                continue
            _note(
                file,
                text,
                faults,
                text.position,
                "a comma before the closing bracket",
                "remove that comma",
            )
        elif following == "]":
            if not inside and text.skip_space():
                _note(
                    file,
                    text,
                    faults,
                    text.position,
                    "something follows the list",
                    "one list a file, or one object a line in a .jsonl file",
                )
        elif following:
            _note(file, text, faults, at, "a comma is missing between two rows")
        else:
            _note(
                file,
                text,
                faults,
                at,
                "the list never ends (cut off?)",
                "download or export it again",
            )
        return


def _note(
    file: DataFile, text: _Text, faults: Faults, position: int, what: str, hint: str = ""
) -> None:
    line, column = text.place(position)
    faults.add(line, f"{file.shown}:{line}:{column}: invalid JSON: {what}", hint)


def _objects(file: DataFile, text: _Text, faults: Faults) -> Iterator[tuple[int, Any]]:
    number = 0
    if file.path.stat().st_size > LARGE_BYTES and (
        match := _WRAPPER.match(text.buffer, text.position)
    ):
        text.position = match.end() - 1
        yield from _list_items(file, text, faults, inside=True)
        _rest_of_wrapper(file, text, faults, match.group(1))
        return
    while text.skip_space():
        value = _value(file, text, faults)
        if value is _BROKEN:
            return
        if number == 0 and isinstance(value, dict) and not text.skip_space():
            yield from enumerate(_wrapped(file, value, faults), 1)
            return
        number += 1
        yield number, value


def _rest_of_wrapper(file: DataFile, text: _Text, faults: Faults, read: str) -> None:
    """What follows the list inside its object: a second list of rows must not be lost unsaid."""
    if faults.items:
        return
    while text.skip_space() == ",":
        text.position += 1
        text.skip_space()
        key = _value(file, text, faults)
        if key is _BROKEN:
            return
        if text.skip_space() != ":":
            _note(file, text, faults, text.position, "a colon is missing")
            return
        text.position += 1
        text.skip_space()
        value = _value(file, text, faults)
        if value is _BROKEN:
            return
        if key in WRAPPERS and isinstance(value, list) and value and isinstance(value[0], dict):
            _note(
                file,
                text,
                faults,
                text.position,
                f"the file holds several lists: {read}, {key}",
                "save the one to train on as a file of its own",
            )
            return
    if text.skip_space() != "}":
        _note(
            file,
            text,
            faults,
            text.position,
            "the object never ends (cut off?)",
            "download or export it again",
        )


def _wrapped(file: DataFile, value: dict[str, Any], faults: Faults) -> list[Any]:
    """The rows of a file that is one object: the list it holds, or the object as the only row."""
    lists = [
        key
        for key in WRAPPERS
        if isinstance(value.get(key), list) and value[key] and isinstance(value[key][0], dict)
    ]
    if len(lists) == 1 and not _is_turn(value[lists[0]][0]):
        return list(value[lists[0]])
    if len(lists) > 1:
        faults.add(
            1,
            f"{file.shown}: the file holds several lists: {', '.join(lists)}",
            "save the one to train on as a file of its own",
        )
        return []
    cells = list(value.values())
    if len(cells) > 1 and all(isinstance(cell, dict) for cell in cells):
        keys = [set(cell) for cell in cells]
        by_column = all(key.isdigit() for key in keys[0]) if keys[0] else False
        how = (
            'df.to_json("train.jsonl", orient="records", lines=True)'
            if by_column
            else "save the list of its values"
        )
        faults.add(1, f"{file.shown}: one object of objects, not a list of rows", how)
        return []
    return [value]


def _is_turn(item: dict[str, Any]) -> bool:
    return ("role" in item and "content" in item) or ("from" in item and "value" in item)
