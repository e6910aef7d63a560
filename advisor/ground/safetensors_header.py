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
from typing import Any

MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows
LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs"
# Bits of one element. A dtype that is not here is not measured.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
PLAIN = frozenset({"F64", "F32", "F16", "BF16"})  # one element is one weight


class Damaged(ValueError):
    """The file cannot be what its name says; the text is a clause: 'is cut off: ...'."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: its dtype in the format's words ("BF16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises Damaged if it is none, or if its bytes are not all there.
    """
    size, header_bytes, text = _header(path)
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged("is no safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise Damaged("is no safetensors file: its header is not a JSON object")
    tensors, places = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name], place = _tensor(name, entry)
        places.append((*place, name))
    _check_places(places, there=size - LENGTH_BYTES - header_bytes)
    return tensors


def regular_size(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises Damaged for everything else: opening a pipe would wait for a writer.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Damaged(f"cannot be read: {error}") from None
    if stat.S_ISDIR(found.st_mode):
        raise Damaged("is a folder, and a file is expected")
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("is not a regular file")
    if found.st_size == 0:
        raise Damaged("is empty")
    return found.st_size


def _header(path: Path) -> tuple[int, int, bytes]:
    """(size of the file, size of its header, the header), sizes in bytes."""
    size = regular_size(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(LENGTH_BYTES)
            if start + stream.read(len(LFS_POINTER) - LENGTH_BYTES) == LFS_POINTER:
                raise Damaged("is a Git LFS pointer, not the file itself (`git lfs pull` gets it)")
            stream.seek(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < LENGTH_BYTES or (length <= MAX_HEADER_BYTES and length > size - 8):
                raise Damaged(f"is cut off: {size:,} bytes do not hold its header")
            if length > MAX_HEADER_BYTES:
                raise Damaged("is no safetensors file")
            return size, length, stream.read(length)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Damaged(f"names '{twice}' twice")
    return found


def _tensor(name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    """(the tensor, its first byte and the byte after its last)."""
    wrong = Damaged(f"is damaged: its header does not describe '{name}'")
    if not isinstance(entry, Mapping):
        raise wrong
    dtype, shape, place = (
        entry.get("dtype"),
        _counts(entry, "shape"),
        _counts(entry, "data_offsets"),
    )
    if not isinstance(dtype, str) or shape is None or place is None:
        raise wrong
    if len(place) != 2 or place[0] > place[1]:
        raise wrong
    bits = BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (place[1] - place[0]) * 8:
        raise Damaged(f"is damaged: the bytes of '{name}' are not as many as its shape needs")
    return Tensor(dtype, tuple(shape)), (place[0], place[1])


def _counts(entry: Mapping[str, Any], key: str) -> list[int] | None:
    """The list of whole numbers of at least 0 under the key; None if it holds none."""
    value = entry.get(key)
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return None


def _check_places(places: list[tuple[int, int, str]], *, there: int) -> None:
    """Raise Damaged unless the tensors lie end to end and fill the file.

    Args:
        there: Bytes of the file after its header.
    """
    end = 0
    for first, after, name in sorted(places):
        if first != end:
            raise Damaged(f"is damaged: '{name}' does not begin where the tensor before it ends")
        end = after
    if end > there:
        raise Damaged(f"is cut off: {there:,} of {end:,} bytes of tensors are there")
    if end < there:
        raise Damaged(f"is damaged: {there - end:,} bytes after its last tensor belong to none")
