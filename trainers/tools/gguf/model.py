"""A model folder as one GGUF file (16 bit, or 8 bit in blocks): sizes and rotation as the
configuration has them, tensors by the names and in the order of rows that llama.cpp has. What
llama.cpp would compute otherwise is refused, with every reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.progress import BYTES, waiting
from advisor.model_files.folder import StoredTensor as Header
from advisor.model_files.folder import read_header
from trainers.job.files import read_json
from trainers.start.model_files import reading
from trainers.tools.gguf.tokens import WAY_OUT, read_tokens

# `model_type`, which is GGUF's name too -> key of config.json -> what llama.cpp computes with.
# A family needs a case of tests/trainers/test_gguf_proof.py and a comparison of its vocabulary.
SILU: dict[str, Sequence[Any]] = {"hidden_act": ("silu", "swish")}
FAMILIES = {
    "llama": SILU,
    "qwen2": {**SILU, "use_sliding_window": (False,)},
    "qwen3": {**SILU, "use_sliding_window": (False,), "attention_bias": (False,)},
}
NEIGHBOURS = ("llama",)  # rows 2i and 2i + 1 of a head are rotated together, not i and i + half
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
SINGLE = "model.safetensors"
F16_LARGEST = 65504.0
NOT_WEIGHTS = re.compile(r".*rotary_emb\.inv_freq")  # that old checkpoints hold


def read_config(folder: Path) -> Any:
    """The configuration of a model of a family that is proved, with transformers' defaults.

    Raises InputError with everything that GGUF cannot say of it.
    """
    from transformers import AutoConfig

    with reading(folder):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    check_family(config, str(folder))
    return config


def check_family(config: Any, where: str) -> None:
    """Raise InputError with everything of a configuration that llama.cpp computes otherwise."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"a GGUF file of a '{config.model_type}' model is not supported",
            where=where,
            allowed=f"supported: {', '.join(FAMILIES)}",
            hint=WAY_OUT,
        )
    wrong = [
        f"{key} is {getattr(config, key)!r}; llama.cpp computes with {allowed[0]!r}"
        for key, allowed in FAMILIES[config.model_type].items()
        if getattr(config, key, None) not in (*allowed, None)
    ]
    rope = config.rope_parameters
    if rope["rope_type"] not in ROPE_TYPES:
        wrong.append(f"rope_type '{rope['rope_type']}' is none of {', '.join(ROPE_TYPES)}")
    if rope["rope_type"] == "yarn" and not rope.get("truncate", True):
        wrong.append("YaRN's range of dimensions is not rounded (truncate is False)")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        wrong.append("only a part of each head is rotated (partial_rotary_factor)")
    if wrong:
        raise InputError(faults=[Fault(where=where, what=what, hint=WAY_OUT) for what in wrong])


def _sizes(config: Any) -> tuple[int, int, int]:
    """(heads, heads of keys and values, the width of one)."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def settings(config: Any) -> dict[str, Any]:
    """GGUF key behind the architecture's name -> value: an int is unsigned, a text is a text."""
    heads, groups, width = _sizes(config)
    rope = config.rope_parameters
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": groups,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = float(rope["factor"])
    if rope["rope_type"] == "yarn":
        before = int(rope["original_max_position_embeddings"])
        values["rope.scaling.original_context_length"] = before
        values |= _yarn(config)
    return values


def _yarn(config: Any) -> dict[str, float]:
    """What a configuration says of YaRN beside its factor. llama.cpp has the same defaults, and
    multiplies its own attention factor by `attn_factor`.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    _, attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    own = 0.1 * math.log(max(1.0, float(rope["factor"]))) + 1.0
    found = {
        f"rope.scaling.yarn_{name}": float(rope[name])
        for name in ("beta_fast", "beta_slow")
        if rope.get(name) is not None
    }
    if not math.isclose(attention, own):
        found["rope.scaling.attn_factor"] = attention / own
    return found


def rotation_factors(config: Any) -> Any | None:
    """What each frequency is divided by, as Llama 3.1 and later do: a tensor of half a head;
    None for a model that scales none of them on its own.
    """
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    _, _, width = _sizes(config)
    places = torch.arange(0, width, 2, dtype=torch.float32) / width
    return 1.0 / config.rope_parameters["rope_theta"] ** places / scaled


# --------------------------------------------------------------------------- tensors


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a GGUF file. One is in memory at a time."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # where it lies, as safetensors calls it: F32, BF16, F16
    load: Callable[[], Any]


def tensors(folder: Path, config: Any) -> list[Tensor]:
    """Every tensor of a model folder as GGUF has it, in the order of layers.

    Raises InputError if GGUF has no name for one, or the folder holds no whole model.
    """
    import gguf

    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found: list[tuple[int, str, Tensor]] = []
    unknown: list[str] = []
    for file, name, header in _headers(folder):
        # llama.cpp takes the embeddings where there is no output matrix.
        tied = name == "lm_head.weight" and config.tie_word_embeddings
        if tied or NOT_WEIGHTS.fullmatch(name):
            continue
        called = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            unknown.append(name)
            continue
        load = partial(_load, file, name, called.split(".")[-2], config)
        tensor = Tensor(name=called, shape=header.shape, dtype=header.dtype, load=load)
        layer = int(called.split(".")[1]) if called.startswith("blk.") else -1
        found.append((layer, name, tensor))
    if unknown:
        raise InputError(
            f"GGUF has no place for {len(unknown)} tensors of a {config.model_type} model:"
            f" {', '.join(sorted(unknown)[:3])}",
            where=str(folder),
            hint=WAY_OUT,
        )
    _refuse_other_shapes(folder, config)  # before weights are turned about
    found.sort(key=lambda one: one[:2])
    factors = rotation_factors(config)
    last = []
    if factors is not None:
        shape = tuple(factors.shape)
        last = [Tensor(name="rope_freqs.weight", shape=shape, dtype="F32", load=lambda: factors)]
    return [*(tensor for *_, tensor in found), *last]


def _refuse_other_shapes(folder: Path, config: Any) -> None:
    """Raise InputError for weights that are missing, or of another shape than config.json says."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    there = {name: tuple(header.shape) for _, name, header in _headers(folder)}
    wrong = [
        f"{name} {'is missing' if name not in there else f'has the shape {list(there[name])}'}"
        for name, wanted in model.state_dict().items()
        if there.get(name) != tuple(wanted.shape)
        and not (name == "lm_head.weight" and config.tie_word_embeddings)
    ]
    if wrong:
        what = f"the weights are not those of its config.json: {', '.join(wrong[:3])}"
        raise InputError(what, where=str(folder), hint="copy or download the folder again")


def _headers(folder: Path) -> list[tuple[Path, str, Header]]:
    index = folder / "model.safetensors.index.json"
    with reading(folder):
        names = read_json(index)["weight_map"].values() if index.is_file() else [SINGLE]
        files = [folder / name for name in sorted(set(names))]
        return [(file, *entry) for file in files for entry in read_header(file).items()]


def _load(file: Path, name: str, part: str, config: Any) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor = opened.get_tensor(name)
    heads, groups, _ = _sizes(config)
    turned = {"attn_q": heads, "attn_k": groups} if config.model_type in NEIGHBOURS else {}
    return neighbours(tensor, turned[part]) if part in turned else tensor


def neighbours(rows: Any, heads: int) -> Any:
    """The rows of all heads, so that those that llama.cpp rotates together stand side by side.

    Args:
        rows: out, in (or out alone); out is heads × width.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


# --------------------------------------------------------------------------- the file


@dataclass(frozen=True, kw_only=True)
class Written:
    """A GGUF file and what became of the weights."""

    kind: str  # F16, BF16, Q8_0
    ends: Sequence[int]  # tokens that end an answer
    begins: bool  # llama.cpp puts the first token in front of a text
    notes: Sequence[str]  # what the 16 bits cost, and what GGUF cannot hold, in sentences


def write_model(
    folder: Path, path: Path, *, kind: str = "", name: str = "", tokens_of: Path | None = None
) -> Written:
    """Write the model of a folder (safetensors, as save_pretrained leaves it) as GGUF.

    Raises InputError for a model that GGUF cannot hold.

    Args:
        kind: F16, BF16, Q8_0, or empty for the 16-bit type that loses nothing, or else least.
        name: What the file calls the model.
        tokens_of: The folder with tokenizer and chat template, if it is another one.
    """
    import gguf
    import numpy

    config = read_config(folder)
    found = tensors(folder, config)
    tokens = read_tokens(tokens_of or folder, config.vocab_size)
    sixteen, rounding = _sixteen_bit(found)
    kind = kind or sixteen
    values: dict[str, Any] = {
        "general.name": name or folder.name,
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[f"MOSTLY_{kind}"]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    values |= {f"{config.model_type}.{key}": value for key, value in settings(config).items()}
    # llama.cpp computes with norms and biases in 32 bit; a block of 8-bit numbers is 32 long.
    kinds = [
        gguf.GGMLQuantizationType[
            "F32" if len(one.shape) == 1 else sixteen if one.shape[-1] % 32 else kind
        ]
        for one in found
    ]
    total = sum(math.prod(one.shape) for one in found) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, config.model_type)
    types = gguf.GGUFValueType
    type_of = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    try:
        for key, value in (values | tokens.values).items():
            writer.add_key_value(key, value, type_of.get(type(value), types.ARRAY))
        for one, type_ in zip(found, kinds, strict=True):
            shape = gguf.quant_shape_to_byte_shape(one.shape, type_)
            byte = numpy.dtype(numpy.uint8)
            writer.add_tensor_info(one.name, shape, byte, math.prod(shape), raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with waiting("writing GGUF", total=total, unit=BYTES) as done:
            for one, type_ in zip(found, kinds, strict=True):
                writer.write_tensor_data(packed(one.load(), type_))
                done(math.prod(one.shape) * 2)
    finally:
        writer.close()
    notes = [*([rounding] if kind == sixteen else []), *tokens.notes]
    return Written(kind=kind, ends=tokens.ends, begins=tokens.begins, notes=notes)


def _sixteen_bit(found: Sequence[Tensor]) -> tuple[str, str]:
    """(F16 or BF16, what it costs): the type of the weights themselves if they have 16 bits.

    Of 32-bit weights F16 keeps 11 bits of each number and BF16 8, so F16 is taken unless a number
    is too large for it.
    """
    matrices = [one for one in found if len(one.shape) > 1]
    dtypes = {one.dtype for one in matrices}
    if dtypes in ({"BF16"}, {"F16"}):
        return dtypes.pop(), "the weights have 16 bits already: nothing is rounded"
    largest, worst = 0.0, 0.0
    with waiting("looking at the weights", total=len(matrices), unit="tensors") as done:
        for one in matrices:
            tensor = one.load().float()
            largest = max(largest, float(tensor.abs().max()))
            worst = max(worst, float((tensor.half().float() - tensor).abs().max()))
            done()
    if largest > F16_LARGEST:
        return "BF16", f"a weight of {largest:.3g} is too large for F16: rounded to bfloat16"
    return "F16", f"32-bit weights rounded to F16, by at most {worst:.2g}"


def packed(tensor: Any, kind: Any) -> Any:
    """The numbers of a tensor in a type of GGUF, as a numpy array."""
    import gguf
    import torch

    if kind == gguf.GGMLQuantizationType.BF16:
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    return gguf.quantize(tensor.float().contiguous().numpy(), kind)
