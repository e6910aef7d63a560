"""Rows as the `datasets.Dataset` that TRL's trainers insist on, without a copy of them: a row's
columns are made when the row is batched, from rows in memory or from those in the run folder.

`Dataset.from_dict` held 81 bytes per token in lists, and 212 at its peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

# Rows of a trainer -> its columns, one entry for each of them.
Columns = Callable[[Sequence[Any]], Mapping[str, Sequence[Any]]]
AT_ONCE = 1000  # rows, where all of them are copied
# What would read the table behind the rows, which is empty.
NEEDS_COPY = (
    "select", "filter", "shuffle", "sort", "shard", "train_test_split", "add_column", "cast",
    "rename_column", "rename_columns", "to_dict", "to_list", "to_pandas", "save_to_disk",
)  # fmt: skip


def rows_dataset(rows: Sequence[Any], columns: Columns) -> Any:
    """A `datasets.Dataset` of the rows, which are looked up and converted when they are asked for.

    Args:
        rows: In the order of the dataset; at least one.
        columns: Turns some of them into the columns that the trainer batches.
    """
    return _dataset_class()(rows, columns)


def copied_dataset(rows: Sequence[Any], columns: Columns) -> Any:
    """The same as a table in memory, four bytes a token: some trainers put columns beside it."""
    return rows_dataset(rows, columns).copied()


@cache
def _dataset_class() -> type:
    """The class; made once, since importing datasets takes a while."""
    import secrets

    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    class RowsDataset(Dataset):
        """Its own table has the right columns and length, and nothing in it."""

        def __init__(
            self, rows: Sequence[Any], columns: Columns, names: Sequence[str] | None = None
        ) -> None:
            self.rows, self.columns = rows, columns
            self.names = list(columns([rows[0]])) if names is None else list(names)
            empty = pa.table({name: pa.nulls(len(rows)) for name in self.names})
            super().__init__(InMemoryTable(empty), fingerprint=secrets.token_hex(8))

        def _batch(self, places: Sequence[int]) -> dict[str, Sequence[Any]]:
            found = self.columns([self.rows[place] for place in places])
            return {name: found[name] for name in self.names}

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, str):
                return [row[key] for row in self]
            if isinstance(key, int):
                return {name: values[0] for name, values in self._batch([key]).items()}
            if isinstance(key, slice):
                key = range(*key.indices(len(self)))
            return self._batch([int(place) for place in key])

        def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
            found = self._batch([int(place) for place in keys])
            return [
                {name: values[place] for name, values in found.items()}
                for place in range(len(keys))
            ]

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return (self[place] for place in range(len(self)))

        def remove_columns(self, column_names: Any, *_: Any, **__: Any) -> RowsDataset:
            """The rows without some columns."""
            gone = {column_names} if isinstance(column_names, str) else set(column_names)
            left = [name for name in self.names if name not in gone]
            return RowsDataset(self.rows, self.columns, left)

        def map(self, function: Any = None, *args: Any, **options: Any) -> Any:
            """The rows as a function changes them, one by one and when they are asked for."""
            given = {name for name, value in options.items() if value is not None}
            if args or not given <= {"fn_kwargs", "num_proc", "desc"}:
                return self.copied().map(function, *args, **options)
            more = options.get("fn_kwargs") or {}

            def changed(rows: Sequence[Any]) -> dict[str, list[Any]]:
                before = self.columns(rows)
                table: dict[str, list[Any]] = {}
                for place in range(len(rows)):
                    row = {name: before[name][place] for name in self.names}
                    for name, value in {**row, **function(dict(row), **more)}.items():
                        table.setdefault(name, []).append(value)
                return table

            return RowsDataset(self.rows, changed)

        def copied(self) -> Dataset:
            """All rows in memory, as a plain Dataset."""
            tables = [
                _compact(self._batch(range(start, min(start + AT_ONCE, len(self)))))
                for start in range(0, len(self), AT_ONCE)
            ]
            return Dataset(InMemoryTable(pa.concat_tables(tables)))

    def through_copy(name: str) -> Any:
        def method(self: Any, *args: Any, **options: Any) -> Any:
            return getattr(self.copied(), name)(*args, **options)

        return method

    for name in NEEDS_COPY:
        setattr(RowsDataset, name, through_copy(name))
    return RowsDataset


def _compact(columns: Mapping[str, Sequence[Any]]) -> Any:
    """Columns as a table in which a token takes four bytes."""
    import pyarrow as pa

    def type_of(values: Sequence[Any]) -> Any:
        return pa.list_(pa.int32()) if isinstance(values[0], list) else None

    return pa.table({name: pa.array(values, type_of(values)) for name, values in columns.items()})
