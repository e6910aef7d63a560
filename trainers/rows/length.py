"""Rows within seq_len: a row that is too long stops the run, is left out or is cut, as the plan
says, and is always counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from advisor.ground.errors import InputError
from trainers.rows.row import IGNORED, SHOWN_ROWS, STOP_SHARE, Row, ids_of, row_numbers
from trainers.rows.sequences import Array


class Sized(Protocol):
    """What is read here of a prepared row, whatever its kind."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...


Item = TypeVar("Item", bound=Sized)
KEPT, CUT, SPLIT, TOO_LONG, NOTHING_LEFT = range(5)  # what happens to a row
Cut = Callable[[Item, int], "Item | None"]


@dataclass
class FittedRows(Generic[Item]):
    """The rows within seq_len, and what happened to the others."""

    rows: list[Item] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    split: int = 0
    notes: list[str] = field(default_factory=list)


def cut_row(row: Row, seq_len: int) -> Row | None:
    """The row without its end; None if nothing to learn would be left."""
    cut = replace(row, input_ids=row.input_ids[:seq_len], labels=row.labels[:seq_len])
    return cut if cut.learned else None


def split_text(row: Row, seq_len: int) -> Iterator[Row]:
    """A text as pieces of at most `seq_len` tokens.

    Each begins with the last token of the one before, which is read there and not learned again. So
    every token of the text except its first is learned exactly once, and every piece has something
    to predict.
    """
    for start in range(0, row.tokens - 1, seq_len - 1):
        labels = row.labels[start : start + seq_len]
        yield replace(
            row,
            input_ids=row.input_ids[start : start + seq_len],
            labels=ids_of((IGNORED, *labels[1:])) if start else labels,
        )


def fit_row(
    row: Item, *, seq_len: int, truncation: str, cut: Cut[Item] | None
) -> tuple[int, Sequence[Item]]:
    """(what happens to a row, the rows that come of it)."""
    if row.tokens <= seq_len:
        return KEPT, (row,)
    if isinstance(row, Row) and row.document:
        return SPLIT, tuple(split_text(row, seq_len))  # type: ignore[arg-type]  # Item is Row here
    if truncation != "truncate" or cut is None:
        return TOO_LONG, ()
    shorter = cut(row, seq_len)
    return (NOTHING_LEFT, ()) if shorter is None else (CUT, (shorter,))


def fit_rows(
    rows: Sequence[Item],
    *,
    seq_len: int,
    truncation: str,
    cut: Cut[Item] | None = None,
    unit: str = "rows",
    limit: str = "seq_len",
) -> FittedRows[Item]:
    """The rows within `seq_len`.

    Raises InputError if too many are over it and the plan does not say what to do.

    Args:
        truncation: stop | drop | truncate, as in the plan.
        cut: Shortens a row to so many tokens; None if nothing would be left of it. Without it,
            rows of this kind are never cut.
        unit: What messages call the rows.
        limit: What messages call `seq_len`.
    """
    import numpy

    found = [fit_row(row, seq_len=seq_len, truncation=truncation, cut=cut) for row in rows]
    record = fit_record(
        numbers=numpy.array([row.number for row in rows]),
        tokens=numpy.array([row.tokens for row in rows]),
        outcomes=numpy.array([outcome for outcome, _ in found]),
        seq_len=seq_len,
        truncation=truncation,
        is_cut=cut is not None,
        unit=unit,
        limit=limit,
    )
    return FittedRows([piece for _, pieces in found for piece in pieces], *record)


class FitRecord(NamedTuple):
    """What happened to rows that were too long."""

    dropped: int
    truncated: int
    split: int
    notes: list[str]


def fit_record(
    *,
    numbers: Array,
    tokens: Array,
    outcomes: Array,
    seq_len: int,
    truncation: str,
    is_cut: bool,
    unit: str,
    limit: str,
) -> FitRecord:
    """The counts and notes on all rows.

    Raises InputError if too many are too long and the plan does not say what to do, or if none is
    left.

    Args:
        numbers: Of each row in its file.
        tokens: Of each row before it was cut or split.
        outcomes: What `fit_row` says of each.
        seq_len, truncation, unit, limit: As for `fit_rows`.
        is_cut: Whether rows of this kind can be cut.
    """
    import numpy

    long = int(((tokens > seq_len) & (outcomes != SPLIT)).sum())
    if truncation == "stop" and long > STOP_SHARE * len(tokens):
        lengths = numpy.sort(tokens)
        ways = "truncation: drop (leave them out)" + (
            " or truncation: truncate (cut their end)" if is_cut else ""
        )
        raise InputError(
            f"{long:,} of {len(tokens):,} {unit} are longer than {limit} {seq_len} (95 % are"
            f" within {lengths[int(0.95 * (len(lengths) - 1))]:,} tokens, the longest has"
            f" {lengths[-1]:,})",
            allowed=f"truncation: stop allows {STOP_SHARE:.0%} of the {unit}",
            hint=f"raise seq_len, or set {ways}",
        )
    dropped = numbers[outcomes == TOO_LONG].tolist()
    unanswered = numbers[outcomes == NOTHING_LEFT].tolist()
    truncated, split = int((outcomes == CUT).sum()), int((outcomes == SPLIT).sum())
    notes = []
    if truncated:
        notes.append(
            f"{truncated:,} {unit} were cut at {limit} {seq_len}: their answers have no end"
        )
    if dropped:
        which = row_numbers(dropped[:SHOWN_ROWS], len(dropped))
        notes.append(
            f"{len(dropped):,} of {len(tokens):,} {unit} were left out: longer than {limit}"
            f" {seq_len} ({which})"
        )
    if unanswered:
        which = row_numbers(unanswered[:SHOWN_ROWS], len(unanswered))
        notes.append(
            f"{len(unanswered):,} {unit} were left out: nothing to learn is left of them within"
            f" {limit} {seq_len} ({which})"
        )
    if split:
        notes.append(
            f"{split:,} texts were split into pieces of {limit} {seq_len}; every token is"
            " still learned once"
        )
    if len(dropped) + len(unanswered) == len(tokens):
        raise InputError(
            f"no row fits into {limit} {seq_len}",
            hint=f"the shortest has {int(tokens.min()):,} tokens",
        )
    return FitRecord(len(dropped) + len(unanswered), truncated, split, notes)
