"""What a GGUF file says of a model, read from its configuration: sizes, rotation, scales. A
configuration that llama.cpp would compute otherwise is refused, with every reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.gguf import GgufFamily, gguf_families
from trainers.frame.model_files import reading

WAY_OUT = (
    "`advise export RUN --to merged` writes a plain model; llama.cpp's own convert_hf_to_gguf.py"
    " knows more families (nothing is proved then)"
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def read_config(folder: str) -> Any:
    """The configuration of a model, with transformers' defaults. Raises InputError."""
    from transformers import AutoConfig

    with reading(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def family_of(config: Any, where: str) -> GgufFamily:
    """The family of a model. Raises InputError with everything that GGUF cannot say of it."""
    known = gguf_families()
    family = known.get(config.model_type)
    if family is None:
        raise InputError(
            f"a GGUF file of a '{config.model_type}' model is not supported",
            where=where,
            allowed=f"supported: {', '.join(known)}",
            hint=WAY_OUT,
        )
    faults = [Fault(where=where, what=what, hint=WAY_OUT) for what in _other_than(config, family)]
    if faults:
        raise InputError(faults=faults)
    return family


def _other_than(config: Any, family: GgufFamily) -> Iterator[str]:
    """What of a configuration llama.cpp would compute otherwise."""
    for key, allowed in family.fixed.items():
        value = getattr(config, key, None)
        if value not in allowed and value is not None:
            yield f"{key} is {value!r}; llama.cpp computes with {allowed[0]!r}"
    for key, (most, nth, every) in family.patterns.items():
        layers = list(getattr(config, key, None) or [])
        if layers != [nth if (at + 1) % every == 0 else most for at in range(len(layers))]:
            yield f"{key} is not {nth!r} in each {every}th layer and {most!r} in the others"
    if family.scaled_by_head_size:
        scale, size = config.query_pre_attn_scalar, head_size(config)
        if config.num_hidden_layers == family.unless_layers:
            size = config.hidden_size // config.num_attention_heads
        if scale != size:
            yield f"query_pre_attn_scalar is {scale}; llama.cpp computes with {size}"
    for rope in rope_of_kinds(config).values():
        if rope["rope_type"] not in ROPE_TYPES:
            yield f"rope_type '{rope['rope_type']}' is none of {', '.join(ROPE_TYPES)}"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield "only a part of each head is rotated (partial_rotary_factor)"


def head_size(config: Any) -> int:
    """The width of one attention head."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def rope_of_kinds(config: Any) -> dict[str, Mapping[str, Any]]:
    """Kind of layer -> its rotation; `full_attention` where all layers have the same."""
    rope = config.rope_parameters
    if "rope_type" in rope:
        return {"full_attention": rope}
    return {kind: values for kind, values in rope.items() if values}


def settings(config: Any, family: GgufFamily) -> dict[str, Any]:
    """GGUF key behind the architecture's name -> value: an int is unsigned, a text is a text."""
    size = head_size(config)
    heads = config.num_attention_heads
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": size,
    }
    for name, key in family.keys.items():
        value = getattr(config, key, None)
        if value is not None:
            values[name] = float(value) if "softcapping" in name else value
    return values | _rotation(rope_of_kinds(config))


def _rotation(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rope = kinds["full_attention"]
    values: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if "sliding_attention" in kinds:
        values["rope.freq_base_swa"] = float(kinds["sliding_attention"]["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = float(rope["factor"])
    if rope["rope_type"] == "yarn":
        values["rope.scaling.original_context_length"] = int(
            rope["original_max_position_embeddings"]
        )
    return values


def rotation_factors(config: Any) -> Any | None:
    """What each frequency is divided by, as Llama 3.1 and later do: a tensor of half a head;
    None for a model that scales none of them on its own.
    """
    rope = rope_of_kinds(config)["full_attention"]
    if rope["rope_type"] != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled


def model_name(folder: Path) -> str:
    """What to call a model in the file's own description."""
    return folder.name or "model"
