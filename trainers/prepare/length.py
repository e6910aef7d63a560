"""Rows within seq_len: a row that is too long stops the run, is left out or is cut, as the plan
says, and is always counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from advisor.ground.errors import InputError
from trainers.prepare.row import IGNORED, SHOWN_ROWS, STOP_SHARE, Row, ids_of, row_numbers


class Sized(Protocol):
    """What is read here of a prepared row, whatever its kind."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...


Item = TypeVar("Item", bound=Sized)
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
    result: FittedRows[Item] = FittedRows()
    long = [row for row in rows if row.tokens > seq_len and not getattr(row, "document", False)]
    if truncation == "stop" and len(long) > STOP_SHARE * len(rows):
        lengths = sorted(row.tokens for row in rows)
        ways = "truncation: drop (leave them out)" + (
            " or truncation: truncate (cut their end)" if cut is not None else ""
        )
        raise InputError(
            f"{len(long):,} of {len(rows):,} {unit} are longer than {limit} {seq_len} (95 % are"
            f" within {lengths[int(0.95 * (len(lengths) - 1))]:,} tokens, the longest has"
            f" {lengths[-1]:,})",
            allowed=f"truncation: stop allows {STOP_SHARE:.0%} of the {unit}",
            hint=f"raise seq_len, or set {ways}",
        )
    dropped: list[int] = []
    unanswered: list[int] = []
    for row in rows:
        if row.tokens <= seq_len:
            result.rows.append(row)
        elif isinstance(row, Row) and row.document:
            result.split += 1
            result.rows.extend(split_text(row, seq_len))  # type: ignore[arg-type]  # Item is Row here
        elif truncation == "truncate" and cut is not None:
            shorter = cut(row, seq_len)
            if shorter is None:
                unanswered.append(row.number)
            else:
                result.truncated += 1
                result.rows.append(shorter)
        else:
            dropped.append(row.number)
    result.dropped = len(dropped) + len(unanswered)
    if result.truncated:
        result.notes.append(
            f"{result.truncated:,} {unit} were cut at {limit} {seq_len}: their answers have no end"
        )
    if dropped:
        which = row_numbers(dropped[:SHOWN_ROWS], len(dropped))
        result.notes.append(
            f"{len(dropped):,} of {len(rows):,} {unit} were left out: longer than {limit} {seq_len}"
            f" ({which})"
        )
    if unanswered:
        which = row_numbers(unanswered[:SHOWN_ROWS], len(unanswered))
        result.notes.append(
            f"{len(unanswered):,} {unit} were left out: nothing to learn is left of them within"
            f" {limit} {seq_len} ({which})"
        )
    if result.split:
        result.notes.append(
            f"{result.split:,} texts were split into pieces of {limit} {seq_len}; every token is"
            " still learned once"
        )
    if not result.rows:
        raise InputError(
            f"no row fits into {limit} {seq_len}",
            hint=f"the shortest has {min(row.tokens for row in rows):,} tokens",
        )
    return result
