"""Rows of a CSV or TSV file, whatever separates its values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from advisor.data.read.found import DataFile
from advisor.data.read.lines import Faults, read_lines

DELIMITER_LINES = 20  # that are looked at for what separates their values
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar"}  # said where they stand for the comma


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
    twice = sorted(name for name, count in Counter(header).items() if count > 1 and name)
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
