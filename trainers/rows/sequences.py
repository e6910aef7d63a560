"""Rows and groups of rows as sequences that do not hold them: what is asked of all rows (lengths,
order, packing) is an array, and a row is made when somebody reads it.

Whoever trains on rows takes any `Sequence` of them. Of those that hold their rows in memory the
arrays are computed once per call; `trainers.rows.stored.StoredRows` has them beside the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, overload

Item = TypeVar("Item")
Array: TypeAlias = Any  # numpy's, which is imported where it is used


def lengths(rows: Sequence[Any]) -> Array:
    """Tokens of each row, or of all rows of each group; of stored rows none is made for it."""
    own = getattr(rows, "lengths", None)
    return own if own is not None else _numbers(rows, "tokens")


def learned_counts(rows: Sequence[Any]) -> Array:
    """How many tokens of each row the loss counts."""
    return _numbers(rows, "learned")


def row_places(rows: Sequence[Any]) -> Array:
    """The number of each row in its data file, from 1: equal lengths are ordered by it."""
    return _numbers(rows, "number")


def _numbers(rows: Sequence[Any], name: str) -> Array:
    import numpy

    own = getattr(rows, "numbers_of", None)
    if own is not None:
        found: Array = own(name)
        return found
    return numpy.fromiter((_number(row, name) for row in rows), numpy.int64, len(rows))


def _number(row: Any, name: str) -> int:
    """Of a row, or of a group of them as the sum."""
    return sum(getattr(one, name) for one in row) if isinstance(row, tuple) else getattr(row, name)


def values_of(rows: Iterable[Any], name: str) -> Iterator[Any]:
    """One field of each row; of rows in a file, that column alone is read."""
    own = getattr(rows, "values_of", None)
    return own(name) if own is not None else (getattr(row, name) for row in rows)


class Picked(Sequence[Item]):
    """Rows of one or several sequences, chosen and ordered by their places.

    Args:
        parts: Sequences that are numbered through, one after the other.
        places: Which of all their rows, in this order.
    """

    def __init__(self, parts: Sequence[Sequence[Item]], places: Any) -> None:
        import numpy

        self.parts = tuple(parts)
        self.places = numpy.asarray(places, dtype=numpy.int64)
        self.ends = numpy.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Picked[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Picked[Item]:
        if isinstance(index, slice):
            return Picked(self.parts, self.places[index])
        return self._at(int(self.places[index]))

    def _at(self, place: int) -> Item:
        import numpy

        if len(self.parts) == 1:
            return self.parts[0][place]
        part = int(numpy.searchsorted(self.ends, place, side="right"))
        return self.parts[part][place - (int(self.ends[part - 1]) if part else 0)]

    def __iter__(self) -> Iterator[Item]:
        return map(self._at, map(int, self.places))

    @property
    def lengths(self) -> Array:
        """The tokens of each row."""
        return self.numbers_of("tokens")

    def numbers_of(self, name: str) -> Array:
        """A number of each row, such as its tokens."""
        import numpy

        return numpy.concatenate([_numbers(part, name) for part in self.parts])[self.places]


class Singles(Sequence[tuple[Item, ...]]):
    """Rows as the sequences of a trainer, one row in each. Packed rows are `packing.Packed`."""

    def __init__(self, rows: Sequence[Item]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Item, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Item, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Item, ...] | list[tuple[Item, ...]]:
        if isinstance(index, slice):
            return [(row,) for row in self.rows[index]]
        return (self.rows[index],)

    def __iter__(self) -> Iterator[tuple[Item, ...]]:
        return ((row,) for row in self.rows)

    @property
    def lengths(self) -> Array:
        """The tokens of each sequence."""
        return lengths(self.rows)


class Beside(Sequence[tuple[Item, Item]]):
    """Each row of one sequence with the one at the same place of another."""

    def __init__(self, rows: Sequence[Item], others: Sequence[Item]) -> None:
        self.rows, self.others = rows, others

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Item, Item]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Item, Item]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Item, Item] | list[tuple[Item, Item]]:
        if isinstance(index, slice):
            return list(zip(self.rows[index], self.others[index], strict=True))
        return self.rows[index], self.others[index]


def flattened(groups: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """The rows of all groups, in the order of the groups."""
    if isinstance(groups, Singles):
        return groups.rows
    rows, order = getattr(groups, "rows", None), getattr(groups, "order", None)
    if rows is not None and order is not None:  # packed
        return Picked([rows], order)
    return [row for group in groups for row in group]
