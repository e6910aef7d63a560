"""A model's folder, checked before it is loaded: its files are whole, and all of them are there.

Only JSON and the headers of safetensors files are read, so that a model of any size is checked in
the time its tokenizer takes to parse. Whether the tensors are those that config.json describes is
`model_structure`'s part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.files import MOST_BYTES, MOST_CONFIG_BYTES, NoPlainFile, bytes_of
from advisor.ground.model_config import is_number, wrong_values
from advisor.ground.model_structure import config_faults, structure_faults
from advisor.ground.safetensors_header import Damaged, Tensor, read_header, regular_size

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLED_ADAPTER = "adapter_model.bin"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# Files that hold a JSON object, each optional.
TOKENIZER_JSON = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL_JSON = ("generation_config.json",)
SMALL_JSON = (CONFIG, ADAPTER_CONFIG, *MODEL_JSON)  # far below the limit of the others
AGAIN = "download or copy the file again"
LISTED = 3
LONGEST_NAME, SHOWN_NAME = 255, 60  # of a file, in characters
# Tensors that an index may name without a file that has them: buffers that are computed, and the
# output matrix where it is tied. `model_structure` says whether it may be.
COMPUTED = (".inv_freq", ".position_ids", ".masked_bias", ".attn.bias")
TIED = "lm_head.weight"


@dataclass(slots=True)
class Weights:
    """The tensors of a folder by name, and the words for where they are."""

    where: str  # "model.safetensors", "the 4 files of model.safetensors.index.json"
    tensors: dict[str, Tensor] = field(default_factory=dict)
    complete: bool = True  # every file was there and could be read


def model_faults(folder: Path, *, writes: bool = True, downloads: bool = False) -> list[Fault]:
    """Everything in the folder of a whole model that shows before it is loaded.

    Args:
        writes: The model is to generate text, so that it needs an output matrix.
        downloads: Files that are not there will be downloaded.
    """
    found: list[Fault] = []
    documents = _tokenizer(folder, found)
    tokens = highest_token(documents.get(TOKENIZER, {}))
    return [*found, *base_faults(folder, writes=writes, downloads=downloads, tokens=tokens)]


def tokenizer_faults(folder: Path) -> list[Fault]:
    """Tokenizer files that hold no JSON object."""
    found: list[Fault] = []
    _tokenizer(folder, found)
    return found


def _tokenizer(folder: Path, found: list[Fault]) -> dict[str, Mapping[str, Any]]:
    """The objects in the tokenizer's files by name."""
    documents = {name: _json_object(folder / name, found) for name in TOKENIZER_JSON}
    longest = (documents[TOKENIZER_CONFIG] or {}).get("model_max_length")
    if longest is not None and not is_number(longest):
        shown = json.dumps(longest)[:SHOWN_NAME]
        what = f"model_max_length is {shown}"
        found.append(Fault(where=str(folder / TOKENIZER_CONFIG), what=what, allowed="a number"))
    return {name: document for name, document in documents.items() if document is not None}


def base_faults(
    folder: Path, *, writes: bool = True, downloads: bool = False, tokens: int | None = None
) -> list[Fault]:
    """What is wrong with config.json and the weights; other arguments as for `model_faults`.

    Args:
        tokens: The tokenizer's highest token id, if it is known.
    """
    found: list[Fault] = []
    for name in MODEL_JSON:
        _check_values(folder / name, _json_object(folder / name, found), found)
    config = _json_object(folder / CONFIG, found)
    wrong = config_faults(config, str(folder / CONFIG)) if config is not None else []
    found += wrong
    _check_values(folder / CONFIG, config, found)
    if config is not None and "transformers_weights" in config:
        return found  # another file than the usual ones: left to the trainer
    weights = _weights(folder, found, downloads=downloads)
    if config is None or wrong or weights is None:
        return found
    return [
        *found,
        *structure_faults(
            config,
            weights.tensors,
            at=f"model {folder}",
            where=weights.where,
            complete=weights.complete,
            writes=writes,
            tokens=tokens,
        ),
    ]


def _check_values(path: Path, document: Mapping[str, Any] | None, found: list[Fault]) -> None:
    """Add a fault for each value of a generation's settings that is of the wrong kind."""
    for key, allowed in wrong_values(document or {}).items():
        shown = json.dumps((document or {})[key])
        found.append(Fault(where=str(path), what=f"{key} is {shown[:SHOWN_NAME]}", allowed=allowed))


def adapter_faults(folder: Path) -> list[Fault]:
    """What is wrong with the files of a PEFT module in the folder; none if there is no module."""
    found: list[Fault] = []
    config = _json_object(folder / ADAPTER_CONFIG, found)
    if config is not None and not isinstance(config.get("peft_type"), str):
        found.append(
            Fault(
                where=str(folder / ADAPTER_CONFIG),
                what="names no kind of module (peft_type)",
                hint=AGAIN,
            )
        )
    base = (config or {}).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        found.append(
            Fault(
                where=str(folder / ADAPTER_CONFIG),
                what="base_model_name_or_path is no text",
                allowed="the folder or the hub id of the base",
                hint=AGAIN,
            )
        )
    if _exists(folder / ADAPTER):
        _tensors(folder / ADAPTER, found)
    elif config is not None and not _exists(folder / PICKLED_ADAPTER):
        found.append(Fault(where=str(folder), what=f"has no {ADAPTER}", hint=AGAIN))
    return found


def folder_faults(folder: Path, *, writes: bool = True) -> list[Fault]:
    """What is wrong with a folder that holds a whole model, or a module and its tokenizer."""
    if _exists(folder / CONFIG) or not _exists(folder / ADAPTER_CONFIG):
        return model_faults(folder, writes=writes)
    return [*tokenizer_faults(folder), *adapter_faults(folder)]


# --------------------------------------------------------------------------- JSON files


def _json_object(path: Path, found: list[Fault]) -> Mapping[str, Any] | None:
    """The object in the file; None, with a fault, if it holds none, and None if it is not there."""
    if not _exists(path):
        return None
    try:
        regular_size(path)
        most_bytes = MOST_CONFIG_BYTES if path.name in SMALL_JSON else MOST_BYTES
        value = json.loads(bytes_of(path, most_bytes=most_bytes))
    except Damaged as damage:
        reason = str(damage)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
    except UnicodeDecodeError:
        reason = "not valid JSON: it is not UTF-8 text"
    except (ValueError, RecursionError):
        reason = "not valid JSON"
    except NoPlainFile as error:
        reason = str(error.strerror)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    else:
        if isinstance(value, dict):
            return value
        reason = f"holds no JSON object but {_kind(value)}"
    found.append(Fault(where=str(path), what=reason, hint=AGAIN))
    return None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or flag")


def _exists(path: Path) -> bool:
    """Whether there is something of this name, even a link that leads nowhere or in a circle."""
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):
        return True


def highest_token(tokenizer: Mapping[str, Any]) -> int | None:
    """The highest token id that tokenizer.json names; None if it names none.

    Special tokens that were added do not count: Gemma 3 1B has one for pictures, and no embedding
    for it. The trainer sees whether one is used.
    """
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    ids: list[Any] = []
    if isinstance(vocabulary, Mapping):
        ids += vocabulary.values()
    elif isinstance(vocabulary, list):
        ids.append(len(vocabulary) - 1)
    added = tokenizer.get("added_tokens")
    ids += [
        item.get("id")
        for item in (added if isinstance(added, list) else [])
        if isinstance(item, Mapping) and not item.get("special")
    ]
    return max((item for item in ids if type(item) is int), default=None)


# --------------------------------------------------------------------------- weights


def _weights(folder: Path, found: list[Fault], *, downloads: bool) -> Weights | None:
    """The tensors that transformers would read from the folder, in its order of file names; None
    if they are in another format, or there are none.
    """
    if _exists(folder / WEIGHTS):
        tensors = _tensors(folder / WEIGHTS, found)
        return None if tensors is None else Weights(WEIGHTS, tensors)
    if _exists(folder / INDEX):
        return _sharded(folder, found, downloads=downloads)
    if _exists(folder / PICKLED):
        _pickled(folder / PICKLED, found)
    elif _exists(folder / PICKLED_INDEX):
        for name in _shards(folder, PICKLED_INDEX, found):
            if not downloads or _exists(folder / name):
                _pickled(folder / name, found)
    elif not downloads:
        found.append(
            Fault(
                where=f"model {folder}",
                what="has no weights",
                allowed=f"{WEIGHTS}, or {INDEX} with the files that it names",
                hint="download the whole model, not its configuration alone",
            )
        )
    return None


def _tensors(path: Path, found: list[Fault]) -> dict[str, Tensor] | None:
    try:
        return read_header(path)
    except Damaged as damage:
        found.append(Fault(where=str(path), what=str(damage), hint=AGAIN))
        return None


def _pickled(path: Path, found: list[Fault]) -> None:
    """A pickle is not opened here: only whether it is there."""
    try:
        regular_size(path)
    except Damaged as damage:
        found.append(Fault(where=str(path), what=str(damage), hint=AGAIN))


def _shards(folder: Path, index: str, found: list[Fault]) -> dict[str, list[str]]:
    """File -> the tensors that the index says are in it."""
    document = _json_object(folder / index, found)
    if document is None:
        return {}
    named = document.get("weight_map")
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named.values()):
        found.append(
            Fault(
                where=str(folder / index),
                what="has no map from tensors to files (weight_map)",
                hint=AGAIN,
            )
        )
        return {}
    shards: dict[str, list[str]] = {}
    for tensor, name in named.items():
        shards.setdefault(name, []).append(tensor)
    if not shards:
        found.append(Fault(where=str(folder / index), what="names no files", hint=AGAIN))
    for name in [name for name in shards if not _is_inside(name)]:
        shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
        found.append(
            Fault(where=str(folder / index), what=f"names '{shown}', which is no file inside it")
        )
        del shards[name]
    return shards


def _is_inside(name: str) -> bool:
    """Whether the name can be that of a file in the folder or below it."""
    parts = PurePosixPath(name).parts
    possible = bool(parts) and "\0" not in name and max(map(len, parts)) <= LONGEST_NAME
    return possible and ".." not in parts and parts[0] != "/"


def _sharded(folder: Path, found: list[Fault], *, downloads: bool) -> Weights | None:
    shards = _shards(folder, INDEX, found)
    if not shards:
        return None
    files = f"the {len(shards)} files" if len(shards) > 1 else "the file"
    weights = Weights(f"{files} of {INDEX}")
    missing = []
    for name, promised in sorted(shards.items()):
        if not _exists(folder / name):
            missing.append(name)
            continue
        tensors = _tensors(folder / name, found)
        if tensors is None:
            weights.complete = False
            continue
        found += _not_as_promised(folder, name, promised, tensors, weights.tensors)
        weights.tensors |= tensors
    weights.complete = weights.complete and not missing
    if missing and not downloads:
        found.append(_missing_files(folder, missing, len(shards)))
    return weights


def _missing_files(folder: Path, missing: list[str], count: int) -> Fault:
    are = "is" if len(missing) == 1 else "are"
    return Fault(
        where=f"model {folder}",
        what=(
            f"{len(missing)} of the {count} weight files that {INDEX} names {are}"
            f" missing: {_listed(missing)}"
        ),
        hint="download the missing files; the model is incomplete without them",
    )


def _not_as_promised(
    folder: Path,
    name: str,
    promised: list[str],
    there: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> Iterator[Fault]:
    """What a shard lacks of what the index says, and what an earlier shard has too."""
    lacking = [
        tensor
        for tensor in promised
        if tensor not in there and not tensor.endswith(COMPUTED) and tensor != TIED
    ]
    if lacking:
        yield Fault(
            where=str(folder / name),
            what=f"lacks tensors that {INDEX} says are in it: {_listed(lacking)}",
            hint="index and files are of different models or versions: download all of them again",
        )
    twice = [tensor for tensor in there if tensor in before]
    if twice:
        yield Fault(
            where=str(folder / name),
            what=f"holds tensors that another file holds too: {_listed(twice)}",
            hint="index and files are of different models or versions: download all of them again",
        )


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
