"""A model folder as one GGUF file: 16 bit, or 8 bit in blocks (Q8_0).

The file is written beside its place under a temporary name and renamed once it is whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.disk import TEMPORARY
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import cannot_write, free_bytes
from advisor.ground.model_folder import base_faults
from advisor.ground.progress import BYTES, waiting
from advisor.ground.units import format_gib
from trainers.tools.gguf.family import family_of, read_config, settings
from trainers.tools.gguf.tensors import Source, extra_tensors, sources
from trainers.tools.gguf.tokens import Tokens, read_tokens

F16_LARGEST = 65504.0
SPARE = 1.05  # of the computed size, for names and the vocabulary


@dataclass(frozen=True, kw_only=True)
class Written:
    """A GGUF file and what became of the weights."""

    path: Path
    kind: str  # F16, BF16, Q8_0
    size_bytes: int
    rounding: str  # what the 16 bits cost, in a sentence
    ends: tuple[int, ...]  # tokens that end an answer
    notes: tuple[str, ...]


def write_model(
    folder: Path, path: Path, *, kind: str = "", name: str = "", tokens_of: Path | None = None
) -> Written:
    """Write the model of a folder (safetensors, as save_pretrained leaves it) as GGUF.

    Raises InputError for a model that GGUF cannot hold, MachineNotReady without disk space.

    Args:
        kind: Q8_0, or empty for the 16-bit type that loses nothing, or else least.
        name: What the file calls the model.
        tokens_of: The folder with tokenizer and chat template, if it is another one.
    """
    config = read_config(str(folder))
    family = family_of(config, str(folder))
    found = sources(folder, family, config)
    if faults := base_faults(folder):  # before weights of another shape are turned about
        raise InputError(faults=faults)
    tokens = read_tokens(tokens_of or folder, config.vocab_size)
    sixteen, rounding = sixteen_bit(found)
    kind = kind or sixteen
    need_room(path, file_bytes(found, kind))
    with whole_file(path) as temporary:
        _write(
            temporary,
            found,
            dict(extra_tensors(config)),
            header=settings(config, family),
            tokens=tokens,
            architecture=family.architecture,
            kind=kind,
            sixteen=sixteen,
            name=name or folder.name,
        )
    return Written(
        path=path,
        kind=kind,
        size_bytes=path.stat().st_size,
        rounding=rounding if kind == sixteen else "",
        ends=tuple(tokens.ends),
        notes=tuple(tokens.notes),
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside the path; renamed at the end, removed if anything went wrong.

    Raises MachineNotReady where it cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sixteen_bit(found: list[Source]) -> tuple[str, str]:
    """(F16 or BF16, what it costs): the type of the weights themselves if they have 16 bits.

    Of 32-bit weights F16 keeps 11 bits of each number and BF16 8, so F16 is taken unless a number
    is too large for it.
    """
    matrices = [source for source in found if len(source.shape) > 1]
    dtypes = {source.dtype for source in matrices}
    if dtypes == {"BF16"}:
        return "BF16", "the weights are bfloat16 already: nothing is rounded"
    if dtypes == {"F16"}:
        return "F16", "the weights are float16 already: nothing is rounded"
    exact, largest, worst = True, 0.0, 0.0
    with waiting("looking at the weights", total=len(matrices), unit="tensors") as done:
        for source in matrices:
            tensor = source.load().float()
            exact = exact and bool((tensor.bfloat16().float() == tensor).all())
            top = float(tensor.abs().max())
            largest = max(largest, top)
            worst = max(worst, float((tensor.half().float() - tensor).abs().max()))
            done()
    if exact:
        return "BF16", "every weight is a bfloat16 number: nothing is rounded"
    if largest > F16_LARGEST:
        return "BF16", f"a weight of {largest:.3g} is too large for F16: rounded to bfloat16"
    return "F16", f"32-bit weights rounded to F16, by at most {worst:.2g}"


def file_bytes(found: list[Source], kind: str) -> int:
    """About the size of the file."""
    per_number = {"Q8_0": 34 / 32}.get(kind, 2.0)
    return int(
        SPARE
        * sum(
            math.prod(source.shape) * (per_number if len(source.shape) > 1 else 4)
            for source in found
        )
    )


def need_room(path: Path, need: int) -> None:
    """Raise MachineNotReady if so many bytes will not fit on the disk."""
    free = free_bytes(path)
    if need > free:
        raise MachineNotReady(
            f"the export needs about {format_gib(need)}, and {format_gib(free)} are free",
            where=str(path.parent),
            hint="free some space, or name another folder with --out",
        )


def _write(
    path: Path,
    found: list[Source],
    extra: Mapping[str, Any],
    *,
    header: Mapping[str, Any],
    tokens: Tokens,
    architecture: str,
    kind: str,
    sixteen: str,
    name: str,
) -> None:
    import gguf

    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in header.items():
        add_value(writer, f"{architecture}.{key}", value)
    _add_tokens(writer, tokens)

    def kind_of(source: Source) -> Any:
        if len(source.shape) == 1:
            return types.F32  # llama.cpp computes with norms and biases in 32 bit
        whole_blocks = source.shape[-1] % gguf.GGML_QUANT_SIZES[types[kind]][0] == 0
        return types[kind] if whole_blocks else types[sixteen]

    order = [(source.change.name, source.shape, kind_of(source)) for source in found]
    order += [(key, tuple(tensor.shape), types.F32) for key, tensor in extra.items()]
    for key, shape, of in order:
        add_info(writer, key, shape, of)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(math.prod(source.shape) for source in found) * 2
        with waiting("writing GGUF", total=total, unit=BYTES) as done:
            for source in found:
                writer.write_tensor_data(packed(source.load(), kind_of(source)))
                done(math.prod(source.shape) * 2)
            for tensor in extra.values():
                writer.write_tensor_data(packed(tensor, types.F32))
    finally:
        writer.close()


def add_info(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    """Announce a tensor that is written later."""
    import gguf
    import numpy

    plain = {"F32": numpy.float32, "F16": numpy.float16}.get(kind.name)
    if plain is not None:
        size = math.prod(shape) * numpy.dtype(plain).itemsize
        writer.add_tensor_info(name, shape, numpy.dtype(plain), size)
        return
    in_bytes = gguf.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(
        name, in_bytes, numpy.dtype(numpy.uint8), math.prod(in_bytes), raw_dtype=kind
    )


def packed(tensor: Any, kind: Any) -> Any:
    """The numbers of a tensor in a type of GGUF, as a numpy array."""
    import gguf
    import torch

    if kind.name == "BF16":
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    return gguf.quantize(tensor.float().contiguous().numpy(), kind)


def add_value(writer: Any, key: str, value: Any) -> None:
    """A key of the header, by the type of its value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, str(value))


def _add_tokens(writer: Any, tokens: Tokens) -> None:
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.kinds)
    if tokens.scores is not None:
        writer.add_token_scores(tokens.scores)
    if tokens.merges is not None:
        writer.add_token_merges(tokens.merges)
    for key, value in tokens.values.items():
        add_value(writer, f"tokenizer.{key}", value)
