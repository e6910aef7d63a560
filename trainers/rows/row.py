"""One training sequence as token ids and labels, a count of rows that cannot be trained on, what a
kind of rows says of itself, and what becomes of rows that are too long.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy

from advisor.data.example import Example
from advisor.data.example import normalise_text as normalise_text
from advisor.data.examples import MAX_UNUSABLE_SHARE, SHOWN_ROWS, Tally
from advisor.ground.errors import Fault, InputError

Array: TypeAlias = Any  # numpy's, which is imported where it is used
IGNORED = -100  # the label of a token that is read but not learned


class Unusable(Exception):
    """A row that cannot be trained on, and why.

    Caught by whoever counts rows; it never ends a run.
    """


def ids_of(numbers: Iterable[int]) -> array[int]:
    """Token ids or labels in four bytes each: a tuple of Python numbers takes ten times as much."""
    return array("i", numbers)


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence.

    `key` and `text` decide on which side of the split a row of any kind stands. They are not kept:
    a row that is read from the run folder has none.
    """

    number: int  # the row's number in the data file, from 1
    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt: str  # as the template writes it, for sample answers; empty for raw text
    shown: str  # the last question of the prompt, for people
    expected: str
    key: str = ""  # equal for rows that ask the same
    text: str = ""  # equal for rows that say the same
    document: bool = False  # raw text, or a piece of it: can be split without loss

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        # The first token is never predicted.
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(slots=True)
class LeftOut:
    """Rows that cannot be trained on: which, by reason."""

    rows: dict[str, Tally] = field(default_factory=dict)
    # the first twenty, with what exactly was wrong
    first: list[tuple[int, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(tally.count for tally in self.rows.values())

    def add(self, number: int, reason: str, detail: str = "") -> None:
        """Count a row. `detail` is the part of the reason that differs from row to row."""
        self.rows.setdefault(reason, Tally()).add(number)
        if len(self.first) < SHOWN_ROWS:
            self.first.append((number, f"{reason}: {detail}" if detail else reason))

    def merge(self, later: LeftOut) -> None:
        """Count also the rows that were left out of what comes later in the file."""
        for reason, tally in later.rows.items():
            own = self.rows.setdefault(reason, Tally())
            own.count, own.rows = own.count + tally.count, (own.rows + tally.rows)[:SHOWN_ROWS]
        self.first.extend(later.first[: SHOWN_ROWS - len(self.first)])

    def lines(self) -> list[str]:
        """One sentence a reason: '3 rows left out: no token to learn (rows 4, 9, 17)'."""
        return [
            f"{tally.in_words} left out: {reason} ({tally.rows_in_words})"
            for reason, tally in self.rows.items()
        ]

    def raise_if_too_many(self, seen: int) -> None:
        """Raise InputError, each row named, if more than 5 % of the rows cannot be used."""
        if self.total <= MAX_UNUSABLE_SHARE * seen:
            return
        faults = [Fault(where=f"row {number}", what=text) for number, text in self.first]
        what = (
            "no row can be used"
            if self.total == seen
            else f"{self.total:,} of {seen:,} rows cannot be used"
        )
        hint = (
            "repair or remove these rows; `advise check` with --show-row and --model shows one as"
            " the trainers see it"
        )
        last = Fault(
            what=what,
            allowed=f"up to {MAX_UNUSABLE_SHARE:.0%} may be left out, with a count",
            hint=hint,
        )
        # The total comes last, and is shown even if there are more faults than an error shows.
        raise InputError(faults=[*faults[: SHOWN_ROWS - 1], last])


# ------------------------------------------------------------------------------------ kinds


class PreparedRow(Protocol):
    """What the pipeline needs of a row, whatever its kind."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def learned(self) -> int: ...


Item = TypeVar("Item", bound=PreparedRow)
# Gets an example and a `template.Templater`; gives its rows, or raises Unusable.
Build = Callable[[Example, Any], Sequence[Item]]
Cut = Callable[[Item, int], "Item | None"]


def mark_of(value: object) -> int:
    """Eight bytes of a digest of a value that two rows are compared by."""
    content = repr(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Item]):
    """One kind of rows: what an objective trains on."""

    name: str  # in the cache and in messages
    row: type[Item]
    build: Build[Item]
    cut: Cut[Item] | None
    unit: str = "rows"
    limit: str = "seq_len"  # what messages call the longest length
    mark: Callable[[Item], object] | None = None  # what rows are compared by, beside their texts
    contrary: str = ""  # what is said of rows with the text of another row and another mark
    once: bool = False  # of the rows with one mark the first alone
    stratified: bool = False  # hold out the same share of the rows of each mark

    def rows(self, examples: Iterable[Example], templater: Any, left: LeftOut) -> Iterator[Item]:
        """The rows of the examples; an example that gives none is counted in `left`."""
        for example in examples:
            try:
                yield from self.build(example, templater)
            except Unusable as error:
                left.add(example.row, *error.args)


# ------------------------------------------------------------------------------------ lengths

KEPT, CUT, SPLIT, TOO_LONG, NOTHING_LEFT = range(5)  # what happens to a row


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


class Limits(NamedTuple):
    seq_len: int
    truncation: str  # stop | drop | truncate
    seed: int  # of the split


def fit_row(row: Item, kind: Kind[Item], limits: Limits) -> tuple[int, Sequence[Item]]:
    """(what happens to a row, the rows that come of it)."""
    if row.tokens <= limits.seq_len:
        return KEPT, (row,)
    if isinstance(row, Row) and row.document:
        return SPLIT, tuple(split_text(row, limits.seq_len))  # type: ignore[arg-type]  # Item is Row
    if limits.truncation != "truncate" or kind.cut is None:
        return TOO_LONG, ()
    shorter = kind.cut(row, limits.seq_len)
    return (NOTHING_LEFT, ()) if shorter is None else (CUT, (shorter,))


def fit_record(rows: Array, kind: Kind[Any], limits: Limits) -> dict[str, Any]:
    """How many rows were `dropped`, `truncated` and `split`, and `notes` on that.

    Raises InputError if too many are too long and the plan does not say what to do, or if none is
    left.

    Args:
        rows: `number`, `tokens` before it was cut or split, and `outcome` of each row.
        kind: Theirs.
        limits: What they have to fit into.
    """
    numbers, tokens, outcomes = (rows[name] for name in ("number", "tokens", "outcome"))
    seq_len, truncation, unit, limit = limits.seq_len, limits.truncation, kind.unit, kind.limit
    long = int(((tokens > seq_len) & (outcomes != SPLIT)).sum())
    if truncation == "stop" and long > MAX_UNUSABLE_SHARE * len(tokens):
        lengths = numpy.sort(tokens)
        ways = "truncation: drop (leave them out)" + (
            " or truncation: truncate (cut their end)" if kind.cut is not None else ""
        )
        raise InputError(
            f"{long:,} of {len(tokens):,} {unit} are longer than {limit} {seq_len} (95 % are"
            f" within {lengths[int(0.95 * (len(lengths) - 1))]:,} tokens, the longest has"
            f" {lengths[-1]:,})",
            allowed=f"truncation: stop allows {MAX_UNUSABLE_SHARE:.0%} of the {unit}",
            hint=f"raise seq_len, or set {ways}",
        )
    truncated, split = int((outcomes == CUT).sum()), int((outcomes == SPLIT).sum())
    notes = []
    if truncated:
        notes.append(
            f"{truncated:,} {unit} were cut at {limit} {seq_len}: their answers have no end"
        )
    dropped = 0
    for outcome, text in (
        (TOO_LONG, f"of {len(tokens):,} {unit} were left out: longer than {limit} {seq_len}"),
        (
            NOTHING_LEFT,
            f"{unit} were left out: nothing to learn is left of them within {limit} {seq_len}",
        ),
    ):
        gone = numbers[outcomes == outcome].tolist()
        dropped += len(gone)
        if gone:
            notes.append(f"{len(gone):,} {text} ({Tally(len(gone), gone).rows_in_words})")
    if split:
        notes.append(
            f"{split:,} texts were split into pieces of {limit} {seq_len}; every token is"
            " still learned once"
        )
    if dropped == len(tokens):
        raise InputError(
            f"no row fits into {limit} {seq_len}",
            hint=f"the shortest has {int(tokens.min()):,} tokens",
        )
    return {"dropped": dropped, "truncated": truncated, "split": split, "notes": notes}
