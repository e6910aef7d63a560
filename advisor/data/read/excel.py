"""Rows of an Excel file: its cells as text, as a person sees them. Needs openpyxl, which only the
extra [office] brings.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from itertools import islice
from typing import Any

from msgspec import Struct

from advisor.data.read.header import column_names, header_fault
from advisor.data.read.lines import MOST_ROW_BYTES, DataFile, Faults
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import install_line

MOST_ROWS, MOST_CELLS = 1 << 20, 50_000_000  # of a sheet by Excel itself; of a file read here
HEADER_ROWS = 50  # that are looked at for the names of the columns
AS_CSV = "open it and save it as CSV (UTF-8)"
ROW = re.compile(rb"<(?:\w+:)?row[ />]")
# A formula that no program has computed, as libraries write it: its cell is read as empty.
UNSOLVED = re.compile(rb"<f[ />][^<]*(?:</f>)?<(?:/c>|v ?/>)")
# A literal, a blank as wide as a sign, a filler, a colour or currency, and one token of a date.
LITERAL = re.compile(r'"([^"]*)"|\\(.)|_.|\*.|\[\$([^\]-]*)[^\]]*\]|\[[^\]]*\]')
NUMBER = re.compile(r"[#0?][#0?,]*(?:\.([0#?]+))?")
DATE_TOKEN = re.compile(r"yyyy|yy|mm?|dd?|hh?|ss?|AM/PM|.", re.DOTALL)
# How Excel keeps a date that each country sees in its own order.
OF_THE_COUNTRY = ("mm-dd-yy", "m/d/yy h:mm", "m/d/yy", "m/d/yyyy")


class Table(Struct, frozen=True):
    """A sheet that names its columns."""

    sheet: Any  # of openpyxl
    header: int  # the number of the row with the names, from 1
    names: tuple[str, ...]


def excel_rows(file: DataFile, faults: Faults) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of the largest sheet, and of those with the same columns, by their numbers in Excel:
    those of a further sheet follow the last one's.
    """
    need_openpyxl(file)
    book = None
    try:
        book = _open(file)
        offset = cells = 0
        for table in _tables(book, file, faults):
            number = 0
            for number, row in _numbered(table.sheet):
                cells += len(row)
                if number > MOST_ROWS or cells > MOST_CELLS:
                    what = "the sheet has more rows or cells than Excel writes"
                    faults.add(f"{file.shown}:{offset + number}", number, what, AS_CSV)
                    return
                texts = [cell_text(cell) for cell in row]
                if number > table.header and any(texts):
                    yield offset + number, _with_names(table.names, texts)
            offset += number
    except InputError as error:
        faults.items += error.faults
        faults.rows.append(1)
    except Exception as error:  # openpyxl raises nearly anything on a damaged file
        why = str(error).partition("\n")[0][:160] or type(error).__name__
        what = f"not a readable Excel file ({why})"
        faults.add(file.shown, 1, what, f"{AS_CSV}, or download it again")
    finally:
        if book is not None:
            book.close()


def count_rows(file: DataFile) -> int:
    """How many rows the sheets that are read hold, near enough for a large file."""
    book = _open(file)
    try:
        return sum(_row_count(one.sheet) - one.header for one in _tables(book, file, Faults()))
    finally:
        book.close()


def need_openpyxl(file: DataFile) -> None:
    """Raises MachineNotReady, with the line to install, if openpyxl is not installed."""
    if importlib.util.find_spec("openpyxl") is None:
        raise MachineNotReady(
            "Excel files need openpyxl, which is not installed",
            where=file.shown,
            hint=f"{install_line('office')}, or {AS_CSV}",
        )


def _open(file: DataFile) -> Any:
    """The workbook, read row by row. Raises InputError if it unpacks to too much."""
    from openpyxl import load_workbook

    # zipfile reads no more of a part than is said here, so that it cannot lie.
    with zipfile.ZipFile(file.path) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > MOST_ROW_BYTES:
        what = f"it unpacks to {unpacked >> 20:,} MiB, and at most {MOST_ROW_BYTES >> 20} are read"
        raise InputError(what, where=file.shown, hint=AS_CSV)
    # It tells what it leaves out of a page's looks.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"openpyxl\.")
    return load_workbook(file.path, read_only=True, data_only=True)


def _numbered(sheet: Any) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return enumerate(sheet.iter_rows(), 1)


def _tables(book: Any, file: DataFile, faults: Faults) -> list[Table]:
    """The sheet with the most rows, and those with the same columns; the others are noted."""
    sheets = list(book.worksheets)
    tables = [table for table in map(_table, sheets) if table is not None]
    if not tables:
        return []
    seen = [one for one in tables if one.sheet.sheet_state == "visible"] or tables
    largest = max(seen, key=lambda one: _row_count(one.sheet)) if len(seen) > 1 else seen[0]
    chosen = [one for one in seen if one.names == largest.names]
    if what := header_fault(largest.names):
        hint = "one row must name the columns, each by its own short name"
        raise InputError(what, where=f"{file.shown}:{largest.header}", hint=hint)
    left = [one.sheet.title for one in tables if one not in chosen]
    said = f"sheet{'s' if len(chosen) > 1 else ''} {', '.join(one.sheet.title for one in chosen)}"
    if largest.header > 1:
        said += f" with its columns named in row {largest.header} (what is above is left out)"
    if left:
        said += f"; not read: {', '.join(left)} (save a sheet as CSV to take it in its place)"
    # Such files come from programs, which write all formulas alike: the beginning tells.
    unsolved = sum(len(UNSOLVED.findall(next(_raw(one.sheet), b""))) for one in chosen)
    if unsolved:
        said += f"; not read: {unsolved:,} formulas without a result (open the file, and save it)"
    if left or len(chosen) > 1 or largest.header > 1 or unsolved:
        faults.note(file, "sheet", said)
    return chosen


def _table(sheet: Any) -> Table | None:
    """The sheet by its header: the first row with two names, or else with one."""
    sheet.reset_dimensions()  # a wrong one would hide rows, and some are left out
    first: tuple[int, list[str]] | None = None
    for number, row in islice(_numbered(sheet), HEADER_ROWS):
        texts = [cell_text(cell).strip() for cell in row]
        if (filled := sum(map(bool, texts))) and (first is None or filled > 1):
            first = (number, texts)
        if filled > 1:
            break
    if first is None:
        return None
    number, texts = first
    while texts and not texts[-1]:
        texts.pop()
    return Table(sheet, number, tuple(column_names(texts)))


def _row_count(sheet: Any) -> int:
    """The rows of a sheet by their marks, in a twentieth of the time that reading them takes."""
    count, tail = 0, b""
    for piece in _raw(sheet):
        text = tail + piece
        count += len(ROW.findall(text))
        tail = text[text.rfind(b"<") :]
        count -= len(ROW.findall(tail))
    return count + len(ROW.findall(tail))


def _raw(sheet: Any) -> Iterator[bytes]:
    """The sheet as it is written, in pieces."""
    with sheet._get_source() as part:
        while piece := part.read(1 << 20):
            yield piece


def _with_names(names: tuple[str, ...], texts: list[str]) -> dict[str, str]:
    """Column -> text; what stands right of the last name has a column of its own."""
    more = {
        f"column_{place}": text for place, text in enumerate(texts[len(names) :], len(names) + 1)
    }
    texts = [*texts, *("" for _ in names)][: len(names)]
    return dict(zip(names, texts, strict=True)) | {
        name: text for name, text in more.items() if text
    }


# --------------------------------------------------------------------------- cells


def cell_text(cell: Any) -> str:
    """What a person sees in a cell: 19%, 1,234.50 €, 12.03.2025."""
    value = cell.value
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).upper()
    form = str(cell.number_format).split(";")[0]
    if isinstance(value, int | float):
        return _number_text(value, form)
    return _date_text(value, form) if isinstance(value, date | time) else str(value)


def _number_text(value: float, form: str) -> str:
    plain = LITERAL.sub(lambda found: found[1] or found[2] or found[3] or "", form)
    block = NUMBER.search(plain)
    if block is None or block[0].endswith(",") or set(plain) & set("/eE@"):
        return str(int(value)) if value == int(value) else f"{value:.15g}"
    if "%" in plain:
        value *= 100
    whole, _, decimals = block[0].partition(".")
    width = whole.count("0") + (1 + len(decimals) if decimals else 0)
    text = f"{abs(value):0{width}{',' if ',' in whole else ''}.{len(decimals)}f}"
    spare = len(decimals) - len(decimals.rstrip("#"))
    while spare and text.endswith("0"):
        text, spare = text[:-1], spare - 1
    sign = "-" if value < 0 else ""
    return f"{plain[: block.start()]}{sign}{text.rstrip('.')}{plain[block.end() :]}".strip()


def _date_text(value: Any, form: str) -> str:
    """The date as its format lays it out; year-month-day where this depends on the country, or
    names months.
    """
    form = LITERAL.sub(lambda found: found[1] or found[2] or "", form)
    if form in OF_THE_COUNTRY or re.search("mmm|ddd|General", form):
        if not isinstance(value, datetime):
            return str(value.isoformat())
        return value.isoformat(" ", "minutes").removesuffix(" 00:00")
    return "".join(_date_parts(value, DATE_TOKEN.findall(form)))


def _date_parts(value: Any, tokens: Iterable[str]) -> Iterator[str]:
    marks = {"y": "%Y", "d": "%d", "h": "%H", "s": "%S"}
    tokens, after_hour = list(tokens), False
    twelve = "AM/PM" in tokens
    for place, part in enumerate(tokens):
        letter = part[:1]
        if part == "AM/PM":
            yield value.strftime("%p")
        elif letter == "m" or letter in marks:
            mark = marks.get(letter, "%m")
            seconds = next((one for one in tokens[place + 1 :] if one[:1] in "ymdhs"), "")
            if letter == "m" and (after_hour or seconds[:1] == "s"):
                mark = "%M"
            mark = {"yy": "%y"}.get(part, "%I" if twelve and letter == "h" else mark)
            text = value.strftime(mark)
            yield text.lstrip("0") or "0" if len(part) == 1 else text
            after_hour = letter == "h"
        else:
            yield part
