"""Mixtures of experts: what their layers hold, and which of it is no linear layer.

transformers 5 keeps the experts of a layer in two tensors of three dimensions
(`Qwen3MoeExperts.gate_up_proj`, `.down_proj`), and most routers in a parameter of their own.
bitsandbytes quantises linear layers alone, so experts and routers stay in 16 bit on a 4-bit or
8-bit base; attention, shared experts and dense layers are quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.estimate import gemma4
from advisor.ground.types import ModelShape


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """Parameters of the MLP of one layer with routed experts."""

    routed: int  # all routed experts and the router
    held: int  # with the shared experts
    used: int  # that one token passes through


def routed_layers(shape: ModelShape, config: Mapping[str, Any]) -> int:
    """How many layers have routed experts; the others have a dense MLP."""
    layers = shape.layers or 0
    if shape.experts is None:
        return 0
    dense_first = config.get("first_k_dense_replace")
    if isinstance(dense_first, int):
        return max(0, layers - dense_first)
    step = config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1
    dense_layers = config.get("mlp_only_layers") or []
    return sum(
        1 for layer in range(layers) if layer not in dense_layers and (layer + 1) % int(step) == 0
    )


def one_layer(shape: ModelShape, config: Mapping[str, Any]) -> ExpertLayer:
    """Parameters of one layer's experts and router."""
    family = shape.architecture or ""
    hidden, experts, used = shape.hidden_size or 0, shape.experts or 0, shape.experts_per_token or 1
    one = 3 * hidden * (shape.expert_size or shape.intermediate_size or 0)
    router = hidden * experts
    if family == "gpt_oss":  # biases on both expert matrices and on the router
        one += 2 * (shape.expert_size or 0) + hidden
        router += experts
    if family == "deepseek_v3":
        # the correction bias is a buffer in transformers, a weight in the checkpoint: counted
        router += experts
    shared = 3 * hidden * _shared_size(shape, config)
    if config.get("shared_expert_intermediate_size"):
        shared += hidden  # the gate of the shared expert
    routed = experts * one + router
    return ExpertLayer(routed=routed, held=routed + shared, used=used * one + router + shared)


def _shared_size(shape: ModelShape, config: Mapping[str, Any]) -> int:
    """MLP width of the shared experts of a layer; 0 if there are none."""
    if config.get("shared_expert_intermediate_size"):
        return int(config["shared_expert_intermediate_size"])
    if config.get("n_shared_experts"):
        return (shape.expert_size or 0) * int(config["n_shared_experts"])
    return (shape.expert_size or 0) if shape.architecture == "llama4" else 0


@dataclass(frozen=True, slots=True)
class MixtureParts:
    """What a ModelShape holds of a mixture of experts, in its fields of the same names."""

    routed_params: int
    routed_layers: int
    shared_size: int
    shared_ends: int


def mixture_parts(shape: ModelShape, config: Mapping[str, Any]) -> MixtureParts:
    """Routed and shared parts of a mixture of experts."""
    if shape.architecture in gemma4.FAMILIES:
        routed_params, shared_ends = gemma4.mixture_parts(shape, config)
        return MixtureParts(
            routed_params, shape.layers or 0, shape.intermediate_size or 0, shared_ends
        )
    hidden, layers = shape.hidden_size or 0, shape.layers or 0
    routed, shared = routed_layers(shape, config), _shared_size(shape, config)
    dense = 3 * (hidden + (shape.intermediate_size or 0))
    ends = _attention_ends(shape, config) + (layers - routed) * dense
    ends += routed * 3 * (hidden + shared) if shared else 0
    return MixtureParts(routed * one_layer(shape, config).routed, routed, shared, ends)


def _attention_ends(shape: ModelShape, config: Mapping[str, Any]) -> int:
    """Inputs + outputs of the linear layers of attention, over all layers of the model."""
    hidden, heads, layers = shape.hidden_size or 0, shape.heads or 1, shape.layers or 0
    q_size = heads * (shape.head_dim or 0)
    kv_size = (shape.kv_heads or heads) * (shape.head_dim or 0)
    if config.get("kv_lora_rank"):  # DeepSeek's latent attention
        rank, rope, nope, value = (
            int(config.get(key) or 0)
            for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        )
        q_rank, query = int(config.get("q_lora_rank") or 0), heads * (nope + rope)
        ends = hidden + query + (2 * q_rank if q_rank else 0)
        ends += hidden + rank + rope  # to keys and values
        ends += rank + heads * (nope + value)
        return layers * (ends + heads * value + hidden)
    full = 4 * hidden + 2 * q_size + 2 * kv_size
    interval = config.get("full_attention_interval")
    if not interval or not config.get("linear_num_value_heads"):
        return layers * full
    # Gated DeltaNet on the other layers; q_proj is doubled by the output gate.
    full_layers = layers // int(interval)
    value_heads = int(config["linear_num_value_heads"])
    keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    values = value_heads * int(config["linear_value_head_dim"])
    inputs = 2 if shape.architecture == "qwen3_next" else 4  # Qwen3.5 has a layer for each part
    linear = inputs * hidden + 2 * keys + 2 * values + 2 * value_heads + values + hidden
    return full_layers * (full + q_size) + (layers - full_layers) * linear
