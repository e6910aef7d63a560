"""The header of a safetensors file: names, dtypes and shapes of its tensors, without torch.

A file is 8 bytes with the length of the header, the header as JSON, and the tensors end to end. So
a file that was cut off, or that is something else, shows in a few kilobytes, however large it is.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows
LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs"
PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtypes of plain weights: bytes of one


class DamagedFile(ValueError):
    """The file cannot be what its name says; the text is a clause: 'is cut off: ...'."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its dtype in the format's words ("BF16"), its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Raises DamagedFile if it is not whole."""
    there, text = _header(path)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedFile("is no safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise DamagedFile("is no safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    promised = sum(tensor.size_bytes for tensor in tensors.values())
    if promised > there:
        raise DamagedFile(f"is cut off: {there:,} of {promised:,} bytes of tensors are there")
    if promised < there:
        raise DamagedFile(f"is damaged: {there - promised:,} bytes belong to no tensor")
    return tensors


def regular_size(path: Path) -> int:
    """The bytes of a regular file. Raises DamagedFile for anything else, such as a pipe."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DamagedFile(f"cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise DamagedFile("is a folder, and a file is expected")
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFile("is not a regular file")
    if found.st_size == 0:
        raise DamagedFile("is empty")
    return found.st_size


def _header(path: Path) -> tuple[int, bytes]:
    """(bytes of the file after its header, the header)."""
    size = regular_size(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise DamagedFile(
                    "is a Git LFS pointer, not the file itself (`git lfs pull` gets it)"
                )
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            if length > MAX_HEADER_BYTES and size >= LENGTH_BYTES:
                raise DamagedFile("is no safetensors file")
            if length > size - LENGTH_BYTES:
                raise DamagedFile(f"is cut off: {size:,} bytes do not hold its header")
            stream.seek(LENGTH_BYTES)
            return size - LENGTH_BYTES - length, stream.read(length)
    except OSError as error:
        raise DamagedFile(f"cannot be read: {error.strerror}") from None


def _tensor(name: str, entry: Any) -> StoredTensor:
    known = entry if isinstance(entry, Mapping) else {}
    dtype, shape = known.get("dtype"), known.get("shape")
    place = known.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _are_counts(shape)
        or not _are_counts(place)
        or len(place) != 2
        or place[0] > place[1]
    ):
        raise DamagedFile(f"is damaged: its header does not describe '{name}'")
    size_bytes = place[1] - place[0]
    if dtype in PLAIN and math.prod(shape) * PLAIN[dtype] != size_bytes:
        raise DamagedFile(f"is damaged: the bytes of '{name}' are not as many as its shape needs")
    return StoredTensor(dtype, tuple(shape), size_bytes)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
