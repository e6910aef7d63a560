"""The numbers of a ModelShape that memory and time formulas use, derived once per shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from advisor.estimate.architecture import ENCODERS, FOUR_NORMS, OWN_ATTENTION, PLAIN_MLP
from advisor.estimate.types import RunSpec
from advisor.ground.types import ModelShape

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# Other names for the same linear layers. "c_proj" is the attention's output in GPT-2 and Qwen-1
# (and a small MLP's there: left out).
ALIASES = {
    "q_proj": "q_proj", "q": "q_proj", "query": "q_proj", "q_lin": "q_proj", "wq": "q_proj",
    "k_proj": "k_proj", "k": "k_proj", "key": "k_proj", "k_lin": "k_proj", "wk": "k_proj",
    "v_proj": "v_proj", "v": "v_proj", "value": "v_proj", "v_lin": "v_proj", "wv": "v_proj",
    "o_proj": "o_proj", "out_proj": "o_proj", "output_proj": "o_proj", "dense": "o_proj",
    "out_lin": "o_proj", "wo": "o_proj", "proj": "o_proj", "c_proj": "o_proj",
    "gate_proj": "gate_proj", "w1": "gate_proj", "fc_1": "gate_proj",
    "w2": "down_proj",
    "up_proj": "up_proj", "w3": "up_proj", "fc1": "up_proj", "fc_2": "up_proj",
    "dense_h_to_4h": "up_proj", "c_fc": "up_proj", "lin1": "up_proj", "fc": "up_proj",
    "down_proj": "down_proj", "fc2": "down_proj", "dense_4h_to_h": "down_proj", "lin2": "down_proj",
    "c_attn": "qkv", "query_key_value": "qkv", "qkv_proj": "qkv", "qkv": "qkv", "attn": "qkv",
    "wqkv": "qkv", "w_pack": "qkv",
    "gate_up_proj": "gate_up", "wi": "gate_up", "lm_head": "lm_head", "head": "lm_head",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of one decoder (or encoder); `width` is the MLP width one token passes through, over
    all its experts.
    """

    params: int
    active: int
    hidden: int
    layers: int
    heads: int
    q_size: int
    kv_size: int
    width: int
    vocab: int
    gated: bool
    encoder: bool
    norms: int  # per layer
    eager_only: bool  # its own code computes attention scores whole, whatever was asked for
    experts: int
    expert_width: int
    embedding_params: int  # embeddings, and the output matrix where it is not tied: never quantised
    head_params: int  # the matrix that makes logits, tied or not
    linear_params: int  # what nf4 and int8 quantise
    other_params: int  # norms and biases

    @property
    def layer_params(self) -> int:
        return (self.linear_params + self.other_params) // self.layers

    def linear(self, name: str) -> tuple[int, int, int] | None:
        """(in, out, how many per layer) of a linear layer by its common name; None where the model
        has none.
        """
        hidden = self.hidden
        mlp = self.expert_width
        table = {
            "q_proj": (hidden, self.q_size, 1), "k_proj": (hidden, self.kv_size, 1),
            "v_proj": (hidden, self.kv_size, 1), "o_proj": (self.q_size, hidden, 1),
            "qkv": (hidden, self.q_size + 2 * self.kv_size, 1),
            "gate_proj": (hidden, mlp, self.experts), "up_proj": (hidden, mlp, self.experts),
            "down_proj": (mlp, hidden, self.experts), "gate_up": (hidden, 2 * mlp, self.experts),
        }  # fmt: skip
        if (
            name.startswith("shared_") and self.experts > 1
        ):  # one expert that every token passes through
            sizes = table.get(name.removeprefix("shared_"))
            return None if sizes is None else (sizes[0], sizes[1], 1)
        if name == "gate_proj" and not self.gated:
            return None
        return table.get(name)


@lru_cache(maxsize=512)
def dims_of(shape: ModelShape) -> Dims | None:
    """The sizes; None where the shape holds a parameter count alone."""
    if shape.hidden_size is None or shape.layers is None or shape.vocab_size is None:
        return None
    hidden, layers, vocab = shape.hidden_size, shape.layers, shape.vocab_size
    heads = shape.heads or max(1, hidden // 128)
    head_dim = shape.head_dim or hidden // heads
    family = shape.architecture or ""
    gated = family not in PLAIN_MLP
    q_size, kv_size = heads * head_dim, (shape.kv_heads or heads) * head_dim
    matrices = 1 if shape.tied_embeddings or family in ENCODERS else 2
    embedding = min(vocab * hidden * matrices, shape.params // 2) + shape.lookup_params
    other = layers * 2 * hidden + hidden
    linear = max(0, shape.params - embedding - other)
    active = shape.active_params or shape.params
    experts, expert_width = 1, shape.intermediate_size or 4 * hidden
    width = expert_width
    if shape.experts and shape.expert_size:
        experts, expert_width = shape.experts, shape.expert_size
        # What is active and is no attention nor embedding passes through the chosen and the shared
        # experts.
        attention = hidden * (2 * q_size + 2 * kv_size)
        width = max(
            shape.expert_size * (shape.experts_per_token or 1),
            round((active - embedding - other) / layers - attention) // (3 * hidden),
        )
    return Dims(
        params=shape.params, active=active, hidden=hidden, layers=layers, heads=heads,
        q_size=q_size, kv_size=kv_size, width=width, vocab=vocab, gated=gated,
        encoder=family in ENCODERS,
        eager_only=family in OWN_ATTENTION, norms=4 if family in FOUR_NORMS else 2, experts=experts,
        expert_width=expert_width,
        embedding_params=embedding, head_params=vocab * hidden, linear_params=linear,
        other_params=other,
    )  # fmt: skip


def targets(dims: Dims, spec: RunSpec) -> tuple[str, ...]:
    """The linear layers LoRA adapts, by common name.

    Mixtures: `all-linear` leaves the experts out, which are no linear modules in transformers.
    """
    found = list(
        dict.fromkeys(
            common
            for name in _named_targets(dims, spec)
            if (common := _common_name(dims, name)) is not None
        )
    )
    if {"q_proj", "qkv"} <= set(found):  # one of the two naming schemes exists in a model
        found.remove("qkv")
    return tuple(found) or ATTENTION


def unknown_targets(dims: Dims, spec: RunSpec) -> tuple[str, ...]:
    """The target modules of a spec that name no layer of this model: they count for nothing in an
    estimate.
    """
    return tuple(name for name in _named_targets(dims, spec) if _common_name(dims, name) is None)


def _named_targets(dims: Dims, spec: RunSpec) -> Sequence[str]:
    wanted = spec.target_modules
    if wanted == "all-linear":
        return (
            ATTENTION
            if dims.experts > 1
            else (*ATTENTION, *(name for name in MLP if dims.linear(name) is not None))
        )
    return (wanted,) if isinstance(wanted, str) else wanted


def _common_name(dims: Dims, name: str) -> str | None:
    """The common name of a layer of this model, None where it has none of that name."""
    common = ALIASES.get(name.rsplit(".", 1)[-1].lower())
    if common is not None and "shared_expert" in name:
        common = f"shared_{common}"
    return (
        common
        if common == "lm_head" or (common is not None and dims.linear(common) is not None)
        else None
    )
