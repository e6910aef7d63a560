"""Rows of Parquet and Arrow files and of a folder that `datasets` saved.

Needs pyarrow, which the core does without.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advisor.data.read.found import DataFile, Found
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import text_of
from advisor.ground.install import install_line

BATCH_ROWS = 1024


def dataset_folder(where: Path, shown: str) -> Found:
    """The Arrow files of a folder written by `Dataset.save_to_disk`; of several splits the one
    called train.
    """
    notes: list[str] = []
    if (where / "dataset_dict.json").is_file():
        splits = _names(where / "dataset_dict.json", "splits", shown)
        if not splits:
            raise InputError("dataset_dict.json names no split", where=shown)
        if "train" not in splits and len(splits) > 1:
            raise InputError(
                f"the data set has the splits {', '.join(splits)} and none is called train",
                where=shown,
                hint=f"name one of them: {Path(shown) / splits[0]}",
            )
        split = "train" if "train" in splits else splits[0]
        left = [name for name in splits if name != split]
        if left:
            notes.append(f"read: the split {split}; left out: {', '.join(left)}")
        where, shown = where / split, str(Path(shown) / split)
    names = [
        entry["filename"]
        for entry in _json(where / "state.json", shown).get("_data_files", [])
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str)
    ]
    files = [where / Path(name).name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise InputError(
            f"the data set's files are missing: {', '.join(missing) or 'state.json names none'}",
            where=shown,
            hint="save it again with save_to_disk",
        )
    return Found(
        files=tuple(
            DataFile(path=path, shown=str(Path(shown) / path.name), container="arrow")
            for path in files
        ),
        container="arrow",
        folder=True,
        notes=tuple(notes),
        root=where,
    )


def _json(path: Path, shown: str) -> dict[str, Any]:
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name} cannot be read ({error})",
            where=shown,
            hint="save the data set again with save_to_disk",
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path.name} is not an object",
            where=shown,
            hint="save the data set again with save_to_disk",
        )
    return value


def _names(path: Path, key: str, shown: str) -> list[str]:
    value = _json(path, shown).get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def need_pyarrow(shown: str) -> None:
    """Raises MachineNotReady, with the line to install, if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MachineNotReady(
            "Parquet and Arrow files need pyarrow, which is not installed",
            where=shown,
            hint=f"{install_line()}, or export the data as JSONL",
        )


def arrow_rows(file: DataFile) -> Iterator[Any]:
    """Row after row of a Parquet or Arrow file, a batch in memory at a time."""
    need_pyarrow(file.shown)
    import pyarrow

    try:
        if file.container == "parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(file.path) as parquet:
                for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                    yield from batch.to_pylist()
            return
        with pyarrow.memory_map(str(file.path)) as source:
            with file.path.open("rb") as raw:
                is_file = raw.read(6) == b"ARROW1"
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                yield from batch.to_pylist()
    # Text that is not UTF-8 and times before year 1 are found when values are made of them.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(
            f"not a readable {file.container} file ({first})",
            where=file.shown,
            hint="download or export it again",
        ) from None


def parquet_rows(file: DataFile) -> int:
    """How many rows a Parquet file says it holds."""
    need_pyarrow(file.shown)
    import pyarrow.parquet

    return int(pyarrow.parquet.ParquetFile(file.path).metadata.num_rows)
