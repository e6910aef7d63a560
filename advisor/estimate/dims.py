"""The numbers of a ModelShape that memory and time formulas use, derived once per shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from advisor.estimate.architecture import FOUR_NORMS, OWN_ATTENTION, PLAIN_MLP
from advisor.estimate.frameworks import framework_of
from advisor.estimate.types import RunSpec
from advisor.ground.types import ModelShape
from advisor.methods.families import is_encoder

# Values of target_modules that name a set of layers, whatever the model calls them.
ALL_LINEAR, SHARED, WITH_EXPERTS = "all-linear", "attention-and-shared", "with-experts"
NAMED_SETS = (ALL_LINEAR, SHARED, WITH_EXPERTS)
USED_EXPERTS = 8  # per token, where only the sizes of a mixture are known: as in Qwen3's
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
    linear_params: int  # of linear layers outside routed experts: what nf4 and int8 quantise
    routed_params: int  # routed experts and routers: one tensor for all experts of a layer
    routed_layers: int
    used_experts: int  # routed experts that one token passes through
    shared_size: int  # MLP width of the experts that every token passes through
    shared_ends: int  # inputs + outputs of a mixture's linear layers outside routed experts
    other_params: int  # norms and biases

    @property
    def layer_params(self) -> int:
        return (self.linear_params + self.routed_params + self.other_params) // self.layers

    @property
    def expert_ends(self) -> int:
        """Inputs + outputs of all routed experts: what a correction of rank 1 adds to them."""
        return self.routed_layers * self.experts * (2 * self.hidden + 3 * self.expert_width)

    @property
    def expert_layer_params(self) -> int:
        """The weight matrices of the routed experts of one layer."""
        return self.experts * 3 * self.hidden * self.expert_width

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
            if not self.shared_size:
                return None
            shared = {
                "gate_proj": (hidden, self.shared_size, 1),
                "up_proj": (hidden, self.shared_size, 1),
                "down_proj": (self.shared_size, hidden, 1),
                "gate_up": (hidden, 2 * self.shared_size, 1),
            }  # fmt: skip
            return shared.get(name.removeprefix("shared_"))
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
    encoder = is_encoder(family)
    matrices = 1 if shape.tied_embeddings or encoder else 2
    embedding = min(vocab * hidden * matrices, shape.params // 2) + shape.lookup_params
    other = layers * 2 * hidden + hidden
    linear = max(0, shape.params - embedding - other)
    active = shape.active_params or shape.params
    experts, expert_width = 1, shape.intermediate_size or 4 * hidden
    width = expert_width
    attention = hidden * (2 * q_size + 2 * kv_size)
    routed, routed_layers, used, shared_ends = 0, 0, 1, 0
    if shape.experts and shape.expert_size:
        experts, expert_width = shape.experts, shape.expert_size
        # What is active and is no attention nor embedding passes through the chosen and the shared
        # experts.
        width = max(
            shape.expert_size * (shape.experts_per_token or 1),
            round((active - embedding - other) / layers - attention) // (3 * hidden),
        )
        routed, routed_layers = min(shape.routed_params, linear), shape.routed_layers
        used, shared_ends = shape.experts_per_token or 1, shape.shared_ends
    elif active < shape.params:
        # A mixture known by its sizes alone: what is neither attention nor embeddings are experts,
        # of which a token passes through so many that their widths add up to the active one's.
        used, routed_layers = USED_EXPERTS, layers
        expert_width = max(1, width // used)
        experts = max(
            used + 1, round((linear - layers * attention) / (layers * 3 * hidden * expert_width))
        )
        routed = min(linear, layers * experts * 3 * hidden * expert_width)
        shared_ends = layers * (4 * hidden + 2 * q_size + 2 * kv_size)
    return Dims(
        params=shape.params, active=active, hidden=hidden, layers=layers, heads=heads,
        q_size=q_size, kv_size=kv_size, width=width, vocab=vocab, gated=gated,
        encoder=encoder,
        eager_only=family in OWN_ATTENTION, norms=4 if family in FOUR_NORMS else 2, experts=experts,
        expert_width=expert_width,
        embedding_params=embedding, head_params=vocab * hidden, linear_params=linear - routed,
        routed_params=routed, routed_layers=routed_layers, used_experts=used,
        shared_size=shape.shared_size, shared_ends=shared_ends, other_params=other,
    )  # fmt: skip


def targets(dims: Dims, spec: RunSpec) -> tuple[str, ...]:
    """The linear layers LoRA adapts, by common name.

    On a mixture of experts routed experts are among them only if the stack holds them as linear
    layers: transformers 5 does not, and their corrections are counted by `trained_ends`.
    """
    linear = framework_of(spec.framework).linear_experts
    found = list(
        dict.fromkeys(
            common
            for name in _named_targets(dims, spec)
            if (common := _common_name(dims, name, linear_experts=linear)) is not None
        )
    )
    if {"q_proj", "qkv"} <= set(found):  # one of the two naming schemes exists in a model
        found.remove("qkv")
    return tuple(found) or ATTENTION


def unknown_targets(dims: Dims, spec: RunSpec) -> tuple[str, ...]:
    """The target modules of a spec that name no layer of this model: they count for nothing in an
    estimate.
    """
    linear = framework_of(spec.framework).linear_experts
    return tuple(
        name
        for name in _named_targets(dims, spec)
        if _common_name(dims, name, linear_experts=linear) is None
    )


def trained_ends(dims: Dims, spec: RunSpec) -> int | None:
    """Inputs + outputs of all layers that a named set of targets adapts in a mixture of experts, so
    that rank x this is what trains; None where targets are counted by name.
    """
    if dims.experts < 2 or framework_of(spec.framework).linear_experts:
        return None
    wanted = spec.target_modules
    if wanted not in NAMED_SETS:
        return None
    return dims.shared_ends + (dims.expert_ends if wanted == WITH_EXPERTS else 0)


def corrects_experts(dims: Dims, spec: RunSpec) -> bool:
    """Whether corrections are added to the tensors of routed experts in each forward pass."""
    return (
        spec.target_modules == WITH_EXPERTS
        and dims.experts > 1
        and not framework_of(spec.framework).linear_experts
    )


def _named_targets(dims: Dims, spec: RunSpec) -> Sequence[str]:
    wanted = spec.target_modules
    if wanted in NAMED_SETS:
        mlp = [name for name in MLP if dims.linear(name) is not None]
        if dims.experts > 1 and not framework_of(spec.framework).linear_experts:
            mlp = [f"shared_expert.{name}" for name in mlp if dims.shared_size]
        return (*ATTENTION, *mlp)
    return (wanted,) if isinstance(wanted, str) else wanted


def _common_name(dims: Dims, name: str, *, linear_experts: bool) -> str | None:
    """The common name of a layer of this model, None where it has none of that name."""
    common = ALIASES.get(name.rsplit(".", 1)[-1].lower())
    of_mlp = common in (*MLP, "gate_up") and dims.experts > 1
    if common is not None and ("shared_expert" in name or (of_mlp and not linear_experts)):
        common = f"shared_{common}"
    return (
        common
        if common == "lm_head" or (common is not None and dims.linear(common) is not None)
        else None
    )
