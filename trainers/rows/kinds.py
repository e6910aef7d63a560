"""What a kind of rows says of itself: how a row is built, cut and compared with others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from advisor.data.example import Example
from trainers.rows.length import Cut
from trainers.rows.row import LeftOut
from trainers.rows.sequences import Array
from trainers.rows.template import Templater


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
Build = Callable[[Iterable[Example], Templater, LeftOut], Iterator[Item]]


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
