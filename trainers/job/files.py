"""Values of a run as JSON files, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.ground.annotated import parse_json
from advisor.ground.files import ELSEWHERE, cannot_write, text_of, write_atomically
from advisor.ground.terminal import json_shown


def json_value(value: Any) -> Any:
    """The value as JSON can hold it; infinity and NaN become null."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [json_value(item) for item in items]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # Enums by their value; paths and dtypes by their text.
    return str(getattr(value, "value", value))


def write_json(path: Path, value: Any) -> None:
    """Write the value; a reader sees the old file or the new one, never half of it.

    Raises MachineNotReady if it cannot be written.
    """
    make_folder(path.parent)
    text = json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, json_shown(text) + "\n")


def read_json(path: Path) -> Any:
    """The file's value, or None if there is no such file or it is not JSON."""
    try:
        return parse_json(text_of(path))
    except (OSError, ValueError):
        return None


def keep_value(path: Path, fingerprint: str, value: Any) -> None:
    """Keep a value for a later attempt, which has to have the same fingerprint.

    Raises MachineNotReady if it cannot be written.
    """
    write_json(path, {"fingerprint": fingerprint, "value": value, "sha256": digest_of(value)})


def kept_value(path: Path, fingerprint: str) -> Any:
    """The value as JSON holds it; None if there is none for this fingerprint, or if it is not what
    was written.
    """
    known = read_json(path)
    if not isinstance(known, dict) or known.get("fingerprint") != fingerprint:
        return None
    value = known.get("value")
    return value if known.get("sha256") == digest_of(value) else None


def digest_of(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value as JSON holds it."""
    text = json.dumps(json_value(value), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def make_folder(path: Path) -> Path:
    """The folder, made if it was missing. Raises MachineNotReady if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, way_out=ELSEWHERE) from None
    return path
