"""What the layers of a model are made of: the values that parameter counts, LoRA's sizes, saved
tensors and times are derived from.

A model is a few kinds of layers (`LayerKind`), each with a count. A kind has mixers (attention,
latent attention, gated DeltaNet, Mamba-2, convolution, ...), which move information between tokens,
a dense MLP, routed experts, or several of these. `advisor.estimate.model.structure` makes them
from a ModelShape, after the layer definitions of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

# Named tuples where dataclasses would do: making one takes a sixth of the time, at each start.
Part = Literal["mixer", "mlp", "shared", "extra"]


class Linear(NamedTuple):
    """A linear layer (`nn.Linear`): what nf4 and int8 quantise and what LoRA adapts."""

    name: str  # the last part of its module's name, as LoRA's target modules give it
    inputs: int
    outputs: int
    # Of a mixer, of the dense MLP, of the experts that every token passes through ("shared"), or
    # "extra": what some families add beside (per-layer embeddings, low-rank residuals).
    part: Part = "mixer"
    biased: bool = False  # it adds a vector of `outputs` numbers
    # "all-linear" adapts it. Our trainers leave routers out, and PEFT refuses Mamba's out_proj,
    # whose kernel reads the weight itself (peft 0.21, tuners_utils.py,
    # `_check_lora_target_modules_mamba`).
    adapted: bool = True

    @property
    def ends(self) -> int:
        """Inputs + outputs: rank x this is what LoRA trains."""
        return self.inputs + self.outputs

    @property
    def weights(self) -> int:
        """Without the bias."""
        return self.inputs * self.outputs


class Attention(NamedTuple):
    """Softmax attention over keys and values of all tokens before, or of a window of them."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None  # how many tokens back a query sees (sliding or chunked); None: all
    # RMSNorms of queries and keys: of each head, of the whole projection, or none.
    norm: Literal["", "head", "whole"] = ""
    # Numbers per token that scale the output (`gate` of Qwen3-Next: as wide as the queries; LFM3:
    # one per head); 0 without.
    gate: int = 0
    sinks: bool = False  # one learned score per head beside the tokens' (gpt-oss): no plain SDPA
    capped: bool = False  # scores pass through tanh (`attn_logit_softcapping`): no SDPA
    # Keys and values are projected here; else they are those of an earlier layer.
    own_keys: bool = True
    keys_are_values: bool = False  # the values are the keys, without a projection of their own
    cross: bool = False  # keys and values come from the encoder
    fused: bool = False  # query, key and value are one matrix

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim


class Latent(NamedTuple):
    """DeepSeek's latent attention: keys and values come out of a narrow vector per token.

    Attributes:
        query_rank: Width between the two query matrices; 0: one matrix.
        rank: Width of what keys and values are made from, beside `rope_dim` rotated numbers.
    """

    heads: int
    query_rank: int
    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int

    @property
    def q_size(self) -> int:
        return self.heads * (self.nope_dim + self.rope_dim)

    @property
    def value_size(self) -> int:
        return self.heads * self.value_dim


class Delta(NamedTuple):
    """Gated DeltaNet (linear attention with a state per head), behind a short convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # tokens that the convolution over queries, keys and values sees

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values


class Mamba2(NamedTuple):
    """A selective state space layer (Mamba-2): `state` numbers per channel, in groups of heads."""

    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    normed: bool = True  # a gated RMSNorm in front of the output matrix

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: inputs, B and C."""
        return self.width + 2 * self.groups * self.state


class Convolution(NamedTuple):
    """A short gated convolution over `kernel` tokens (LFM2)."""

    width: int
    kernel: int


Mixer = Attention | Latent | Delta | Mamba2 | Convolution


class Dense(NamedTuple):
    """An MLP that every token passes through: gate, up and down, or (not gated) up and down."""

    width: float
    gated: bool = True
    fused: bool = False  # gate and up are one matrix


class Experts(Struct, frozen=True):
    """Routed experts, held in tensors of three dimensions, with the shared ones beside them."""

    count: int
    used: int  # how many of them one token passes through
    width: int  # of one expert
    shared: int = 0  # MLP width of the experts that every token passes through; 0 without
    # Width that the experts read and write: the model's, or a narrower one of their own.
    inputs: int = 0
    gated: bool = True
    biased: bool = False  # the tensors have biases (gpt-oss)

    @property
    def matrices(self) -> int:
        """Matrices of one expert."""
        return 3 if self.gated else 2

    @property
    def one(self) -> int:
        """Parameters of one expert."""
        biases = (self.matrices - 1) * self.width + self.inputs if self.biased else 0
        return self.matrices * self.inputs * self.width + biases

    @property
    def weights(self) -> int:
        """Of the tensors of all experts, without biases."""
        return self.count * self.matrices * self.inputs * self.width

    @property
    def renamed_ends(self) -> int:
        """The same where PEFT translates names of transformers 4: gate and up are one tensor now,
        whose correction has twice the rank.
        """
        first = (self.matrices - 1) * (self.inputs + (self.matrices - 1) * self.width)
        return self.count * (first + self.width + self.inputs)

    @property
    def ends(self) -> int:
        """Inputs + outputs of the tensors of all experts (gate and up are one): rank x this is what
        PEFT trains on them.
        """
        return self.count * (2 * self.inputs + self.matrices * self.width)


class LayerKind(Struct, frozen=True):
    """Layers that are alike."""

    count: int  # how many there are
    # None in a layer that is an MLP alone; two where they work side by side (Falcon-H1).
    mixers: tuple[Mixer, ...]
    dense: Dense | None
    experts: Experts | None
    # All linear layers outside of routed experts, in the order of the model.
    linears: tuple[Linear, ...]
    # Parameters that choose the experts, as one tensor (never quantised by bitsandbytes, adapted by
    # no "all-linear").
    router: int = 0
    other: int = 0  # parameters that are neither: norms, biases, convolutions, decays, scales

    @property
    def linear_params(self) -> int:
        """Weights of the linear layers of one such layer."""
        return sum(linear.weights for linear in self.linears)

    @property
    def routed_params(self) -> int:
        """Routed experts and router of one such layer."""
        return self.router + (self.experts.count * self.experts.one if self.experts else 0)

    @property
    def params(self) -> int:
        """All parameters of one such layer."""
        return self.linear_params + self.routed_params + self.other

    @property
    def used_params(self) -> int:
        """Parameters that one token passes through in one such layer."""
        unused = self.experts.count - self.experts.used if self.experts else 0
        return self.params - (unused * self.experts.one if self.experts else 0)

    @property
    def ends(self) -> int:
        """Inputs + outputs of all linear layers that LoRA adapts in one such layer."""
        return sum(linear.ends for linear in self.linears if linear.adapted)

    @property
    def attention(self) -> Attention | Latent | None:
        """Its softmax attention; None if it has another mixer or none."""
        return next((part for part in self.mixers if isinstance(part, Attention | Latent)), None)


class Structure(Struct, frozen=True):
    """A whole model."""

    kinds: tuple[LayerKind, ...]
    embedding: int  # token embeddings, and the output matrix where it is not tied
    # Further embeddings of each layer: looked up, never multiplied, never quantised.
    lookup: int = 0
    # Linear layers outside of the hidden layers, without the output matrix: poolers, projections of
    # per-layer embeddings.
    linears: tuple[Linear, ...] = ()
    other: int = 0  # norms outside of the layers, positions, token types, biases

    @property
    def params(self) -> int:
        """All parameters."""
        return self._outside + sum(kind.count * kind.params for kind in self.kinds)

    @property
    def used_params(self) -> int:
        """Parameters that one token passes through."""
        return self._outside + sum(kind.count * kind.used_params for kind in self.kinds)

    @property
    def _outside(self) -> int:
        linear = sum(linear.weights for linear in self.linears)
        return self.embedding + self.lookup + linear + self.other

    @property
    def all_linears(self) -> Iterator[tuple[Linear, int]]:
        """Each linear layer outside routed experts, and how many of it the model has."""
        for kind in self.kinds:
            for linear in kind.linears:
                yield linear, kind.count
        for linear in self.linears:
            yield linear, 1
