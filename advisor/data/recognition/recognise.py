"""What a data file is: its kind, its format and which column plays which role.

A sample of rows is looked at, never the first alone. Names of columns decide if they are known
ones and the values fit; the shape of the values decides if they are not. What could be read in
two ways is an error that shows both.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.example import role_of_speaker, turn_keys
from advisor.data.formats import formats, names_of, normal, read_mapping
from advisor.data.read.lines import Faults
from advisor.data.read.rows import document_style, no_rows, read_rows
from advisor.data.read.source import DataSource, find_data
from advisor.data.recognition.columns import Column, summarise, with_leaves
from advisor.data.recognition.matching import (
    MOST_COLUMNS,
    ColumnReading,
    by_mapping,
    by_words,
    for_task,
    may_be_row,
    role_of,
    ways_to_read,
    worth_reading,
)
from advisor.ground.errors import Fault, InputError

SAMPLE_ROWS = 300
SAMPLE_BYTES = 2 << 20
SHOWN_FROM = 20  # rows, of which a person is shown one
TEXT_STYLES = {
    "marks": "documents are parted by lines such as <|endoftext|>",
    "blank lines": "documents are parted by blank lines (every block is one long line)",
    "lines": "every line is one document (they are as long as articles)",
    "whole": "the file is one document, handed on in pieces cut at paragraph ends",
}


class DataSet(Struct, frozen=True, kw_only=True):
    """A data file, found and recognised: what it holds, and how sure that is."""

    source: DataSource
    kind: str  # paired | raw_text | preference | unpaired_feedback | prompts_with_verifier
    format: str
    mapping: Mapping[str, str]  # role -> column
    confidence: str  # "certain" | "likely" | "guessed" | "stated" (by a mapping)
    why: str
    columns: tuple[str, ...] = ()  # seen in the sample, in order
    other_ways: tuple[ColumnReading, ...] = ()  # to read it, that were not taken
    notes: tuple[str, ...] = ()  # files left out, how documents are parted

    @property
    def path(self) -> str:
        return self.source.shown

    @property
    def container(self) -> str:
        return self.source.container

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that play no role."""
        used = {*self.mapping.values()} | {path.split(".")[0] for path in self.mapping.values()}
        return tuple(column for column in self.columns if column not in used)


def recognise(
    path: str | os.PathLike[str] | DataSource | DataSet,
    *,
    mapping: Mapping[str, str] | None = None,
    wanted: str | None = None,
) -> DataSet:
    """What the file is.

    Args:
        mapping: Role -> column, overrides what the names say. Roles: formats().roles.
        wanted: What the task looks for if a table holds both: "reply" or "label".

    Raises:
        InputError: Not a data file, no row can be read, no known columns, or several ways to read
        it.
    """
    if isinstance(path, DataSet):
        return path
    source = find_data(path)
    if source.container == "text" and not mapping:
        return _text_files(source)
    faults, shown, notes = Faults(), source.shown, source.notes
    rows = _sample_of_objects(source, faults)
    columns = _names(rows)
    others: tuple[ColumnReading, ...] = ()
    if mapping:
        if not set(mapping.values()) <= set(columns):  # columns inside columns: ticket.text
            rows = [with_leaves(row) for row in rows]
        stated = read_mapping(mapping, _names(rows), at=shown)
        chosen, confidence = by_mapping(stated, summarise(rows), shown), "stated"
    else:
        looks = summarise(rows)
        try:
            chosen, others = _decide(rows, looks, shown)
        except ColumnsUnclear as error:
            sheets = [one["sheet"] for one in faults.read_as.values() if "sheet" in one]
            left_out = [Fault(where=shown, what=text) for text in (*notes, *sheets)]
            broken, unclear = [*left_out, *faults.items[:SHOWN_ROWS]], error.faults[0]
            raise ColumnsUnclear(unclear, error.columns, error.row, error.ways, broken) from None
        if chosen.format in formats().lacking.get(wanted or "", ()):
            better = for_task(str(wanted), chosen, summarise(map(with_leaves, rows)))
            if better is not None:
                chosen, others = replace(better, guessed=True), (chosen, *others)
        sure = chosen.certain and not chosen.likely
        confidence = "guessed" if chosen.guessed else "certain" if sure else "likely"
        answer = looks.get(chosen.mapping.get("answer", ""))
        if answer is not None and answer.are["several"]:
            several = f"{answer.are['several']} of {answer.filled} rows looked at have several"
            column = chosen.mapping["answer"]
            notes = (*notes, f"{several} answers in `{column}`: the first is learned")
    return DataSet(
        source=source,
        kind=chosen.kind,
        format=chosen.format,
        mapping=dict(chosen.mapping),
        confidence=confidence,
        why=chosen.why,
        columns=columns,
        other_ways=others,
        notes=notes,
    )


def _text_files(source: DataSource) -> DataSet:
    why = f"{len(source.files)} text files; each is one document, a long one in several rows"
    if len(source.files) == 1:
        why = f"plain text; {TEXT_STYLES[document_style(source.files[0])]}"
    return DataSet(
        source=source,
        kind="raw_text",
        format="text",
        mapping={"text": "text"},
        confidence="certain",
        why=why,
        columns=("text",),
        notes=source.notes,
    )


def _names(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(name) for row in rows for name in row))


def _sample_of_objects(source: DataSource, faults: Faults) -> list[dict[str, Any]]:
    """Rows with columns. Raises InputError if there are none, or they are no rows to train on."""
    shown = source.shown
    sample = sample_rows(source, faults)
    rows = [row for row in sample if isinstance(row, dict) and row]
    if not rows:
        faults.raise_if_any()
        if not sample:
            raise no_rows(shown)
        raise InputError(
            f"the rows are no objects with columns (but of type {type(sample[0]).__name__})",
            "known: " + formats().in_short,
            'write each row as {"question": ..., "answer": ...}',
            where=shown,
        )
    kinds = [  # objects of OpenAI's API that people export
        "batch" if "custom_id" in row and {"body", "response"} & row.keys() else row.get("object")
        for row in rows
    ]
    for kind, (what, hint) in formats().other_objects.items():
        if 2 * kinds.count(kind) > len(rows):
            allowed = "rows to train on: messages, pairs, texts, ..."
            raise InputError(f"these are {what}", allowed, hint, where=shown)
    return rows


def sample_rows(source: DataSource, faults: Faults) -> list[Any]:
    """Rows to judge a file by: the first few hundred."""
    rows: list[Any] = []
    size_chars = 0
    for _, row in read_rows(source, faults=faults):
        rows.append(row)
        if isinstance(row, dict):  # a rough size is enough to stop early on rows of megabytes
            size_chars += sum(len(cell) for cell in row.values() if isinstance(cell, (str, list)))
        if len(rows) >= SAMPLE_ROWS or size_chars >= SAMPLE_BYTES:
            break
    return rows


def first_row(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """To show to a person: of the first rows the one with the most filled columns, with nested
    columns beside its own; empty if no row has columns.
    """
    rows = islice(read_rows(path, faults=Faults()), SHOWN_FROM)
    return max(
        (with_leaves(row) for _, row in rows if isinstance(row, dict)),
        key=lambda row: sum(cell not in (None, "", [], {}) for cell in row.values()),
        default={},
    )


def _decide(
    rows: list[dict[str, Any]], columns: Mapping[str, Column], shown: str
) -> tuple[ColumnReading, tuple[ColumnReading, ...]]:
    """The reading of the rows, and the others that were possible."""
    _refuse_single_turns(rows, shown)
    ways = ways_to_read(worth_reading(columns)) or _by_words_or_shape(rows, columns, shown)
    strong = [way for way in ways if way.certain] or ways
    if len(strong) > 1:
        raise several_ways(shown, columns, rows[0], strong)
    return strong[0], tuple(way for way in ways if way is not strong[0])


def _by_words_or_shape(
    rows: list[dict[str, Any]], main_columns: Mapping[str, Column], shown: str
) -> list[ColumnReading]:
    """Readings of columns that have no known names, nested ones too.

    Raises ColumnsUnclear if there are none but guesses.
    """

    if len(main_columns) > MOST_COLUMNS:
        raise no_known_columns(shown, main_columns, rows[0], [])
    leaves = [with_leaves(row) for row in rows]
    columns = summarise(leaves)
    ways, clear = by_words(columns)
    if clear:
        return [replace(ways[0], guessed=True)]
    shaped = [] if may_be_row(columns) else ways_to_read(main_columns, "shape")
    if not shaped:
        raise no_known_columns(shown, columns, leaves[0], ways)
    called = [way for way in shaped if role_of(way.mapping.get("label", "")) == "label"]
    return [replace(called[0], guessed=True)] if len(called) == 1 < len(shaped) else shaped


def _refuse_single_turns(rows: list[dict[str, Any]], shown: str) -> None:
    turns = 0
    for row in rows:
        keys = turn_keys(row)
        is_turn = keys is not None and isinstance(row.get(keys[1]), str)
        turns += is_turn and keys is not None and role_of_speaker(row[keys[0]]) is not None
    if turns > 0.9 * len(rows):
        raise InputError(
            f"each row is a single turn ({', '.join(list(rows[0])[:4])}), not a whole conversation",
            "one conversation is one row",
            'gather the turns of a conversation: {"messages": [{"role": "user", ...}, {"role":'
            ' "assistant", ...}]}',
            where=shown,
        )


# --------------------------------------------------------------------------- unclear columns

SHOWN_COLUMNS, SHOWN_ROWS = 30, 3
ALIKE = 0.8  # of a misspelt name with the known one


class ColumnsUnclear(InputError):
    """A file whose columns can be read in several ways, or in none that is known.

    Attributes:
        path: The file.
        columns: Names of its columns; of nested ones their paths.
        row: One row, with nested columns beside its own.
        ways: How it may be read, the likeliest first.
    """

    def __init__(
        self,
        fault: Fault,
        columns: Sequence[str],
        row: Mapping[str, Any],
        ways: Sequence[ColumnReading],
        broken: Sequence[Fault] = (),  # rows that cannot be read
    ) -> None:
        super().__init__(faults=[*broken, fault])
        self.path, self.columns, self.row, self.ways = fault.where, columns, row, tuple(ways)

    def with_command(self, command: str) -> Fault:
        """The fault with the whole command that reads the file, ready to be pasted.

        Args:
            command: All of it but the option that names the columns.
        """
        return replace(self.faults[-1], hint=_hint(command, self.ways, _misspelt(self.columns)))


def several_ways(
    path: str, columns: Mapping[str, Column], row: Mapping[str, Any], ways: Sequence[ColumnReading]
) -> ColumnsUnclear:
    """The error for known names that allow several readings."""
    fault = Fault(
        where=path,
        what=f"the columns can be read in {len(ways)} ways: {', '.join(columns)}",
        allowed="; or ".join(f"{way.format} ({way.why}): {way.flag}" for way in ways),
        hint=_hint(f"advise check {shlex.quote(path)}", ways, ()),
    )
    return ColumnsUnclear(fault, tuple(columns), row, ways)


def no_known_columns(
    path: str, columns: Mapping[str, Column], row: Mapping[str, Any], ways: Sequence[ColumnReading]
) -> ColumnsUnclear:
    """The error for columns without known names. A column that is called a question, and no answer
    beside it, may be requests alone.
    """
    roles = names_of("question", "answer")
    empty = [name for name, one in columns.items() if one.shape == "null" and normal(name) in roles]
    filled = (name for name in columns if name not in empty)
    named = next((name for name in filled if normal(name) in names_of("question")), None)
    if named is not None and (not ways or ways[0].format == "text"):
        why = f"requests in `{named}` that nobody answered: for a larger model to answer, or a"
        ways = (ColumnReading(format="requests", mapping={"question": named}, why=f"{why} reward"),)
    seen = [f"{name} ({column.shape})" for name, column in columns.items()][:SHOWN_COLUMNS]
    near = ways[0].format if ways else "messages"
    hint = _hint(f"advise check {shlex.quote(path)}", ways, _misspelt(list(columns)))
    if empty:
        hint = f"empty in every row looked at: {', '.join(empty)}; {hint}"
    if may_be_row(columns):
        hint = (
            f"if the first line is a row, put a line with the names of the columns above it; {hint}"
        )
    fault = Fault(
        where=path,
        what=f"no known columns. Columns: {', '.join(seen)}",
        allowed=f"known formats: {formats().in_short}; nearest: {near}",
        hint=hint,
    )
    return ColumnsUnclear(fault, tuple(columns), row, ways)


def _hint(command: str, ways: Sequence[ColumnReading], misspelt: Sequence[str]) -> str:
    near = f" ({'; '.join(misspelt[:3])})" if misspelt else ""
    say = f"say which column is what{near}: --map takes question and answer, or text, or others"
    if not ways:
        return say
    if ways[0].format == "requests":
        say = (
            f"there is a question but no answer; add a column of answers{near}, which --map names;"
            " requests alone, for a larger model to learn from or for a reward"
        )
    return f"{say}; here:\n    {command} {ways[0].flag}"


def _misspelt(columns: Sequence[str]) -> list[str]:
    """'anwser: did you mean answer?' for columns whose name is all but a known one."""
    import difflib

    known = names_of("question", "answer", "text", "chosen", "rejected", "messages")
    hints = []
    for name in columns[:SHOWN_COLUMNS]:
        close = difflib.get_close_matches(normal(name), known, n=1, cutoff=ALIKE)
        if close and normal(name) not in known:
            hints.append(f"{name}: did you mean '{close[0]}'?")
    return hints
