"""Rows and groups of rows as sequences that do not hold them: what is asked of all rows (lengths,
order, packing) is an array, and a row is made when somebody reads it; and the `datasets.Dataset`
that trainers read them through.

Whoever trains on rows takes any `Sequence` of them; of a plain one the arrays are computed when
they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Array: TypeAlias = Any  # numpy's, which is imported where it is used
# Rows of a trainer -> its columns, one entry for each of them.
Columns = Callable[[Sequence[Any]], Mapping[str, Sequence[Any]]]


class View(Sequence[Any]):
    """Rows, or groups of them, that are looked up when they are asked for."""

    def at(self, place: int) -> Any:
        """The one at a place from 0."""
        raise NotImplementedError

    def numbers_of(self, name: str) -> Array:
        """A number of each row, such as its tokens; of a group of rows the sum."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return Picked([self], places) if isinstance(index, slice) else self.at(places)

    def __iter__(self) -> Iterator[Any]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(one == two for one, two in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as a list has none


def numbers_of(rows: Sequence[Any], name: str) -> Array:
    """A number of each row (tokens, learned, number); of stored rows none is made for it."""
    import numpy

    if isinstance(rows, View):
        return rows.numbers_of(name)
    return numpy.fromiter((getattr(row, name) for row in rows), numpy.int64, len(rows))


def lengths(rows: Sequence[Any]) -> Array:
    """Tokens of each row, or of all rows of each group."""
    return numbers_of(rows, "tokens")


def values_of(rows: Iterable[Any], name: str) -> Iterator[Any]:
    """One field of each row; of rows in a file, that column alone is read."""
    own = getattr(rows, "values_of", None)
    return own(name) if own is not None else (getattr(row, name) for row in rows)


def used_ids(rows: Sequence[Any], name: str) -> set[int]:
    """The different tokens in a field of token ids of all rows."""
    own = getattr(rows, "used_ids", None)
    return own(name) if own is not None else {token for row in rows for token in getattr(row, name)}


class Picked(View):
    """Rows of one or several sequences, chosen and ordered by their places.

    Args:
        parts: Sequences that are numbered through, one after the other.
        places: Which of all their rows, in this order.
    """

    def __init__(self, parts: Sequence[Sequence[Any]], places: Any) -> None:
        import numpy

        self.parts = tuple(parts)
        self.places = numpy.asarray(places, dtype=numpy.int64)
        self.starts = numpy.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Any:
        row = self.places[place]
        part = int(self.starts.searchsorted(row, side="right")) - 1
        return self.parts[part][int(row - self.starts[part])]

    def numbers_of(self, name: str) -> Array:
        import numpy

        return numpy.concatenate([numbers_of(part, name) for part in self.parts])[self.places]


class Groups(View):
    """Rows as the sequences of a trainer: one row in each, or those between two ends of an order.

    Args:
        order: The places of the rows, group after group; default: as they are.
        ends: Where each group ends among them; default: behind each row.
    """

    def __init__(self, rows: Sequence[Any], order: Array = None, ends: Array = None) -> None:
        self.rows, self.order, self.ends = rows, order, ends

    def __len__(self) -> int:
        return len(self.rows) if self.ends is None else len(self.ends)

    def at(self, place: int) -> tuple[Any, ...]:
        if self.ends is None:
            return (self.rows[place],)
        start = self.ends[place - 1] if place else 0
        return tuple(self.rows[int(row)] for row in self.order[start : self.ends[place]])

    def numbers_of(self, name: str) -> Array:
        import numpy

        found = numbers_of(self.rows, name)
        if self.ends is None:
            return found
        sums = found[self.order].cumsum(dtype=numpy.int64)[self.ends - 1]
        return numpy.diff(sums, prepend=0).astype(numpy.int32)


def flattened(groups: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The rows of all groups, in the order of the groups."""
    if not isinstance(groups, Groups):
        return [row for group in groups for row in group]
    return groups.rows if groups.order is None else Picked([groups.rows], groups.order)


# ------------------------------------------------------------------------------------ datasets


def rows_dataset(rows: Sequence[Any], columns: Columns) -> Any:
    """A `datasets.Dataset` of the rows, which are looked up and converted when they are asked for:
    each of its columns holds the places of the rows, and its transform makes the columns.

    Args:
        rows: In the order of the dataset; at least one.
        columns: Turns some of them into the columns that the trainer batches.
    """
    import numpy
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    class RowsDataset(Dataset):
        def map(self, *args: Any, **options: Any) -> Any:
            """The same: what a trainer would do to prepare rows is done."""
            return self

        def filter(self, *args: Any, **options: Any) -> Any:
            """Refused: it goes through `map`, and would keep every row without a word."""
            raise TypeError("these rows are chosen already")

    def transform(batch: Mapping[str, Sequence[int]]) -> dict[str, Sequence[Any]]:
        found = columns([rows[place] for place in next(iter(batch.values()))])
        return {name: found[name] for name in batch}

    places = pa.array(numpy.arange(len(rows), dtype=numpy.int32))
    table = pa.table(dict.fromkeys(columns([rows[0]]), places))
    made = RowsDataset(InMemoryTable(table), fingerprint=f"{id(rows):016x}")
    made.set_transform(transform)
    return made


def copied_dataset(rows: Sequence[Any], columns: Columns) -> Any:
    """The same as a table in memory, four bytes a token: some trainers put columns beside it."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    def table(some: Sequence[Any]) -> Any:
        found = columns(some)
        ids = pa.list_(pa.int32())
        types = {
            name: ids if isinstance(values[0], list) else None for name, values in found.items()
        }
        return pa.table({name: pa.array(found[name], kind) for name, kind in types.items()})

    parts = [table(rows[start : start + 1000]) for start in range(0, len(rows), 1000)]
    return Dataset(InMemoryTable(pa.concat_tables(parts)))
