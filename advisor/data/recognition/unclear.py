"""Columns that nobody but the person can tell apart: what they are, how they may be read, and what
is said where nobody can be asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.data.recognition.columns import Column
from advisor.data.recognition.naming import Candidate
from advisor.data.recognition.roles import names_of, normal
from advisor.ground.errors import Fault, InputError

SHOWN_COLUMNS = 30
ALIKE = 0.8  # of a misspelt name with the known one
KNOWN_FORMATS = (
    "messages, conversations, instruction + output, prompt + completion, question + answer, text,"
    " text + label, chosen + rejected, prompt + completion + label, prompt + ground_truth"
)
IN_GENERAL = "in general --map question=COL answer=COL, or --map text=COL"


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
        *,
        columns: Sequence[str],
        row: Mapping[str, Any],
        ways: Sequence[Candidate],
    ) -> None:
        super().__init__(faults=[fault])
        self.path, self.columns, self.row, self.ways = fault.where, columns, row, tuple(ways)

    def with_command(self, command: str) -> Fault:
        """The fault with the whole command that reads the file, ready to be pasted.

        Args:
            command: All of it but the option that names the columns.
        """
        (fault,) = self.faults
        return replace(fault, hint=_hint(command, self.ways, _misspelt(self.columns)))


def several_ways(
    path: str, columns: Mapping[str, Column], row: Mapping[str, Any], ways: Sequence[Candidate]
) -> ColumnsUnclear:
    """The error for known names that allow several readings."""
    fault = Fault(
        where=path,
        what=f"the columns can be read in {len(ways)} ways: {', '.join(columns)}",
        allowed="; or ".join(f"{way.format} ({way.why}): {way.flag}" for way in ways),
        hint=_hint(f"advise check {shlex.quote(path)}", ways, ()),
    )
    return ColumnsUnclear(fault, columns=tuple(columns), row=row, ways=ways)


def no_known_columns(
    path: str, columns: Mapping[str, Column], row: Mapping[str, Any], ways: Sequence[Candidate]
) -> ColumnsUnclear:
    """The error for columns without known names."""
    seen = ", ".join(
        f"{name} ({column.shape})" for name, column in list(columns.items())[:SHOWN_COLUMNS]
    )
    ways = _with_question(ways, columns)
    near = ways[0].format if ways else "messages"
    fault = Fault(
        where=path,
        what=f"no known columns. Columns: {seen}",
        allowed=f"known formats: {KNOWN_FORMATS}; nearest: {near}",
        hint=_hint(f"advise check {shlex.quote(path)}", ways, _misspelt(list(columns))),
    )
    return ColumnsUnclear(fault, columns=tuple(columns), row=row, ways=ways)


def _with_question(
    ways: Sequence[Candidate], columns: Mapping[str, Column]
) -> tuple[Candidate, ...]:
    """The readings, or of a column that is called a question, and nothing beside it, requests
    alone.
    """
    questions = names_of("question")
    named = next((name for name in columns if normal(name) in questions), None)
    if named is None or (ways and ways[0].format != "text"):
        return tuple(ways)
    why = f"requests in `{named}` that nobody answered: for a larger model to answer, or a reward"
    return (Candidate(format="requests", mapping={"question": named}, why=why),)


def _hint(command: str, ways: Sequence[Candidate], misspelt: Sequence[str]) -> str:
    way = ways[0].flag if ways else "--map question=COL answer=COL"
    near = f" ({'; '.join(misspelt[:3])})" if misspelt else ""
    if ways and ways[0].format == "requests":
        question = ways[0].mapping["question"]
        return (
            f"there is a question but no answer; add a column and: --map question={question}"
            f" answer=COL{near}; {IN_GENERAL}; requests alone, for a larger model to learn from or"
            f" for a reward: {command} {way}"
        )
    return f"say which column is what{near}; {IN_GENERAL}; here: {command} {way}"


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
