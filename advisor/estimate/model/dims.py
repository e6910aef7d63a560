"""The numbers of a ModelShape that memory and time formulas use, derived once per shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from advisor.estimate.model.architecture import OWN_ATTENTION
from advisor.estimate.model.layers import Attention, Latent, LayerKind, Structure
from advisor.estimate.model.layouts import layout_of
from advisor.estimate.model.structure import structure_of
from advisor.ground.types import ModelShape
from advisor.methods.families import is_encoder

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


def ends_by_name(structure: Structure) -> Mapping[tuple[str, str], int]:
    """(name of a linear layer, part of the model) -> inputs + outputs of all that LoRA adapts."""
    found: dict[tuple[str, str], int] = {}
    for linear, count in structure.all_linears:
        if not linear.adapted:
            continue
        key = (linear.name.lower(), linear.part)
        found[key] = found.get(key, 0) + count * linear.ends
    return found


def by_common_name(ends: Mapping[tuple[str, str], int]) -> Mapping[tuple[str, str], int]:
    """The same for the names under which `ALIASES` gathers them."""
    found = dict(ends)
    for (name, part), size in ends.items():
        common = ALIASES.get(name)
        if common is None or common == name or (common in (*ATTENTION, "qkv")) != (part == "mixer"):
            continue
        if (common, part) not in ends:
            found[common, part] = found.get((common, part), 0) + size
    return found


USED_EXPERTS = 8  # per token, where only the sizes of a mixture are known: as in Qwen3's


class Dims(Struct, frozen=True, eq=False):
    """Sizes of one decoder (or encoder).

    The numbers are sums and means over all layers of `structure`: `width` is the MLP width one
    token passes through, over all its experts.
    """

    family: str  # model_type of config.json
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
    eager_only: bool  # its own code computes attention scores whole, whatever was asked for
    experts: int
    expert_width: int
    embedding_params: int  # embeddings, and the output matrix where it is not tied: never quantised
    head_params: int  # the matrix that makes logits, tied or not
    linear_params: int  # of linear layers outside routed experts: what nf4 and int8 quantise
    routed_params: int  # routed experts and routers: one tensor for all experts of a layer
    routed_layers: int
    renamed: bool  # PEFT takes experts for the linear layers that they were in transformers 4
    used_experts: int  # routed experts that one token passes through
    shared_size: int  # MLP width of the experts that every token passes through
    shared_ends: int  # inputs + outputs of all linear layers that "all-linear" adapts, summed
    # The same by (name in lower case, part of the model), and by (common name, part).
    named_ends: Mapping[tuple[str, str], int]
    other_params: int  # norms, biases, convolutions, positions
    scores: tuple[tuple[int, int | None], ...]  # width of queries over layers, and their window
    caches: tuple[tuple[int, int | None], ...]  # numbers cached per token over layers, and windows
    structure: Structure

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer is made of."""
        return self.structure.kinds

    @property
    def is_plain(self) -> bool:
        """Whether it has attention with queries, keys and values of their own width."""
        return any(isinstance(part, Attention) for kind in self.kinds for part in kind.mixers)

    @property
    def has_narrow_values(self) -> bool:
        """Whether values of attention are narrower than queries, which some kernels refuse."""
        return any(isinstance(part, Latent) for kind in self.kinds for part in kind.mixers)

    def share_of_experts(self, tokens: float) -> float:
        """Of the routed experts, those that so many tokens choose, at random."""
        if self.experts < 2:
            return 1.0
        return float(1 - (1 - self.used_experts / self.experts) ** max(1.0, tokens))

    def attended(self, length: float, *, whole: bool = False) -> float:
        """Queries' width x tokens they are compared with, over all layers with softmax attention.

        A query sees half of `length` tokens in the mean, or its window: the window counts twice, so
        that half of the result is right for both.

        Args:
            whole: All scores are computed, and most of them masked (no kernel for windows).
        """
        return sum(
            size * (length if whole or window is None else min(length, 2 * window))
            for size, window in self.scores
        )

    def cached(self, length: float) -> float:
        """Numbers that one answer of this length keeps as keys and values, over all layers."""
        return sum(
            size * (length if window is None else min(length, window))
            for size, window in self.caches
        )

    @property
    def layer_params(self) -> int:
        return (self.linear_params + self.routed_params + self.other_params) // self.layers

    @property
    def expert_ends(self) -> int:
        """Inputs + outputs of all routed experts: what a correction of rank 1 adds to them."""
        return sum(kind.count * kind.experts.ends for kind in self.kinds if kind.experts)

    @property
    def renamed_ends(self) -> int:
        """The same under PEFT's own "all-linear", with routers that are tensors."""
        routers = sum(
            kind.count * (self.hidden + kind.experts.count)
            for kind in self.kinds
            if kind.experts and kind.router
        )
        experts = sum(kind.count * kind.experts.renamed_ends for kind in self.kinds if kind.experts)
        return experts + routers

    @property
    def peft_ends(self) -> int:
        """Inputs + outputs of the linear layers outside routed experts that PEFT's own "all-linear"
        adapts in a mixture: gates and routers too, but no MLP whose names it takes for experts'.
        """
        return sum(
            linear.ends * count
            for linear, count in self.structure.all_linears
            if not (self.renamed and linear.part in ("mlp", "shared") and linear.name in MLP)
        )

    @property
    def expert_layer_params(self) -> int:
        """The weight matrices of the routed experts of one layer."""
        return next((kind.experts.weights for kind in self.kinds if kind.experts), 0)

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
    structure = structure_of(shape)
    if structure is None:
        return None
    hidden, layers, vocab = shape.hidden_size or 1, shape.layers or 1, shape.vocab_size or 1
    heads = shape.heads or max(1, hidden // 128)
    head_dim = shape.head_dim or hidden // heads
    embedding = min(structure.embedding, shape.params // 2) + structure.lookup
    active = shape.active_params or shape.params
    if active < shape.params and not shape.experts:
        structure = structure_of(_with_experts(shape, structure, active)) or structure
    kinds = structure.kinds
    other = structure.other + sum(kind.count * kind.other for kind in kinds)
    linear = max(0, shape.params - embedding - other)
    routed = min(linear, sum(kind.count * kind.routed_params for kind in kinds))
    ends = ends_by_name(structure)
    mixture = next((kind.experts for kind in kinds if kind.experts), None)
    return Dims(
        family=shape.architecture or "", params=shape.params, active=active, hidden=hidden,
        layers=layers, heads=heads,
        q_size=heads * head_dim, kv_size=(shape.kv_heads or heads) * head_dim,
        width=max(1, sum(kind.count * _width(kind) for kind in kinds) // layers), vocab=vocab,
        gated=all(part.gated for kind in kinds for part in (kind.dense, kind.experts) if part),
        encoder=is_encoder(shape.architecture),
        eager_only=shape.architecture in OWN_ATTENTION,
        experts=mixture.count if mixture else 1,
        expert_width=mixture.width if mixture else shape.intermediate_size or 4 * hidden,
        embedding_params=embedding, head_params=vocab * hidden, linear_params=linear - routed,
        routed_params=routed,
        renamed=layout_of(shape.architecture).renamed,
        routed_layers=sum(kind.count for kind in kinds if kind.experts),
        used_experts=mixture.used if mixture else 1,
        shared_size=max(map(_shared_size, kinds), default=0), shared_ends=sum(ends.values()),
        named_ends=by_common_name(ends), other_params=other, structure=structure,
        scores=tuple(_by_window(kinds, cached=False)), caches=tuple(_by_window(kinds, cached=True)),
    )  # fmt: skip


def _by_window(kinds: Sequence[LayerKind], *, cached: bool) -> Iterator[tuple[int, int | None]]:
    """(width, window) of the softmax attention of each kind of layer: of its queries, or of the
    keys and values that it caches.
    """
    for kind in kinds:
        for part in kind.mixers:
            if isinstance(part, Attention):
                size = 2 * part.kv_size * part.own_keys if cached else part.q_size
                yield kind.count * size, part.window
            elif isinstance(part, Latent):  # keys and values are cached, not what makes them
                yield kind.count * (part.q_size + part.value_size * cached), None


def _width(kind: LayerKind) -> int:
    dense = int(kind.dense.width) if kind.dense else 0
    return dense + (
        kind.experts.used * kind.experts.width + kind.experts.shared if kind.experts else 0
    )


def _shared_size(kind: LayerKind) -> int:
    if kind.experts is None:
        return 0
    return kind.experts.shared or (int(kind.dense.width) if kind.dense else 0)


def _with_experts(shape: ModelShape, plain: Structure, active: int) -> ModelShape:
    """A mixture known by its sizes alone: what is neither attention nor embeddings are experts, of
    which a token passes through so many that their widths add up to the active one's.
    """
    hidden, layers = shape.hidden_size or 1, shape.layers or 1
    kind = plain.kinds[0]
    rest = shape.params - plain.embedding - plain.other - layers * kind.other
    attention = sum(linear.weights for linear in kind.linears if linear.part == "mixer")
    width = max(1, (shape.intermediate_size or 4 * hidden) // USED_EXPERTS)
    experts = round((rest - layers * attention) / (layers * 3 * hidden * width))
    return replace(
        shape, experts=max(USED_EXPERTS + 1, experts), experts_per_token=USED_EXPERTS,
        expert_size=width, mlps="",
    )  # fmt: skip
