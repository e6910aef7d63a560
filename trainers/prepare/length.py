"""Rows within seq_len: what is too long stops the run, is left out or is cut, as the plan says, and
is always counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from advisor.ground.errors import InputError
from trainers.prepare.row import IGNORED, SHOWN_ROWS, STOP_SHARE, Row, ids_of, row_numbers


class Sized(Protocol):
    """What every kind of prepared row tells."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...


Item = TypeVar("Item", bound=Sized)
Cut = Callable[[Item, int], "Item | None"]


@dataclass
class Fitted(Generic[Item]):
    """The rows within seq_len, and what became of the others."""

    rows: list[Item] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    split: int = 0
    notes: list[str] = field(default_factory=list)


def cut_row(row: Row, seq_len: int) -> Row | None:
    """The row without its end; None where nothing to learn would be left."""
    cut = replace(row, input_ids=row.input_ids[:seq_len], labels=row.labels[:seq_len])
    return cut if cut.learned else None


def pieces(row: Row, seq_len: int) -> Iterator[Row]:
    """A text as pieces of at most `seq_len` tokens.

    Each begins with the last token of the one before, which is read there and not learned again: so
    every token of the text but its first is learned exactly once, and no piece is left with nothing
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
    cut: Cut[Item] | None = cut_row,
    unit: str = "rows",
    limit: str = "seq_len",
) -> Fitted[Item]:
    """The rows within `seq_len`.

    Raises InputError where too many are over it and the plan does not say what to do.

    Args:
        truncation: stop | drop | truncate, as in the plan.
        cut: Makes a row shorter, or says None where nothing would be left of it. None: rows of this
            kind are never cut.
        unit: What the rows are called where people read it.
        limit: What `seq_len` is called there.
    """
    result: Fitted[Item] = Fitted()
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
            result.rows.extend(pieces(row, seq_len))  # type: ignore[arg-type]
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
            f"{result.split:,} texts were parted into pieces of {limit} {seq_len}; every token is"
            " still learned once"
        )
    if not result.rows:
        raise InputError(
            f"no row fits into {limit} {seq_len}",
            hint=f"the shortest has {min(row.tokens for row in rows):,} tokens",
        )
    return result


__all__ = ["Fitted", "cut_row", "fit_rows", "pieces"]
