"""Rows of a data file, one after the other, whatever the file is: (row number, raw row).

Row numbers are those an editor shows: the line in JSONL, the record in JSON and CSV, the document
in text. Files larger than memory are read as they come. All faults of a file are raised together at
its end, or collected for the caller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from json import JSONDecodeError, JSONDecoder
from typing import IO, Any

from advisor.data.read.decoding import clear_from
from advisor.data.read.encodings import NAMES
from advisor.data.read.files import (
    MOST_ROW_BYTES,
    Faults,
    broken_stream,
    find_data,
    is_broken_gzip,
    open_bytes,
    read_lines,
    too_long,
)
from advisor.data.read.found import DataFile, Found
from advisor.ground.errors import InputError

CHUNK_CHARS = 1 << 20
DELIMITER_LINES = 20  # that are looked at for what separates their values
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar"}  # said where they stand for the comma
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
DOCUMENT_MARKS = ("<|endoftext|>", "<|end_of_text|>", "\f")
LONG_LINE_CHARS = 1000  # lines this long that follow each other without blank lines are documents
PIECE_CHARS = 16_000  # a text without document marks is handed on in pieces, cut at paragraph ends
# blank-line blocks of one line at least this long are documents, shorter ones are paragraphs
LONG_BLOCK_CHARS = 200
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")


def read_rows(
    path: str | os.PathLike[str] | Found, *, faults: Faults | None = None
) -> Iterator[tuple[int, Any]]:
    """(row number, raw row) of every readable row.

    Args:
        faults: Collects what is wrong instead of raising it at the end of the file.

    Raises:
        InputError: The path is no data file, or parts of it cannot be read; all faults together.
    """
    found = path if isinstance(path, Found) else find_data(path)
    collected = Faults() if faults is None else faults
    offset = 0
    several = found.container == "text" and len(found.files) > 1
    reader = _whole_text_rows if several else READERS[found.container]
    for file in found.files:
        last = 0
        for number, row in reader(file, collected):
            last = number
            if collected.key_twice:
                collected.rows_with_key_twice.append(offset + number)
                collected.key_twice = False
            yield offset + number, row if isinstance(row, dict) else with_columns(row)
        offset += last
        if collected.full:
            break
    if faults is None:
        collected.raise_if_any()
        if offset == 0:
            raise InputError(
                "there are no rows in it",
                where=found.files[0].shown,
                hint="add one example a line, or name another file",
            )


def with_columns(row: Any) -> Any:
    """A row that is a bare text or a bare list of turns as an object with a column; anything else
    as it is.
    """
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, list) and row and isinstance(row[0], dict):
        return {"messages": row}
    return row


# --------------------------------------------------------------------------- JSON


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
            faults.note(file, "encoding", NAMES[file.encoding])
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
            text = self._decoded_otherwise(raw, self._line + rest.count("\n"), error)
        self.buffer = rest + text
        self.position = 0
        return not self.ended

    def _decoded_otherwise(self, raw: bytes, line_number: int, error: UnicodeDecodeError) -> str:
        """Bytes that are not UTF-8 in the encoding that is clear for the whole file.

        Raises the error where none is.
        """
        import codecs

        known = "encoding" in self._faults.read_as.get(self._file.shown, {})
        found = None if known else clear_from(self._file, line_number, open_bytes)
        if found is None:
            raise error
        self._faults.note(self._file, "encoding", NAMES[found])
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


# --------------------------------------------------------------------------- CSV


def csv_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """Records of a CSV or TSV file with a header line, as column -> text."""
    import csv

    # One cell may hold a whole document; the module's own limit is 128 KiB.
    csv.field_size_limit(2**31 - 1)
    delimiter = delimiter_of(file)
    if delimiter in SEPARATORS and not _ends_as_tab(file):
        faults.note(file, "separator", SEPARATORS[delimiter])
    lines = (line for number, line in read_lines(file, faults) if number > 1 or not _sep(line))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        faults.add(1, *_csv_fault(file, 1, error))
        return
    if not header:
        return
    first: list[list[str]] = []  # what was read ahead
    if any(map(_is_sentence, header)) and (second := _next_record(reader)) is not None:
        first = [second]
    if first and _is_row(header, first[0]):
        faults.note(file, "header", "no names of columns in the first line")
        first = [header, *first]
        header = [f"column_{place + 1}" for place in range(len(header))]
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice:
        faults.add(
            1,
            f"{file.shown}:1: two columns are called {', '.join(twice)}",
            "the first line must name the columns, each by its own name",
        )
        return
    # A nameless first column is what pandas writes for its index.
    header = [
        name or ("index" if position == 0 else f"column_{position + 1}")
        for position, name in enumerate(header)
    ]
    number = 0
    while True:
        started = reader.line_num + 1
        try:
            record = first.pop(0) if first else next(reader, None)
        except csv.Error as error:
            faults.add(started, *_csv_fault(file, started, error))
            if "unexpected end of data" in str(error) or faults.full:
                return
            continue
        if record is None:
            return
        if not record:
            continue
        number += 1
        if len(record) != len(header):
            hint = (
                "a text with a comma or a line break in it needs double quotes around it"
                if len(record) > len(header)
                else "every line needs all columns; an empty one still has its comma"
            )
            faults.add(
                started,
                f"{file.shown}:{started}: {len(record)} values, the header names {len(header)}"
                " columns",
                hint,
            )
            if faults.full:
                return
            continue
        yield number, dict(zip(header, record, strict=True))


def _next_record(reader: Iterator[list[str]]) -> list[str] | None:
    """The record after the first line; None where there is none, or a broken one, which reading on
    names.
    """
    import csv

    try:
        return next(reader, None)
    except csv.Error:
        return None


def _is_sentence(cell: str) -> bool:
    """Whether a cell of the first line may be a text and no name."""
    return len(cell.split()) >= 5 or (len(cell) > 12 and cell.endswith(("。", "？", "?")))


def _is_row(header: list[str], below: list[str]) -> bool:
    """Whether the first line is a row like the one below it: texts over texts, dates over dates.

    The questions of a survey are long names too; they have short answers below them, or a number
    below the name beside them.
    """
    long = any(
        _is_sentence(name) and _is_sentence(cell) and len(name) <= 4 * len(cell)
        for name, cell in zip(header, below, strict=False)
    )
    return long and all(
        _is_code(name) == _is_code(cell)
        for name, cell in zip(header, below, strict=False)
        if name and cell
    )


def _is_code(cell: str) -> bool:
    """Whether a cell is a number, a date, an address of mail or the like."""
    return " " not in cell.strip() and re.search(r"[\d@]", cell) is not None


def _csv_fault(file: DataFile, line: int, error: Exception) -> tuple[str, str]:
    message = str(error)
    if "unexpected end of data" in message:
        return (
            f"{file.shown}:{line}: a double quote is opened here and never closed",
            "close it, or write a quote inside a text twice",
        )
    if "new-line character" in message:
        return (
            f"{file.shown}:{line}: the line ends are those of an old Mac (CR alone)",
            "save the file with Unix or Windows line ends",
        )
    return (
        f"{file.shown}:{line}: broken quotes ({message})",
        "a quote inside a quoted text is written twice",
    )


def delimiter_of(file: DataFile) -> str:
    """Comma, semicolon, tab or bar: tab where the ending says so, else what a first line `sep=;`
    names, else what every line has equally often or the header line most of, outside quotes.
    """
    if _ends_as_tab(file):
        return "\t"
    lines = [line for _, line in islice(read_lines(file, Faults()), DELIMITER_LINES)]
    if lines and _sep(lines[0]):
        return lines[0].strip()[4]
    bare = [re.sub(r'"(?:[^"]|"")*"', "", line) for line in lines if line.strip()]
    counts = {mark: [line.count(mark) for line in bare] for mark in ",;\t|"}
    in_header = {mark: found[0] for mark, found in counts.items() if found and found[0]}
    # What every line has equally often; texts with commas have them as they like.
    even = {mark for mark in in_header if len(bare) > 1 and len(set(counts[mark])) == 1}
    return max(even or in_header or ",", key=lambda mark: in_header.get(mark, 0))


def _ends_as_tab(file: DataFile) -> bool:
    return file.path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))


def _sep(line: str) -> bool:
    """Whether a line is what Excel writes before the header, `sep=;`."""
    return re.fullmatch(r"sep=[,;|\t]", line.rstrip("\r\n"), re.IGNORECASE) is not None


# --------------------------------------------------------------------------- text


def text_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The documents of a text file as {"text": ...}."""
    return _text_rows(file, faults, document_style(file))


def _whole_text_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The same of one text file among several: it is one document, unless marks part it.

    Word and most browsers write a paragraph on one line, so blank lines and long lines in a file
    among others part paragraphs.
    """
    style = document_style(file)
    return _text_rows(file, faults, style if style == "marks" else "whole")


def _text_rows(file: DataFile, faults: Faults, style: str) -> Iterator[tuple[int, Any]]:
    number = 0
    for text in _documents(file, faults, style):
        if text.strip():
            number += 1
            yield number, {"text": text.strip("\r\n")}


def document_style(file: DataFile) -> str:
    """What parts the documents of a text file: "marks", "blank lines", "lines", or "whole" (the
    file is one document).

    Where every line is as long as an article, lines are documents. Blank lines part documents only
    where every block is one long line, as corpora are written; in prose and Markdown they part
    paragraphs.
    """
    blocks: list[list[int]] = [[]]  # line lengths of each block
    quiet = Faults()
    for number, line in read_lines(file, quiet):
        bare = line.strip(" \t\r\n")
        if bare in DOCUMENT_MARKS:
            return "marks"
        if bare:
            blocks[-1].append(len(bare))
        elif blocks[-1]:
            blocks.append([])
        if number >= 2000:
            break
    blocks = [block for block in blocks if block]
    lines = sorted(length for block in blocks for length in block)
    if (
        len(lines) >= 3
        and len(lines) > 2 * len(blocks)
        and lines[len(lines) // 2] >= LONG_LINE_CHARS
    ):
        return "lines"
    single = sorted(block[0] for block in blocks if len(block) == 1)
    if (
        len(blocks) >= 3
        and len(single) >= 0.95 * len(blocks)
        and single[len(single) // 2] >= LONG_BLOCK_CHARS
        and file.path.suffix.lower() not in (".md", ".markdown")
    ):
        return "blank lines"
    return "whole"


def _documents(file: DataFile, faults: Faults, style: str) -> Iterator[str]:
    lines: list[str] = []
    size_chars = 0
    for _, line in read_lines(file, faults):
        bare = line.strip(" \t\r\n")
        if style == "lines":
            yield line
            continue
        ends = bare in DOCUMENT_MARKS if style == "marks" else (style == "blank lines" and not bare)
        if not ends:
            lines.append(line)
            size_chars += len(line)
        if ends or (
            style == "whole"
            and size_chars >= PIECE_CHARS
            and (not bare or size_chars >= 2 * PIECE_CHARS)
        ):
            yield "".join(lines)
            lines, size_chars = [], 0
    yield "".join(lines)


def _arrow(file: DataFile, faults: Faults) -> Iterator[tuple[int, Any]]:
    from advisor.data.read.arrow import arrow_rows

    try:
        yield from enumerate(arrow_rows(file), 1)
    except InputError as error:
        faults.add(1, error.faults[0].headline, error.faults[0].hint)


READERS: dict[str, Callable[[DataFile, Faults], Iterator[tuple[int, Any]]]] = {
    "json": json_rows,
    "jsonl": jsonl_rows,
    "csv": csv_rows,
    "text": text_rows,
    "parquet": _arrow,
    "arrow": _arrow,
}
