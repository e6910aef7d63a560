"""Rows of a data file, one after the other, whatever the file is: (row number, raw row).

Row numbers are those an editor shows: the line in JSONL, the record in JSON and CSV, the document
in text. Files larger than memory are read as they come.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from advisor.data.read.header import column_names, header_fault
from advisor.data.read.json_rows import json_rows, jsonl_rows
from advisor.data.read.lines import DataFile, Faults, read_lines
from advisor.data.read.source import DataSource, find_data
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import open_regular
from advisor.ground.resources import install_line

Rows = Iterator[tuple[int, Any]]


def read_rows(path: str | os.PathLike[str] | DataSource, *, faults: Faults | None = None) -> Rows:
    """(row number, raw row) of every readable row.

    Args:
        faults: Collects what is wrong instead of raising it at the end of the file.

    Raises:
        InputError: The path is no data file, or parts of it cannot be read; all faults together.
    """
    source = find_data(path)
    collected = Faults() if faults is None else faults
    several = source.container == "text" and len(source.files) > 1
    reader = partial(text_rows, among_others=True) if several else READERS[source.container]
    offset = 0
    for file in source.files:
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
            raise no_rows(source.files[0].shown)


def no_rows(shown: str) -> InputError:
    """The error for a data file without rows."""
    hint = "add one example a line, or name another file"
    return InputError("there are no rows in it", where=shown, hint=hint)


def with_columns(row: Any) -> Any:
    """A bare text or a bare list of turns as an object with a column; another row as it is."""
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, list) and row and isinstance(row[0], dict):
        return {"messages": row}
    return row


# --------------------------------------------------------------------------- CSV

DELIMITER_LINES = 20  # that are looked at for what separates their values
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar"}  # said if they stand for the comma
# What Python's reader says of a broken record -> what to say of it, and what to do.
CSV_FAULTS = {
    "unexpected end of data": (
        "a double quote is opened here and never closed",
        "close it, or write a quote inside a text twice",
    ),
    "new-line character": (
        "the line ends are those of an old Mac (CR alone)",
        "save the file with Unix or Windows line ends",
    ),
    "": ("broken quotes ({error})", "a quote inside a quoted text is written twice"),
}


def csv_rows(file: DataFile, faults: Faults) -> Rows:
    """Records of a CSV or TSV file with a header line, as column -> text."""
    import csv

    # One cell may hold a whole document; the module's own limit is 128 KiB.
    csv.field_size_limit(2**31 - 1)
    lines = (line for _, line in read_lines(file, faults))
    first = list(islice(lines, DELIMITER_LINES))
    has_tabs = file.path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
    delimiter = "\t" if has_tabs else delimiter_of(first)
    if delimiter in SEPARATORS and not has_tabs:
        faults.note(file, "separator", SEPARATORS[delimiter])
    skipped = sum(map(_is_sep, first[:1]))
    reader = csv.reader(chain(first[skipped:], lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    while not faults.full:
        started = reader.line_num + 1 + skipped
        try:
            record = next(reader, None)
        except csv.Error as error:
            sign = next(sign for sign in CSV_FAULTS if sign in str(error))
            what, hint = CSV_FAULTS[sign]
            faults.add(f"{file.shown}:{started}", started, what.format(error=error), hint)
            if not header or sign == "unexpected end of data":
                return
            continue
        if record is None:
            return
        if not record:
            continue
        if not header:
            header = column_names(record)
            if what := header_fault(record):
                hint = "the first line must name the columns, each by its own short name"
                faults.add(f"{file.shown}:{started}", started, what, hint)
                return
            continue
        number += 1
        if len(record) == len(header):
            yield number, dict(zip(header, record, strict=True))
            continue
        faults.add(
            f"{file.shown}:{started}",
            started,
            f"{len(record)} values, the header names {len(header)} columns",
            "a text with a comma or a line break in it needs double quotes around it"
            if len(record) > len(header)
            else "every line needs all columns; an empty one still has its comma",
        )


def delimiter_of(lines: Sequence[str]) -> str:
    """Comma, semicolon, tab or bar: what a first line `sep=;` names, else what every line has
    equally often or the header line most of, outside quotes.
    """
    if lines and _is_sep(lines[0]):
        return lines[0].strip()[4]
    bare = [re.sub(r'"(?:[^"]|"")*"', "", line) for line in lines if line.strip()]
    counts = {mark: [line.count(mark) for line in bare] for mark in ",;\t|"}
    in_header = {mark: found[0] for mark, found in counts.items() if found and found[0]}
    # What every line has equally often; texts with commas have them as they like.
    even = {mark for mark in in_header if len(bare) > 1 and len(set(counts[mark])) == 1}
    return max(even or in_header or ",", key=lambda mark: in_header.get(mark, 0))


def _is_sep(line: str) -> bool:
    """Whether a line is what Excel writes before the header, `sep=;`."""
    return re.fullmatch(r"sep=[,;|\t]\s*", line, re.IGNORECASE) is not None


# --------------------------------------------------------------------------- text

DOCUMENT_MARKS = ("<|endoftext|>", "<|end_of_text|>", "\f")
LONG_LINE_CHARS = 1000  # lines this long that follow each other without blank lines are documents
PIECE_CHARS = 16_000  # a text without document marks is handed on in pieces, cut at paragraph ends
# blank-line blocks of one line at least this long are documents, shorter ones are paragraphs
LONG_BLOCK_CHARS = 200
STYLE_LINES = 2000  # that are looked at for what parts the documents


def text_rows(file: DataFile, faults: Faults, *, among_others: bool = False) -> Rows:
    """The documents of a text file as {"text": ...}.

    A file among others is one document, unless marks part it: Word and most browsers write a
    paragraph on one line, so blank lines and long lines part paragraphs.
    """
    style, number = document_style(file), 0
    if among_others and style != "marks":
        style = "whole"
    for text in _documents(file, faults, style):
        if text.strip():
            number += 1
            yield number, {"text": text.strip("\r\n")}


def document_style(file: DataFile) -> str:
    """What parts the documents of a text file: "marks", "blank lines", "lines", or "whole" (the
    file is one document).

    If every line is as long as an article, lines are documents. Blank lines part documents only
    if every block is one long line, as corpora are written; in prose and Markdown they part
    paragraphs.
    """
    lines = [line.strip(" \t\r\n") for _, line in islice(read_lines(file, Faults()), STYLE_LINES)]
    if any(line in DOCUMENT_MARKS for line in lines):
        return "marks"
    blocks = [[*map(len, block)] for filled, block in groupby(lines, bool) if filled]
    lengths = sorted(chain(*blocks))
    if len(lengths) >= max(3, 2 * len(blocks) + 1) and _middle(lengths) >= LONG_LINE_CHARS:
        return "lines"
    single = sorted(block[0] for block in blocks if len(block) == 1)
    are_blocks = len(blocks) >= 3 and len(single) >= 0.95 * len(blocks)
    if file.path.suffix.lower() in (".md", ".markdown") or not are_blocks:
        return "whole"
    return "blank lines" if _middle(single) >= LONG_BLOCK_CHARS else "whole"


def _middle(ordered: Sequence[int]) -> int:
    return ordered[len(ordered) // 2]


def _documents(file: DataFile, faults: Faults, style: str) -> Iterator[str]:
    lines: list[str] = []
    size_chars = 0
    for _, line in read_lines(file, faults):
        bare = line.strip(" \t\r\n")
        ends = bare in DOCUMENT_MARKS if style == "marks" else style == "blank lines" and not bare
        if not ends:
            lines.append(line)
            size_chars += len(line)
        is_piece = style == "whole" and size_chars >= PIECE_CHARS * (2 if bare else 1)
        if ends or is_piece or style == "lines":
            yield "".join(lines)
            lines, size_chars = [], 0
    yield "".join(lines)


# --------------------------------------------------------------------------- Parquet and Arrow

BATCH_ROWS = 1024


def arrow_rows(file: DataFile, faults: Faults) -> Rows:
    """Rows of a Parquet or Arrow file, a batch in memory at a time. Needs pyarrow, which the core
    does without.
    """
    need_pyarrow(file.shown)
    import pyarrow

    number = 0
    try:
        for batch in _batches(file):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    # Text that is not UTF-8 and times before year 1 are found when values are made of them.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        what = f"not a readable {file.container} file ({first})"
        faults.add(file.shown, 1, what, "download or export it again")


def _batches(file: DataFile) -> Iterator[Any]:
    if file.container == "parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(file.path) as parquet:
            yield from parquet.iter_batches(batch_size=BATCH_ROWS)
        return
    import pyarrow

    with open_regular(file.path) as raw:
        is_file = raw.read(6) == b"ARROW1"
    with pyarrow.memory_map(str(file.path)) as source:
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(source)


def need_pyarrow(shown: str) -> None:
    """Raises MachineNotReady, with the line to install, if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MachineNotReady(
            "Parquet and Arrow files need pyarrow, which is not installed",
            where=shown,
            hint=f"{install_line()}, or export the data as JSONL",
        )


def parquet_rows(file: DataFile) -> int:
    """How many rows a Parquet file says it holds."""
    need_pyarrow(file.shown)
    import pyarrow.parquet

    return int(pyarrow.parquet.ParquetFile(file.path).metadata.num_rows)


def _excel_rows(file: DataFile, faults: Faults) -> Rows:
    from advisor.data.read.excel import excel_rows

    return excel_rows(file, faults)


READERS: dict[str, Callable[[DataFile, Faults], Rows]] = {
    "json": json_rows,
    "jsonl": jsonl_rows,
    "csv": csv_rows,
    "text": text_rows,
    "parquet": arrow_rows,
    "arrow": arrow_rows,
    "excel": _excel_rows,
}
