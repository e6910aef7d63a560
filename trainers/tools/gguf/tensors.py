"""The weights of a model as GGUF has them: other names, some rows in another order, norms as they
are multiplied. One tensor is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.gguf import GgufFamily
from trainers.frame.files import read_json
from trainers.frame.model_files import reading
from trainers.tools.gguf.family import WAY_OUT, rotation_factors

IN_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.(.+)\.(weight|bias)")
AT_ENDS = re.compile(r"(.+)\.(weight|bias)")
NOT_WEIGHTS = re.compile(r".*rotary_emb\.inv_freq")  # that old checkpoints hold


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of a tensor."""

    name: str  # in GGUF
    heads: int  # rows of so many heads are put in another order; 0: they stay
    add: float


def change_of(name: str, family: GgufFamily, config: Any) -> Change | None:
    """What becomes of a tensor of transformers; None for one that GGUF has no name for."""
    if inside := IN_LAYER.fullmatch(name):
        layer, part, kind = inside.groups()
        known = family.layer.get(part)
        called = f"blk.{layer}.{known}.{kind}"
    elif outside := AT_ENDS.fullmatch(name):
        part, kind = outside.groups()
        known = family.ends.get(part)
        called = f"{known}.{kind}"
    else:
        return None
    if known is None:
        return None
    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    }.get(known, 0)
    return Change(
        name=called,
        heads=heads if family.swaps_pairs else 0,
        add=family.norm_offset if known.endswith("norm") else 0.0,
    )


def neighbours(rows: Any, heads: int) -> Any:
    """The rows of all heads, so that those that are rotated together stand side by side.

    transformers pairs row i of a head with row i + half; llama.cpp, for some families, row 2i with
    2i + 1.

    Args:
        rows: out, in (or out alone); out is heads × size.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a tensor of a model lies."""

    file: Path
    name: str  # in that file
    change: Change
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it: F32, BF16, F16

    def load(self) -> Any:
        """The tensor as GGUF has it, in its own dtype, or float32 where something is added."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as file:
            tensor = file.get_tensor(self.name)
        if self.change.heads:
            tensor = neighbours(tensor, self.change.heads)
        return tensor.float() + self.change.add if self.change.add else tensor


def sources(folder: Path, family: GgufFamily, config: Any) -> list[Source]:
    """Every tensor of a model folder, in the order of layers.

    Raises InputError if GGUF has no name for one, or the folder has no safetensors files.
    """
    found: list[Source] = []
    unknown: list[str] = []
    tied = bool(config.tie_word_embeddings)
    for name, file in sorted(_files(folder).items(), key=lambda entry: _order(entry[0])):
        change = change_of(name, family, config)
        if NOT_WEIGHTS.fullmatch(name) or (tied and name == "lm_head.weight"):
            continue  # llama.cpp takes the embeddings where there is no output matrix
        if change is None:
            unknown.append(name)
            continue
        shape, dtype = _header(file, name)
        found.append(Source(file=file, name=name, change=change, shape=shape, dtype=dtype))
    if unknown:
        raise InputError(
            f"GGUF has no place for {len(unknown)} tensors of a {family.architecture} model:"
            f" {', '.join(unknown[:3])}",
            where=str(folder),
            hint=WAY_OUT,
        )
    return found


def _files(folder: Path) -> Mapping[str, Path]:
    """Name of each tensor -> the file that holds it."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with reading(folder):
            return {name: folder / file for name, file in read_json(index)["weight_map"].items()}
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(
            "the model has no *.safetensors file",
            where=str(folder),
            hint="load it with transformers and save it with save_pretrained",
        )
    with reading(folder), safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path)


def _header(path: Path, name: str) -> tuple[tuple[int, ...], str]:
    from safetensors import safe_open

    with reading(path.parent), safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        return tuple(part.get_shape()), str(part.get_dtype())


def _order(name: str) -> tuple[int, str]:
    inside = IN_LAYER.fullmatch(name)
    return (int(inside.group(1)) if inside else -1, name)


def extra_tensors(config: Any) -> Iterator[tuple[str, Any]]:
    """Tensors of GGUF that transformers computes from the configuration."""
    factors = rotation_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors
