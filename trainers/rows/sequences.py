"""Rows and groups of rows as sequences that do not hold them, and the `datasets.Dataset` that
trainers read them through: what is asked of all rows (lengths, order, packing) is an array, and a
row is made when somebody reads it.

Prepared rows stand in an Arrow file that is mapped into memory: 100 million tokens within the
memory of a few. Pages that were read are given back from time to time: they stay in the system's
cache, and no process counts them as its own. Beside them a file of numpy has the places of the rows
to train on before those held out. A JSON file with counts and notes is written last and says what
the other two have to be: without it, or with other bytes in one of them, nothing was prepared.

Whoever trains on rows takes any `Sequence` of them; of a plain one the arrays are computed when
they are asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy

from advisor.ground.files import DISK, TEMPORARY, cannot_write, open_regular
from trainers.job.files import keep_value, kept_value, make_folder
from trainers.rows.row import Array

NUMBERS = ("tokens", "learned")  # of a row, in columns beside its fields
READ_AT_ONCE = 256  # rows; then the pages around them are given back
# Rows of a trainer -> its columns, one entry for each of them.
Columns = Callable[[Sequence[Any]], Mapping[str, Sequence[Any]]]


class View(Sequence[Any]):
    """Rows, or groups of them, that are looked up when they are asked for."""

    at: Any  # gives the one at a place from 0
    values_of: Any  # gives a field of each row, such as its tokens; of a group of rows the sum

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return Picked([self], places) if isinstance(index, slice) else self.at(places)

    def __iter__(self) -> Iterator[Any]:
        return map(self.at, range(len(self)))


def values_of(rows: Sequence[Any], name: str) -> Array:
    """A number, truth or name of each row; of rows in a file, that column alone is read."""
    if isinstance(rows, View):
        return rows.values_of(name)
    return numpy.array([getattr(row, name) for row in rows])


def lengths(rows: Sequence[Any]) -> Array:
    """Tokens of each row, or of all rows of each group."""
    return values_of(rows, "tokens")


class Picked(View):
    """Rows of one or several sequences, chosen and ordered by their places.

    Args:
        parts: Sequences that are numbered through, one after the other.
        places: Which of all their rows, in this order.
    """

    def __init__(self, parts: Sequence[Sequence[Any]], places: Any) -> None:
        self.parts = tuple(parts)
        self.places = numpy.asarray(places, dtype=numpy.int64)
        self.starts = numpy.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Any:
        row = self.places[place]
        part = int(self.starts.searchsorted(row, side="right")) - 1
        return self.parts[part][int(row - self.starts[part])]

    def values_of(self, name: str) -> Array:
        return numpy.concatenate([values_of(part, name) for part in self.parts])[self.places]


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

    def values_of(self, name: str) -> Array:
        found = values_of(self.rows, name)
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
    """The same as a table in memory: some trainers put columns beside it."""
    from datasets import Dataset, concatenate_datasets

    starts = range(0, len(rows), 1000)
    return concatenate_datasets(
        [Dataset.from_dict(dict(columns(rows[start : start + 1000]))) for start in starts]
    )


# ------------------------------------------------------------------------------------ files


@cache
def kept_fields(kind: type) -> dict[str, Any]:
    """The fields of a class of rows that are kept, each with its type."""
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)} - {"key", "text"}
    return {name: hint for name, hint in hints.items() if name in names}


def rows_batch(rows: Sequence[Any], kind: type) -> Any:
    """Rows as one Arrow record batch: their fields, and the numbers asked of all rows."""
    import pyarrow as pa

    ids = pa.large_list(pa.int32())
    types = {int: pa.int64(), bool: pa.bool_(), Sequence[int]: ids}
    columns = {}
    for name, hint in kept_fields(kind).items():
        values = [getattr(row, name) for row in rows]
        if hint == Sequence[int]:  # without making a Python number of each
            values = [numpy.asarray(value, numpy.int32) for value in values]
        columns[name] = pa.array(values, types.get(hint, pa.large_string()))
    for name in NUMBERS:
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.int32())
    return pa.record_batch(columns)


class StoredRows(View):
    """All rows of a file, each read when it is asked for.

    Args:
        path: A file of record batches as `rows_batch` makes them.
        kind: The class of the rows.
    """

    def __init__(self, path: Path, kind: type) -> None:
        import pyarrow as pa

        self.path, self.kind = path, kind
        with open_regular(path) as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_file(pa.py_buffer(self._map)).read_all()
        self.columns = {name: table.column(name) for name in table.column_names}
        self._read = 0

    def __len__(self) -> int:
        return len(self.columns["tokens"])

    def __reduce__(self) -> Any:
        return StoredRows, (self.path, self.kind)

    def at(self, place: int) -> Any:
        fields = {name: _value(self.columns[name][place]) for name in kept_fields(self.kind)}
        self._read += 1
        if self._read >= READ_AT_ONCE:
            self._give_back()
        return self.kind(**fields)

    def values_of(self, name: str) -> Array:
        found = self.columns[name].to_numpy().copy()
        self._give_back()
        return found

    def _give_back(self) -> None:
        """Let the system take the pages that were read; they come again when needed."""
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _value(found: Any) -> Any:
    numbers = getattr(found, "values", None)  # of a list
    return found.as_py() if numbers is None else array("i", numbers.to_numpy().tobytes())


class RowsWriter:
    """Writes record batches into a file, which goes with the context unless it is kept.

    Raises MachineNotReady if the disk does not take them.

    Args:
        path: Of the JSON file that says what the rows are; the others stand beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {name: _beside(path, name) for name in ("rows", "order")}
        self._new = {
            name: file.with_name(f"{TEMPORARY}{os.getpid()}-{file.name}")
            for name, file in self.files.items()
        }
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> RowsWriter:
        make_folder(self.path.parent)
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError):
            self._close()
        for new in self._new.values():
            DISK.discard(new)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._writer.close()
            file.close()

    def add(self, batch: Any) -> None:
        import pyarrow as pa

        try:
            if self._writer is None:
                self._file = pa.OSFile(str(self._new["rows"]), "wb")
                self._writer = pa.ipc.new_file(self._file, batch.schema)
            self._writer.write_batch(batch)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def keep(self, places: Array, *, digest: str, about: Mapping[str, Any]) -> None:
        """Keep the rows, whole or not at all.

        Args:
            places: Of the rows to train on and then of those held out.
            digest: Of all that they depend on.
            about: What to say of them, and how many there are to `train` on.
        """
        try:
            self._close()
            with self._new["order"].open("wb") as file:
                numpy.save(file, places)
            for name, new in self._new.items():
                DISK.sync(new)
                DISK.rename(new, self.files[name])
            digests = {name: DISK.digest(kept) for name, kept in self.files.items()}
            keep_value(self.path, digest, {**about, "files": digests})
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}.{'arrow' if name == 'rows' else 'npy'}")


def read_rows(path: Path, kind: type, digest: str) -> tuple[Picked, Picked, dict[str, Any]] | None:
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
        rows, places = StoredRows(_beside(path, "rows"), kind), numpy.load(_beside(path, "order"))
    except OSError:
        return None
    about["digest"] = hashlib.sha256("".join(files.values()).encode()).hexdigest()
    return Picked([rows], places[:train]), Picked([rows], places[train:]), about


def remove_rows(folder: Path, name: str) -> None:
    """Remove all kept rows of a name, whatever they were prepared from, and what earlier starts
    said of them.
    """
    kept = [f"{name}-*.{ending}" for ending in ("arrow", "npy", "json")]
    for pattern in (*kept, f"{TEMPORARY}failed-*-{name}-*"):
        for path in folder.glob(pattern):
            DISK.discard(path)
