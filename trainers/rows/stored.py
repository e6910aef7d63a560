"""Rows in an Arrow file, which are read when somebody asks for them: 100 million tokens within the
memory of a few.

The file is mapped into memory. What is asked of all rows is an array in memory, four to eight bytes
a row. Pages that were read are given back from time to time: they stay in the system's cache, and
no process counts them as its own.

Beside the rows, in the order of the data file, a second Arrow file has the places of those to train
on before those held out. A JSON file with counts and notes is written last and says what the other
two have to be: without it, or with other bytes in one of them, nothing was prepared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from advisor.ground.files import DISK, TEMPORARY, cannot_write
from trainers.job.files import keep_value, kept_value, make_folder
from trainers.rows.row import ids_of
from trainers.rows.sequences import Array, View

NUMBERS = ("tokens", "learned")  # of a row, in columns beside its fields
BATCH_ROWS, BATCH_BYTES = 8192, 32 << 20  # of a record batch: the first that is reached
READ_AT_ONCE = 256  # rows; then the pages around them are given back


@cache
def fields_of(row: type) -> dict[str, Any]:
    """The fields of a kind of row, each with its type."""
    hints = get_type_hints(row)
    return {field.name: hints[field.name] for field in dataclasses.fields(row)}


def rows_batch(rows: Sequence[Any], kind: type, repeated: Sequence[bool]) -> Any:
    """Rows as one Arrow record batch: their fields, and the numbers asked of all rows.

    Args:
        kind: Their class.
        repeated: Whether a row is a later piece of the text of the row before: its `key` and `text`
            are null, so that a long text that was split has them once.
    """
    import pyarrow as pa

    types = {int: pa.int64(), bool: pa.bool_()}
    columns = {}
    for name, hint in fields_of(kind).items():
        values = [getattr(row, name) for row in rows]
        if name in ("key", "text"):
            values = [None if same else value for value, same in zip(values, repeated, strict=True)]
        columns[name] = (
            _lists(values)
            if hint == Sequence[int]
            else pa.array(values, types.get(hint, pa.large_string()))
        )
    for name in NUMBERS:
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.int32())
    return pa.record_batch(columns)


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


class RowsWriter:
    """Writes record batches into a file, small ones put together; the file goes with the context
    unless it was renamed.

    Raises MachineNotReady if the disk does not take them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        self._file: Any = None
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0

    def __enter__(self) -> RowsWriter:
        make_folder(self.path.parent)
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError):
            self._close()
        DISK.discard(self.path)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._writer.close()
            file.close()

    def add(self, batch: Any) -> None:
        """Add rows behind the others."""
        self._waiting.append(batch)
        self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        try:
            if self._writer is None:
                self._file = pa.OSFile(str(self.path), "wb")
                self._writer = pa.ipc.new_file(self._file, self._waiting[0].schema)
            table = pa.Table.from_batches(self._waiting).combine_chunks()
            self._writer.write_table(table)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._waiting, self._rows, self._bytes = [], 0, 0

    def table(self) -> RowTable:
        """All rows, once nothing more is added."""
        if self._waiting:
            self._write()
        try:
            self._close()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return RowTable(self.path)


class RowTable:
    """A file of record batches, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.table = pa.ipc.open_file(pa.py_buffer(self._map)).read_all()
        self.columns = {name: self.table.column(name) for name in self.table.column_names}
        self._read = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __reduce__(self) -> Any:
        return RowTable, (self.path,)

    def numbers(self, name: str) -> Array:
        """The numbers of a column, copied."""
        found = self.columns[name].to_numpy().copy()
        self.give_back()
        return found

    def values(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Some fields of a row."""
        found = {name: self._value(row, name) for name in names}
        self._read += 1
        if self._read >= READ_AT_ONCE:
            self.give_back()
        return found

    def _value(self, row: int, name: str) -> Any:
        column = self.columns[name]
        if name in ("key", "text"):
            while not column[row].is_valid:
                row -= 1
        value = column[row]
        numbers = getattr(value, "values", None)  # of a list
        if numbers is None:
            return value.as_py()
        ids = ids_of(())
        ids.frombytes(numbers.to_numpy().tobytes())
        return ids

    def give_back(self) -> None:
        """Let the system take the pages that were read; they come again when needed."""
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class StoredRows(View):
    """Rows of a file, in an order, read when they are asked for.

    Args:
        table: The file's.
        kind: Their class, a dataclass.
        places: Which rows of the file, in this order.
        columns: Fields that are not as in the file, one value for each place.
    """

    def __init__(
        self, table: RowTable, kind: type, places: Array, columns: Mapping[str, Array]
    ) -> None:
        self.table, self.kind, self.places, self.columns = table, kind, places, columns
        self._known: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Any:
        row, columns = int(self.places[place]), self.table.columns
        # What a later piece of a text has in common with the first stands there alone, far away.
        names = [
            name
            for name in fields_of(self.kind)
            if name not in ("key", "text") or columns[name][row].is_valid
        ]
        fields = dict.fromkeys(fields_of(self.kind), "") | self.table.values(row, names)
        for name, values in self.columns.items():
            fields[name] = values[place].item()
        return self.kind(**fields)

    def numbers_of(self, name: str) -> Array:
        if name not in self._known:
            self._known[name] = self.table.numbers(name)[self.places]
        return self._known[name]

    def values_of(self, name: str) -> Iterator[Any]:
        """One field of each row."""
        if name in self.columns:
            yield from self.columns[name].tolist()
            return
        for place in self.places.tolist():
            yield self.table.values(place, [name])[name]

    def used_ids(self, name: str) -> set[int]:
        """The different tokens in a field of token ids of all rows of the file."""
        import numpy

        found: set[int] = set()
        for chunk in self.table.columns[name].chunks:
            found.update(numpy.unique(chunk.values.to_numpy()).tolist())
            self.table.give_back()
        return found


def write_rows(
    path: Path,
    rows: RowsWriter,
    order: Mapping[str, Array],
    *,
    digest: str,
    about: Mapping[str, Any],
) -> None:
    """Keep the rows, whole or not at all. Raises MachineNotReady if the disk does not take them.

    Args:
        path: Of the JSON file that says what they are.
        order: `place` of each row to train on and then of each held out, with values of fields
            that are not as in `rows`.
        digest: Of all that they depend on.
        about: What to say of them, and how many there are to `train` on.
    """
    import pyarrow as pa

    table, target = pa.table(dict(order)), _beside(path, "order")
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        for source, name in ((rows.path, "rows"), (temporary, "order")):
            DISK.sync(source)
            DISK.rename(source, _beside(path, name))
        files = {name: DISK.digest(_beside(path, name)) for name in ("rows", "order")}
        keep_value(path, digest, {**about, "files": files})
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        DISK.discard(temporary)


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}.arrow")


def read_rows(
    path: Path, kind: type, digest: str
) -> tuple[StoredRows, StoredRows, dict[str, Any]] | None:
    """(the rows to train on, those held out, what was said of them, with a `digest` of the rows
    themselves); None if they are not there as they were written.

    Args:
        digest: Of all that they depend on.
    """
    about = kept_value(path, digest)
    if about is None:
        return None
    files, train = about.pop("files"), about.pop("train")
    try:
        # Before anything is read of them: Arrow trusts the offsets in a file.
        if any(DISK.digest(_beside(path, name)) != own for name, own in files.items()):
            return None
        table, order = RowTable(_beside(path, "rows")), RowTable(_beside(path, "order"))
    except OSError:
        return None
    columns = {name: order.numbers(name) for name in order.columns}
    places = columns.pop("place")
    sides = (
        StoredRows(
            table, kind, places[side], {name: values[side] for name, values in columns.items()}
        )
        for side in (slice(train), slice(train, None))
    )
    content = hashlib.sha256("".join(files.values()).encode()).hexdigest()
    return *sides, {**about, "digest": content}  # type: ignore[return-value]


def remove_rows(folder: Path, name: str) -> None:
    """Remove all kept rows of a name, whatever they were prepared from, and what earlier starts
    said of them.
    """
    for pattern in (f"{name}-*.arrow", f"{name}-*.json", f"{TEMPORARY}failed-*-{name}-*"):
        for path in folder.glob(pattern):
            DISK.discard(path)
