"""Rows of a data file, one after the other, whatever the file is: (row number, raw row).

Row numbers are those an editor shows: the line in JSONL, the record in JSON and CSV, the document
in text. Files larger than memory are read as they come. All faults of a file are raised together at
its end, or collected for the caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from advisor.data.read.csv_rows import csv_rows
from advisor.data.read.files import find_data
from advisor.data.read.found import DataFile, Found
from advisor.data.read.json_rows import json_rows, jsonl_rows
from advisor.data.read.lines import Faults
from advisor.data.read.text_rows import text_rows, whole_text_rows
from advisor.ground.errors import InputError


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
    reader = whole_text_rows if several else READERS[found.container]
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
