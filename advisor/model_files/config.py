"""The numbers of a model's config.json, under the many names that families have for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.units import is_finite

NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate_size": (
        "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "hidden_dim", "d_ff", "n_ffn",
    ),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "context_tokens": (
        "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length",
        "max_seq_len", "context_length",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": (
        "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_top_k",
        "moe_topk", "top_k_experts", "moe_k",
    ),
    "expert_size": ("moe_intermediate_size", "expert_intermediate_size"),
}  # fmt: skip
REQUIRED = ("hidden_size", "layers", "vocab_size")
# Where a multimodal model keeps the configuration of the part that writes text.
INNER = ("text_config", "llm_config", "language_config")


# Of config.json and generation_config.json: which token ids end, pad and begin a text.
TOKEN_IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
# Of generation_config.json.
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams",
    "num_return_sequences", "no_repeat_ngram_size",
)  # fmt: skip
FLAGS = ("do_sample", "use_cache", "output_hidden_states", "output_attentions")
LARGEST, MOST_LAYERS = 10**9, 10**4  # no model has a larger dimension, or more layers
# Families whose heads divide the hidden size where config.json has no head_dim.
DIVIDING = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "olmo2", "olmo3", "smollm3", "granite",
    "stablelm", "olmoe",
)  # fmt: skip


def config_faults(config: Mapping[str, Any], path: str) -> list[Fault]:
    """Values of config.json, at this path, that no model can have."""
    wrong: list[tuple[str, Any, str]] = []  # key, value, what it may be
    found: list[Fault] = []
    family, quantised = config.get("model_type"), config.get("quantization_config")
    if family is not None and not isinstance(family, str):
        wrong.append(("model_type", family, "the name of a model family"))
    if quantised is not None and not _names_a_method(quantised):
        allowed = "a map that names its quant_method"
        wrong.append(("quantization_config", quantised, allowed))
    inner = text_config(config)
    for field, names in NAMES.items():
        name = next((name for name in names if name in inner), None)
        value = inner.get(name) if name is not None else None
        needed = field in (*REQUIRED, "heads")
        if name is None or isinstance(value, list | dict) or (value is None and not needed):
            continue  # left out, or another number for each layer
        if isinstance(value, float) and value == value // 1 and 0 < value <= LARGEST:
            continue
        most = MOST_LAYERS if field == "layers" else LARGEST
        if type(value) is not int or not int(needed) <= value <= most:
            wrong.append((name, value, "a positive whole number"))

    def fault(what: str, allowed: str = "") -> None:
        found.append(Fault(where=path, what=what, allowed=allowed, hint="download it again"))

    hidden, heads, groups = (read(inner, field) for field in ("hidden_size", "heads", "kv_heads"))
    if not wrong and heads and inner.get("model_type") in DIVIDING:
        if hidden and hidden % heads and read(inner, "head_dim") is None:
            numbers = f"{heads} attention heads (num_attention_heads)"
            fault(f"{numbers} do not divide a hidden_size of {hidden}")
        if groups and heads % groups:
            numbers = f"{groups} key and value heads (num_key_value_heads)"
            fault(f"{numbers} do not divide {heads} attention heads")
    for key, value, allowed in wrong:
        shown = json.dumps(value, ensure_ascii=False)
        fault(f"{key} is {shown if len(shown) <= 40 else f'{shown[:37]}...'}", allowed)
    return found


def _names_a_method(value: Any) -> bool:
    if not value or not isinstance(value, Mapping):
        return isinstance(value, Mapping)
    method = value.get("quant_method")
    return isinstance(method, str) or (
        method is None and any(key in value for key in ("load_in_4bit", "load_in_8bit", "bits"))
    )


def wrong_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Key of generation_config.json -> what it may be, for each value that it may not."""
    wrong = {}
    for key, value in values.items():
        if value is None:
            continue
        if key in TOKEN_IDS and not _are_token_ids(value):
            wrong[key] = "a token id, or a list of token ids"
        elif key in NUMBERS and not is_number(value):
            wrong[key] = "a number"
        elif key in FLAGS and not isinstance(value, bool | list):
            wrong[key] = "true or false"
    return wrong


def _are_token_ids(value: Any) -> bool:
    items = value if isinstance(value, list) and value else [value]
    return all(type(item) is int and item >= -1 for item in items)


def is_number(value: Any) -> bool:
    """Whether it is a finite number and no flag."""
    return type(value) in (int, float) and is_finite(value)


def read(config: Mapping[str, Any], field: str) -> int | None:
    """The field under any of its names; of a list for each layer, the number all share."""
    for name in NAMES[field]:
        value = config.get(name)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the part that reads and writes text, or all of it if there is one."""
    inner = next((config[key] for key in INNER if config.get(key)), None)
    if not isinstance(inner, Mapping):
        return config
    # The outer tie flag is the one transformers reads for multimodal models, unless only the text
    # tower states it.
    return {**{key: config[key] for key in ("tie_word_embeddings",) if key in config}, **inner}
