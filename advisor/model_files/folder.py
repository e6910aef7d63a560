"""A model's folder, checked before it is loaded: its files are whole, and all of them are there.

Only JSON and the headers of safetensors files are read, so that a model of any size is checked at
once. Whether the tensors are those that config.json describes is known after loading.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from msgspec import Struct

from advisor.ground.errors import Fault
from advisor.ground.files import MOST_BYTES, MOST_CONFIG_BYTES, NoPlainFile, bytes_of, open_regular
from advisor.model_files.config import config_faults

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLED_ADAPTER = "adapter_model.bin"
# Files that hold a JSON object, each optional.
TOKENIZER_JSON = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
GENERATION = "generation_config.json"
SMALL_JSON = (CONFIG, ADAPTER_CONFIG, GENERATION)  # far below the limit of the others
AGAIN = "download or copy the file again"
LISTED = 3
LONGEST_NAME, SHOWN_NAME = 255, 60  # of a file, in characters


def model_faults(folder: Path, *, downloads: bool = False) -> list[Fault]:
    """What is wrong with a model's folder; with `downloads`, missing files will be downloaded."""
    return [*tokenizer_faults(folder), *base_faults(folder, downloads=downloads)]


def tokenizer_faults(folder: Path) -> list[Fault]:
    """Tokenizer files that hold no JSON object."""
    found: list[Fault] = []
    for name in TOKENIZER_JSON:
        _json_object(folder / name, found)
    return found


def base_faults(folder: Path, *, downloads: bool = False) -> list[Fault]:
    """What is wrong with config.json and the weights; `downloads` as for `model_faults`."""
    found: list[Fault] = []
    _json_object(folder / GENERATION, found)
    config = _json_object(folder / CONFIG, found) or {}
    found += config_faults(config, str(folder / CONFIG))
    if "transformers_weights" in config:
        return found  # another file than the usual ones: left to the trainer
    # In transformers' order of names.
    for name in (WEIGHTS, INDEX, PICKLED, PICKLED_INDEX):
        if _exists(folder / name):
            if name in (INDEX, PICKLED_INDEX):
                _check_shards(folder, name, found, downloads=downloads)
            else:
                _check_weights(folder / name, found)
            return found
    if not downloads:
        found.append(
            Fault(
                where=f"model {folder}",
                what="has no weights",
                allowed=f"{WEIGHTS}, or {INDEX} with the files that it names",
                hint="download the whole model, not its configuration alone",
            )
        )
    return found


def adapter_faults(folder: Path) -> list[Fault]:
    """What is wrong with the files of a PEFT module in the folder; none if there is no module."""
    found: list[Fault] = []
    config = _json_object(folder / ADAPTER_CONFIG, found)
    at = str(folder / ADAPTER_CONFIG)
    if config is not None and not isinstance(config.get("peft_type"), str):
        found.append(Fault(where=at, what="names no kind of module (peft_type)", hint=AGAIN))
    base = (config or {}).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        found.append(
            Fault(
                where=at,
                what="base_model_name_or_path is no text",
                allowed="the folder or the hub id of the base",
                hint=AGAIN,
            )
        )
    if _exists(folder / ADAPTER):
        _check_weights(folder / ADAPTER, found)
    elif config is not None and not _exists(folder / PICKLED_ADAPTER):
        found.append(Fault(where=str(folder), what=f"has no {ADAPTER}", hint=AGAIN))
    return found


def folder_faults(folder: Path) -> list[Fault]:
    """What is wrong with a folder that holds a whole model, or a module and its tokenizer."""
    if _exists(folder / CONFIG) or not _exists(folder / ADAPTER_CONFIG):
        return model_faults(folder)
    return [*tokenizer_faults(folder), *adapter_faults(folder)]


def _json_object(path: Path, found: list[Fault]) -> Mapping[str, Any] | None:
    """The object in the file; None, with a fault, if it holds none, and None if it is not there."""
    if not _exists(path):
        return None
    try:
        regular_size(path)
        most_bytes = MOST_CONFIG_BYTES if path.name in SMALL_JSON else MOST_BYTES
        value = json.loads(bytes_of(path, most_bytes=most_bytes))
    except DamagedFile as damage:
        reason = str(damage)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
    except (ValueError, RecursionError):
        reason = "not valid JSON"
    except NoPlainFile as error:
        reason = str(error.strerror)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    else:
        if isinstance(value, dict):
            return value
        reason = "holds no JSON object"
    found.append(Fault(where=str(path), what=reason, hint=AGAIN))
    return None


def _exists(path: Path) -> bool:
    """Whether there is something of this name, even a link that leads nowhere or in a circle."""
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):
        return True


def _check_weights(path: Path, found: list[Fault]) -> None:
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        else:
            regular_size(path)
    except DamagedFile as damage:
        found.append(Fault(where=str(path), what=str(damage), hint=AGAIN))


def _check_shards(folder: Path, index: str, found: list[Fault], *, downloads: bool) -> None:
    document = _json_object(folder / index, found)
    if document is None:
        return
    named, at = document.get("weight_map"), str(folder / index)
    if (
        not isinstance(named, Mapping)
        or not named
        or not all(isinstance(name, str) for name in named.values())
    ):
        what = "has no map from tensors to files (weight_map)"
        found.append(Fault(where=at, what=what, hint=AGAIN))
        return
    names = sorted(set(named.values()))
    missing = []
    for name in names:
        if not _is_inside(name):
            shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
            found.append(Fault(where=at, what=f"names '{shown}', which is no file inside it"))
        elif _exists(folder / name):
            _check_weights(folder / name, found)
        else:
            missing.append(name)
    if missing and not downloads:
        more = len(missing) - LISTED
        listed = ", ".join(missing[:LISTED]) + (f" and {more} more" if more > 0 else "")
        are = "is" if len(missing) == 1 else "are"
        found.append(
            Fault(
                where=f"model {folder}",
                what=(
                    f"{len(missing)} of the {len(names)} weight files that {index} names {are}"
                    f" missing: {listed}"
                ),
                hint="download the missing files; the model is incomplete without them",
            )
        )


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    possible = bool(parts) and "\0" not in name and max(map(len, parts)) <= LONGEST_NAME
    return possible and ".." not in parts and parts[0] != "/"


MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows
LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs"
PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtypes of plain weights: bytes of one


class DamagedFile(ValueError):
    """The file cannot be what its name says; the text is a clause: 'is cut off: ...'."""


class StoredTensor(Struct, frozen=True):
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
    size = regular_size(path)
    try:
        with open_regular(path) as stream:
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
