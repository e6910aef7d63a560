"""The files of a run, read and written: run.json and what trainers leave beside it (record.py lists
them). A file of a person is refused with its place; one that a crash left half-written can be asked
for quietly.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import read_at_most, write_atomically
from advisor.ground.json_values import JsonObject, plain_json
from advisor.ground.terminal import json_shown
from advisor.record.run import RECORD, SCHEMA_VERSION, RunRecord

Part = TypeVar("Part", bound=JsonObject)
MOST_BYTES = 2**28  # of run.json; with the samples of 10,000 stages it has a tenth of that


def read_record(folder: Path, *, hint: str = "") -> RunRecord | None:
    """run.json of a folder, or None if there is none.

    Raises InputError if it is damaged, or of another version of advise.

    Args:
        hint: The next step for a person whose file cannot be read.
    """
    path = folder / RECORD
    try:
        data = _json_of(path, hint)
    except FileNotFoundError:
        return None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        found = f"its schema_version is {version}" if version else "it has no schema_version"
        raise InputError(
            f"{path} is no run.json of this version of advise: {found}",
            f"this version reads schema_version {SCHEMA_VERSION}",
            hint,
            where=str(path),
        )
    record = _value_of(RunRecord, data, path, hint)
    outside = [
        Fault(
            where=str(path),
            what=f"stages[{number}].folder is {stage.folder[:60]!r}",
            allowed="a folder inside the run folder",
            hint=hint,
        )
        for number, stage in enumerate(record.stages)
        if Path(stage.folder).is_absolute() or ".." in Path(stage.folder).parts
    ]
    if outside:  # a report and model cards are written there
        raise InputError(faults=outside)
    return record


def read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if there is no such file.

    Raises InputError if it is half-written, or holds something else.
    """
    try:
        data = _json_of(path, "")
    except FileNotFoundError:
        return None
    return _value_of(kind, data, path, "")


def try_read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if the file is missing or broken."""
    try:
        return read_part(kind, path)
    except InputError:
        return None


def _json_of(path: Path, hint: str) -> Any:
    try:
        return plain_json(read_at_most(path, MOST_BYTES))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise InputError(
            f"{path} cannot be read: it is nested too deeply", where=str(path), hint=hint
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=str(path), hint=hint) from None


def _value_of(kind: type[Part], data: Any, path: Path, hint: str) -> Part:
    try:
        return kind.from_dict(data, at=str(path))
    except InputError as error:
        faults = [replace(fault, hint=hint) for fault in error.faults]
        raise InputError(faults=faults) from None


def write_record(path: Path, value: JsonObject) -> None:
    """Write the value as JSON, whole or not at all. Raises MachineNotReady."""
    text = json.dumps(value.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, json_shown(text) + "\n")
