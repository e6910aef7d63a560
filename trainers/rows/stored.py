"""Rows in an Arrow file, which are read when somebody asks for them: 100 million tokens within the
memory of a few.

The file is mapped into memory. A row reads a column when that column is asked for, so that training
touches token ids and never the texts beside them. Lengths are arrays in memory, twelve bytes a row.
Pages that were read are given back from time to time: they stay in the system's cache, and no
process counts them as its own.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import MemberDescriptorType
from typing import Any, Generic, TypeVar, get_type_hints, overload

from trainers.rows.row import ids_of
from trainers.rows.sequences import Array, Picked

Item = TypeVar("Item")
NUMBERS = ("tokens", "learned")  # of a row, in columns beside its fields
GIVE_BACK_BYTES = 128 << 20  # mapped pages are given back after so much has been read
FAULT_BYTES = 64 << 10  # that Linux maps around a place that is read (fault_around_bytes)


def fields_of(row: type) -> dict[str, Any]:
    """The fields of a kind of row, each with its type."""
    hints = get_type_hints(row)
    return {field.name: hints[field.name] for field in dataclasses.fields(row)}


def is_ids(hint: Any) -> bool:
    """True for a field of token ids or labels."""
    return bool(hint == Sequence[int])


def row_schema(row: type) -> Any:
    """The Arrow columns of a kind of row: its fields, and the numbers asked of all rows.

    `key` and `text` are null where they are those of the row before: a long text that was split has
    them once.
    """
    import pyarrow as pa

    types = {int: pa.int64(), bool: pa.bool_(), Sequence[int]: pa.large_list(pa.int32())}
    return pa.schema(
        [
            *(
                pa.field(name, types.get(hint, pa.large_string()))
                for name, hint in fields_of(row).items()
            ),
            *(pa.field(name, pa.int32()) for name in NUMBERS),
        ]
    )


def rows_batch(rows: Sequence[Any], kind: type, *, repeated: Sequence[bool] = ()) -> Any:
    """Rows as one Arrow record batch.

    Args:
        kind: Their class.
        repeated: Whether a row has the key and text of the row before; default: none has.
    """
    import pyarrow as pa

    schema, columns = row_schema(kind), []
    for name, hint in fields_of(kind).items():
        values = [getattr(row, name) for row in rows]
        if name in ("key", "text") and repeated:
            values = [None if same else value for value, same in zip(values, repeated, strict=True)]
        columns.append(
            _lists(values) if is_ids(hint) else pa.array(values, schema.field(name).type)
        )
    for name in NUMBERS:
        columns.append(pa.array([getattr(row, name) for row in rows], pa.int32()))
    return pa.record_batch(columns, schema=schema)


def _lists(values: Sequence[Any]) -> Any:
    """Token ids as one Arrow column, without making a Python number of each."""
    import pyarrow as pa

    offsets = [0]
    flat = ids_of(())
    for value in values:
        flat.extend(value)
        offsets.append(len(flat))
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()),
        pa.Array.from_buffers(pa.int32(), len(flat), [None, pa.py_buffer(flat)]),
    )


def rows_of_batches(batches: Iterable[Any], kind: type[Item]) -> Iterator[Item]:
    """The rows of record batches, each whole and in memory of its own."""
    fields = fields_of(kind)
    for batch in batches:
        columns = [_whole_column(batch.column(name), name, hint) for name, hint in fields.items()]
        for values in zip(*columns, strict=True):
            yield kind(**dict(zip(fields, values, strict=True)))


def _whole_column(column: Any, name: str, hint: Any) -> list[Any]:
    if is_ids(hint):
        flat, offsets = _ids_views(column)
        return [
            _ids(flat[start:end])
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
    values: list[Any] = column.to_pylist()
    if name in ("key", "text"):
        for place, value in enumerate(values):
            values[place] = values[place - 1] if value is None else value
    return values


def _ids_views(column: Any) -> tuple[Array, Array]:
    """(all numbers of a column of lists, where each list begins and the last one ends)."""
    return column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy()


def _ids(numbers: Any) -> Any:
    ids = ids_of(())
    ids.frombytes(numbers.tobytes())
    return ids


class RowFile:
    """A file of record batches, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import numpy
        import pyarrow as pa

        self.path = path
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self.map)))
        self.schema = reader.schema
        self.batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
        self.starts = numpy.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self.columns = {name: place for place, name in enumerate(self.schema.names)}
        self._views: dict[tuple[int, int], tuple[Array, Array]] = {}
        self._read_bytes = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self) -> Any:
        return RowFile, (self.path,)

    def whole_column(self, name: str, start: int, end: int) -> Array:
        """The numbers of a column between two rows, copied."""
        import numpy

        column = self.columns[name]
        parts = [
            batch.column(column).to_numpy()[max(0, start - first) : max(0, end - first)]
            for batch, first in zip(self.batches, self.starts.tolist(), strict=False)
        ]
        found = numpy.concatenate(parts) if parts else numpy.empty(0, numpy.int32)
        self.give_back()
        return found

    def value(self, row: int, name: str) -> Any:
        """One field of a row."""
        import numpy

        place = int(numpy.searchsorted(self.starts, row, side="right")) - 1
        inside, number = row - int(self.starts[place]), self.columns[name]
        column = self.batches[place].column(number)
        if str(column.type).startswith("large_list"):
            views = self._views.get((place, number))
            if views is None:
                views = self._views[place, number] = _ids_views(column)
            flat, offsets = views
            ids = _ids(flat[int(offsets[inside]) : int(offsets[inside + 1])])
            self._count(4 * len(ids))
            return ids
        if name in ("key", "text"):
            while not column[inside].is_valid:
                inside -= 1
        value = column[inside].as_py()
        self._count(len(value) if isinstance(value, str) else 8)
        return value

    def _count(self, size_bytes: int) -> None:
        self._read_bytes += max(FAULT_BYTES, size_bytes)
        if self._read_bytes > GIVE_BACK_BYTES:
            self.give_back()

    def give_back(self) -> None:
        """Let the system take the pages that were read; they come again when needed."""
        self._read_bytes = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


@cache
def _lazy_class(kind: Any) -> type | None:
    """A subclass of a kind of row that reads each field when it is asked for; None for a class
    without slots, where a default would stand in for what is not read yet.
    """
    fields = tuple(fields_of(kind))
    if not all(isinstance(getattr(kind, name, None), MemberDescriptorType) for name in fields):
        return None

    def __getattr__(self: Any, name: str) -> Any:
        if name not in fields:
            raise AttributeError(name)
        file, row = object.__getattribute__(self, "_at")
        value = file.value(row, name)
        object.__setattr__(self, name, value)
        return value

    def __eq__(self: Any, other: object) -> bool:
        return isinstance(other, kind) and all(
            getattr(self, name) == getattr(other, name) for name in fields
        )

    def __reduce__(self: Any) -> Any:
        return kind, tuple(getattr(self, name) for name in fields)

    return type(
        f"Lazy{kind.__name__}",
        (kind,),
        {
            "__slots__": ("_at",),
            "__getattr__": __getattr__,
            "__eq__": __eq__,
            "__hash__": None,
            "__reduce__": __reduce__,
        },
    )


class StoredRows(Sequence[Item], Generic[Item]):
    """Rows of a file between two places, read when they are asked for.

    Args:
        file: The file.
        kind: Their class, a dataclass.
        start, end: The first row and the one behind the last.
    """

    def __init__(self, file: RowFile, kind: type[Item], start: int, end: int) -> None:
        self.file, self.kind, self.start, self.end = file, kind, start, end
        self._known: dict[str, Array] = {}

    def __len__(self) -> int:
        return self.end - self.start

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Picked[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Picked[Item]:
        if isinstance(index, slice):
            return Picked([self], range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        kind: Any = self.kind
        lazy = _lazy_class(kind)
        if lazy is None:
            names = fields_of(kind)
            whole: Item = kind(
                **{name: self.file.value(self.start + place, name) for name in names}
            )
            return whole
        row: Item = object.__new__(lazy)
        object.__setattr__(row, "_at", (self.file, self.start + place))
        return row

    def __iter__(self) -> Iterator[Item]:
        """Every row, whole: those of a batch are made together, which takes a third of the time."""
        for batch in self._batches():
            yield from rows_of_batches([batch], self.kind)
            self.file.give_back()

    def _batches(self) -> Iterator[Any]:
        for batch, first in zip(self.file.batches, self.file.starts.tolist(), strict=False):
            start, end = max(0, self.start - first), min(batch.num_rows, self.end - first)
            if start < end:
                yield batch.slice(start, end - start)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(one == two for one, two in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    @property
    def lengths(self) -> Array:
        """The tokens of each row."""
        return self.numbers_of("tokens")

    def numbers_of(self, name: str) -> Array:
        """A number of each row, such as its tokens."""
        if name not in self._known:
            self._known[name] = self.file.whole_column(name, self.start, self.end)
        return self._known[name]

    def values_of(self, name: str) -> Iterator[Any]:
        """One field of each row."""
        hint = fields_of(self.kind)[name]
        for batch in self._batches():
            yield from _whole_column(batch.column(self.file.columns[name]), name, hint)
            self.file.give_back()

    def whole(self) -> tuple[Item, ...]:
        """All rows, in memory."""
        return tuple(self)
