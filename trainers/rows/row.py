"""One training sequence as token ids and labels, what a kind of rows says of itself, and a count of
rows that cannot be trained on.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from advisor.data.example import Example
from advisor.data.example import normalise_text as normalise_text
from advisor.ground.errors import Fault, InputError
from trainers.rows.sequences import Array

IGNORED = -100  # the label of a token that is read but not learned
# With more unusable or over-long rows than this the run stops. advisor.data refuses a file at the
# same share.
STOP_SHARE = 0.05
SHOWN_ROWS = 20


class Unusable(Exception):
    """A row that cannot be trained on, and why.

    Caught by whoever counts rows; it never ends a run.
    """


def ids_of(numbers: Iterable[int]) -> array[int]:
    """Token ids or labels in four bytes each: a tuple of Python numbers takes ten times as much."""
    return array("i", numbers)


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence."""

    number: int  # the row's number in the data file, from 1
    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt: str  # as the template writes it, for sample answers; empty for raw text
    shown: str  # the last question of the prompt, for people
    expected: str
    key: str  # equal for rows that ask the same
    text: str  # equal for rows that say the same
    document: bool = False  # raw text, or a piece of it: can be split without loss

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        # The first token is never predicted.
        return sum(label != IGNORED for label in self.labels[1:])


def rows_word(count: int) -> str:
    """'1 row' or '4 rows'."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def row_numbers(numbers: Sequence[int], count: int) -> str:
    """'row 4' or 'rows 4, 9, 17, ...'."""
    few = numbers[:5]
    return (
        f"row{'' if count == 1 else 's'}"
        f" {', '.join(map(str, few))}{', ...' if count > len(few) else ''}"
    )


@dataclass(slots=True)
class LeftOut:
    """Rows that cannot be trained on: how many and which, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)  # the first twenty of each reason
    # the first twenty, with what exactly was wrong
    first: list[tuple[int, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, number: int, reason: str, detail: str = "") -> None:
        """Count a row. `detail` is the part of the reason that differs from row to row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        rows = self.rows.setdefault(reason, [])
        if len(rows) < SHOWN_ROWS:
            rows.append(number)
        if len(self.first) < SHOWN_ROWS:
            self.first.append((number, f"{reason}: {detail}" if detail else reason))

    def merge(self, later: LeftOut) -> None:
        """Count also the rows that were left out of what comes later in the file."""
        for reason, count in later.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            rows = self.rows.setdefault(reason, [])
            rows.extend(later.rows[reason][: SHOWN_ROWS - len(rows)])
        self.first.extend(later.first[: SHOWN_ROWS - len(self.first)])

    def lines(self) -> list[str]:
        """One sentence a reason: '3 rows left out: no token to learn (rows 4, 9, 17)'."""
        return [
            f"{rows_word(count)} left out: {reason} ({row_numbers(self.rows[reason], count)})"
            for reason, count in self.counts.items()
        ]

    def raise_if_too_many(self, seen: int) -> None:
        """Raise InputError, each row named, if more than 5 % of the rows cannot be used."""
        if self.total <= STOP_SHARE * seen:
            return
        faults = [Fault(where=f"row {number}", what=text) for number, text in self.first]
        what = (
            "no row can be used"
            if self.total == seen
            else f"{self.total:,} of {seen:,} rows cannot be used"
        )
        hint = (
            "repair or remove these rows; `advise check DATA --show-row N --model M` shows one as"
            " the trainers see it"
        )
        last = Fault(
            what=what, allowed=f"up to {STOP_SHARE:.0%} may be left out, with a count", hint=hint
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
    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=PreparedRow)
# Gets an example and a `template.Templater`; gives its rows, or raises Unusable.
Build = Callable[[Example, Any], Sequence[Item]]
Cut = Callable[[Item, int], "Item | None"]


def mark_of(value: object) -> int:
    """Eight bytes of a digest of a value that two rows are compared by."""
    content = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """All rows of a file as a review sees them: one number each, in the order of the file."""

    numbers: Array  # of their lines
    texts: Array  # equal for rows that say the same
    marks: Array  # equal for rows with an equal `Kind.mark`
    names: Mapping[int, str]  # mark -> what it stands for, if the kind keeps it

    def contrary(self) -> list[int]:
        """The numbers of the rows whose text another row has with another mark."""
        import numpy

        _, first, text_of = numpy.unique(self.texts, return_index=True, return_inverse=True)
        differs = self.marks != self.marks[first][text_of]
        several = numpy.zeros(len(first), bool)
        several[text_of[differs]] = True
        found: list[int] = self.numbers[several[text_of]].tolist()
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """What a look at all rows finds."""

    notes: list[str] = field(default_factory=list)
    keep: Array | None = None  # which rows; None: all of them
    columns: Mapping[str, Array] = field(default_factory=dict)  # a field's value for each row


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Item]):
    """One kind of rows: what an objective trains on.

    Its functions stand at the top of a module, so that other processes find them.
    """

    name: str  # in the cache and in messages
    row: type[Item]
    build: Build[Item]
    cut: Cut[Item] | None
    unit: str = "rows"
    limit: str = "seq_len"  # what messages call the longest length
    # what `review` compares rows by, beside their texts
    mark: Callable[[Item], object] | None = None
    keeps_marks: bool = False  # the values themselves too: few different texts
    review: Callable[[Marked], Review] | None = None
    stratified: bool = False  # hold out the same share of the rows of each mark

    def rows(self, examples: Iterable[Example], templater: Any, left: LeftOut) -> Iterator[Item]:
        """The rows of the examples, numbers of classes aside; an example that gives none is counted
        in `left`.
        """
        for example in examples:
            try:
                yield from self.build(example, templater)
            except Unusable as error:
                left.add(example.row, *error.args)
