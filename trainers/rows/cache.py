"""Prepared rows kept in the run folder: the same data, tokenizer, settings and code give the same
file, byte for byte, so that no rows are prepared twice.

Each stage has one Arrow file: a column for each field of a row, the rows to train on before those
held out, and counts and notes in its header. Reading it executes nothing. Its SHA-256 lies beside
it: a file that a disk has damaged is not read, and the rows are prepared again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from functools import cache as once
from pathlib import Path
from typing import Any

from advisor.ground.files import DISK, TEMPORARY, cannot_write
from trainers.job.files import digest_of, make_folder
from trainers.rows.prepared import HELD_OUT, TRAIN, Built, Kind, Prepared, opened_rows
from trainers.rows.stored import RowFile, row_schema

ABOUT = b"prepared"
TRAINED = "train_rows"  # they come first
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
    path: Path, built: Built[Any], summary: Prepared[Any], *, chat_template: str | None
) -> None:
    """Write the rows, whole or not at all. Raises MachineNotReady if the disk does not take them.

    Args:
        summary: What to say of them, without rows.
        chat_template: The template that was given to the tokenizer, if it had none.
    """
    import pyarrow as pa

    about = {
        field.name: getattr(summary, field.name)
        for field in dataclasses.fields(summary)
        if field.name not in ("train", "holdout")
    } | {"kind": built.kind.name, "chat_template": chat_template, TRAINED: built.count(TRAIN)}
    schema = row_schema(built.kind.row).with_metadata(
        {ABOUT: json.dumps(about, sort_keys=True, ensure_ascii=False)}
    )
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in built.batches(TRAIN, HELD_OUT):
                writer.write_batch(batch)
        digest = DISK.digest(temporary)
        DISK.sync(temporary)
        DISK.rename(temporary, path)
        DISK.replace(checksum_file(path), f"{digest}\n".encode())
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        DISK.discard(temporary)


def checksum_file(path: Path) -> Path:
    """The file beside prepared rows that holds their SHA-256."""
    return path.with_suffix(".sha256")


def remove_prepared(folder: Path, name: str) -> None:
    """Remove all prepared rows of a name, whatever they were prepared from, and what earlier starts
    said of them.
    """
    patterns = (f"{name}-*.arrow", f"{name}-*.sha256", f"{TEMPORARY}failed-*-{name}-*")
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
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
        file = RowFile(path)
        about = json.loads(file.schema.metadata[ABOUT])
        template, trained = about.pop("chat_template"), about.pop(TRAINED)
        if about.pop("kind") != kind.name or not file.schema.equals(row_schema(kind.row)):
            return None
        about |= {name: tuple(about[name]) for name in ("notes", "turn_ends")}
        train, holdout = opened_rows(file, kind, trained)
        found = Prepared(train=train, holdout=holdout, **about)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    if template is not None and not tokenizer.chat_template:
        tokenizer.chat_template = template
    return found
