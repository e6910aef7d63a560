"""Parameters of Gemma 4's layers, which are not all alike.

After transformers 5.24, models/gemma4: every fifth or sixth layer attends to everything, with heads
of another size; the last layers of the small models take keys and values from earlier ones and have
an MLP twice as wide; mixtures have a dense MLP too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.types import ModelShape

FAMILIES = frozenset(("gemma4", "gemma4_text"))
GLOBAL_HEAD_DIM = 512  # class default of transformers' Gemma4TextConfig
GLOBAL_EVERY = 6  # and its pattern of layers


def layer_parameters(shape: ModelShape, config: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters of all layers: held, and used by one token."""
    layers = shape.layers or 0
    shared_from = layers - int(config.get("num_kv_shared_layers") or 0)
    held = used = 0
    for index in range(layers):
        shared = index >= shared_from
        both = _attention(shape, config, index, shared=shared) + _dense(
            shape, wide=shared and bool(config.get("use_double_wide_mlp"))
        )
        experts_held, experts_used = _experts(shape)
        held, used = held + both + experts_held, used + both + experts_used
    return held, used


def _global(config: Mapping[str, Any], index: int, layers: int) -> bool:
    """Whether a layer attends to the whole context."""
    types = config.get("layer_types")
    if isinstance(types, list) and index < len(types):
        return bool(types[index] == "full_attention")
    summary = config.get("layer_types_summary") or {}
    every = (
        layers // int(summary["full_attention"]) if summary.get("full_attention") else GLOBAL_EVERY
    )
    return (index + 1) % every == 0 or index == layers - 1


def _attention(shape: ModelShape, config: Mapping[str, Any], index: int, *, shared: bool) -> int:
    """Projections and the norms of queries and keys of one layer."""
    hidden = shape.hidden_size or 0
    dim, kv_heads, values = _heads(shape, config, index)
    query_and_output = 2 * hidden * (shape.heads or 1) * dim + dim
    return (
        query_and_output
        if shared
        else query_and_output + hidden * kv_heads * dim * (1 + values) + dim
    )


def _heads(shape: ModelShape, config: Mapping[str, Any], index: int) -> tuple[int, int, int]:
    """(size of a head, heads of keys, 1 if values have a projection of their own else 0)."""
    dim, kv_heads = shape.head_dim or 0, shape.kv_heads or 1
    if not _global(config, index, shape.layers or 0):
        return dim, kv_heads, 1
    own = _own(config, index)
    alternative = bool(config.get("attention_k_eq_v"))
    dim = int(own.get("head_dim") or config.get("global_head_dim") or GLOBAL_HEAD_DIM)
    kv_heads = int(
        own.get("num_key_value_heads")
        or (config.get("num_global_key_value_heads") if alternative else None)
        or kv_heads
    )
    return dim, kv_heads, 0 if alternative else 1  # keys serve as values


def _own(config: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """What newer configurations say of one layer, under its number."""
    for key, value in (config.get("per_layer_config") or {}).items():
        if int(key) == index and isinstance(value, Mapping):
            return value
    return {}


def _dense(shape: ModelShape, *, wide: bool) -> int:
    """The dense MLP with the four norms around it and attention."""
    hidden = shape.hidden_size or 0
    return 3 * hidden * (shape.intermediate_size or 0) * (2 if wide else 1) + 4 * hidden


def _experts(shape: ModelShape) -> tuple[int, int]:
    """Routed experts beside the dense MLP, with router, scales and three more norms: held and
    used.
    """
    if not shape.experts:
        return 0, 0
    hidden = shape.hidden_size or 0
    one = 3 * hidden * (shape.expert_size or 0)
    rest = shape.experts * hidden + hidden + shape.experts + 3 * hidden
    return shape.experts * one + rest, (shape.experts_per_token or 1) * one + rest


def mixture_parts(shape: ModelShape, config: Mapping[str, Any]) -> tuple[int, int]:
    """(parameters of routed experts and routers, inputs + outputs of all other linear layers)."""
    hidden, layers, width = shape.hidden_size or 0, shape.layers or 0, shape.intermediate_size or 0
    shared_from = layers - int(config.get("num_kv_shared_layers") or 0)
    ends = 0
    for index in range(layers):
        dim, kv_heads, values = _heads(shape, config, index)
        ends += 2 * (hidden + (shape.heads or 1) * dim)
        if index < shared_from:
            ends += (1 + values) * (hidden + kv_heads * dim)
        wide = index >= shared_from and bool(config.get("use_double_wide_mlp"))
        ends += 3 * (hidden + width * (2 if wide else 1))
    held, _ = _experts(shape)
    return layers * (held - 3 * hidden), ends  # without the norms
