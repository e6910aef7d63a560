"""A model's folder, checked before it is loaded: its files are whole, and all of them are there.

Only JSON and the headers of safetensors files are read, so that a model of any size is checked at
once. Whether the tensors are those that config.json describes is known after loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.files import MOST_BYTES, MOST_CONFIG_BYTES, NoPlainFile, bytes_of
from advisor.model_files.config import config_faults
from advisor.model_files.safetensors_header import DamagedFile, read_header, regular_size

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
    """Add a fault if a file of weights is not whole; a pickle is not opened here."""
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        else:
            regular_size(path)
    except DamagedFile as damage:
        found.append(Fault(where=str(path), what=str(damage), hint=AGAIN))


def _check_shards(folder: Path, index: str, found: list[Fault], *, downloads: bool) -> None:
    """Add the faults of an index and of the files that it names."""
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
    """Whether the name can be that of a file in the folder or below it."""
    parts = PurePosixPath(name).parts
    possible = bool(parts) and "\0" not in name and max(map(len, parts)) <= LONGEST_NAME
    return possible and ".." not in parts and parts[0] != "/"
