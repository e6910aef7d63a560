"""Prepared rows kept in the run folder: the same data, tokenizer, settings and code give the same
file, byte for byte, so that no rows are prepared twice.

Each stage has one Arrow file: a column for each field of a row, a column for the split, and counts
and notes in its header. Reading it executes nothing. Its SHA-256 lies beside it: a file that a disk
has damaged is not read, and the rows are prepared again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache as once
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from advisor.ground.disk import DISK, TEMPORARY
from advisor.ground.files import cannot_write
from trainers.frame.files import digest_of, make_folder
from trainers.prepare.prepared import Kind, Prepared
from trainers.prepare.row import ids_of

SIDE = "holdout"
ABOUT = b"prepared"
# Besides our own code, what decides how text becomes tokens.
LIBRARIES = ("transformers", "tokenizers", "jinja2")


@once
def code_digest() -> str:
    """A digest of the code that prepares rows: another version prepares them again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of everything that turns conversations into tokens: vocabulary, rules, special
    tokens, chat template.
    """
    own = {
        "rules": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
    return digest_of(own)


def prepared_digest(*, data: str, tokenizer: Any, kind: str, settings: Mapping[str, Any]) -> str:
    """A digest of everything that prepared rows depend on."""
    whole = {
        "data": data,
        "tokenizer": tokenizer_digest(tokenizer),
        "kind": kind,
        "settings": dict(settings),
        "code": code_digest(),
    }
    return digest_of(whole)


def write_prepared(
    path: Path, data: Prepared[Any], kind: Kind[Any], *, chat_template: str | None
) -> None:
    """Write the rows, whole or not at all. Raises MachineNotReady if the disk does not take them.

    Args:
        chat_template: The template that was given to the tokenizer, if it had none.
    """
    import pyarrow as pa

    rows: Sequence[Any] = (*data.train, *data.holdout)
    about = {
        field.name: getattr(data, field.name)
        for field in dataclasses.fields(data)
        if field.name not in ("train", "holdout")
    } | {
        "kind": kind.name,
        "chat_template": chat_template,
    }
    fields, columns = [], []
    for name, hint in _fields(kind.row).items():
        values = [getattr(row, name) for row in rows]
        fields.append(pa.field(name, _arrow_type(hint)))
        columns.append(
            _lists(values) if hint == Sequence[int] else pa.array(values, fields[-1].type)
        )
    fields.append(pa.field(SIDE, pa.bool_()))
    columns.append(pa.array([False] * len(data.train) + [True] * len(data.holdout), pa.bool_()))
    schema = pa.schema(
        fields, metadata={ABOUT: json.dumps(about, sort_keys=True, ensure_ascii=False)}
    )
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema), max_chunksize=10_000)
        digest = DISK.digest(temporary)
        DISK.sync(temporary)
        DISK.rename(temporary, path)
        DISK.replace(checksum_file(path), f"{digest}\n".encode())
    except OSError as error:
        DISK.discard(temporary)
        raise cannot_write(path, error) from error


def checksum_file(path: Path) -> Path:
    """The file beside prepared rows that holds their SHA-256."""
    return path.with_suffix(".sha256")


def remove_prepared(folder: Path, name: str) -> None:
    """Remove all prepared rows of a name, whatever they were prepared from."""
    for path in [*folder.glob(f"{name}-*.arrow"), *folder.glob(f"{name}-*.sha256")]:
        DISK.discard(path)


def read_written(path: Path, kind: Kind[Any], tokenizer: Any) -> Prepared[Any] | None:
    """The rows of a file, or None if there is no such file or it is not as it was written.

    Gives the tokenizer the chat template that the rows were written with.
    """
    import pyarrow as pa

    try:
        # Before anything is read of it: Arrow trusts the offsets in a file.
        if DISK.read(checksum_file(path)).split() != [DISK.digest(path).encode()]:
            return None
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            about = json.loads(table.schema.metadata[ABOUT])
            columns = {
                name: _values(table.column(name), hint) for name, hint in _fields(kind.row).items()
            }
            held = table.column(SIDE).to_pylist()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    template = about.pop("chat_template")
    if about.pop("kind") != kind.name:
        return None
    if template is not None and not tokenizer.chat_template:
        tokenizer.chat_template = template
    rows = [
        kind.row(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]
    about |= {name: tuple(about[name]) for name in ("notes", "turn_ends")}
    train = tuple(row for row, side in zip(rows, held, strict=True) if not side)
    return Prepared(
        train=train,
        holdout=tuple(row for row, side in zip(rows, held, strict=True) if side),
        **about,
    )


def _fields(row: type) -> dict[str, Any]:
    hints = get_type_hints(row)
    return {field.name: hints[field.name] for field in dataclasses.fields(row)}


def _arrow_type(hint: Any) -> Any:
    import pyarrow as pa

    return {int: pa.int64(), bool: pa.bool_(), Sequence[int]: pa.large_list(pa.int32())}.get(
        hint, pa.large_string()
    )


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


def _values(column: Any, hint: Any) -> list[Any]:
    if hint != Sequence[int]:
        return list(column.to_pylist())
    rows = []
    for chunk in column.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=True)
        offsets = chunk.offsets.to_pylist()
        for start, end in pairwise(offsets):
            ids = ids_of(())
            ids.frombytes(flat[start:end].tobytes())
            rows.append(ids)
    return rows
