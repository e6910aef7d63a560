"""The layers of a model with their tensors, from a ModelShape.

A family is an entry in `rules/layouts.yaml`; only a mixer that no family had before needs a
function in `mixers.py`. The sizes follow transformers 5.24
(src/transformers/models/<family>/modeling_*.py) and are held to its own modules in
tests/estimate/test_architectures.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from advisor.estimate.model import layouts as letters
from advisor.estimate.model.layers import (
    Attention,
    Convolution,
    Delta,
    Dense,
    Experts,
    Latent,
    LayerKind,
    Linear,
    Mamba2,
    Mixer,
    Part,
    Structure,
)
from advisor.estimate.model.layouts import Layout, layout_of
from advisor.ground.types import ModelShape
from advisor.methods.families import DECODER, is_encoder, kind_of_type

HIDDEN_PER_HEAD = 128  # of a model whose heads are not known


@lru_cache(maxsize=1024)
def structure_of(shape: ModelShape) -> Structure | None:
    """The model's layers; None where the shape holds a parameter count alone."""
    if shape.hidden_size is None or shape.layers is None or shape.vocab_size is None:
        return None
    hidden = shape.hidden_size
    family = layout_of(shape.architecture)
    heads = shape.heads or max(1, hidden // HIDDEN_PER_HEAD)
    s = Sizes(
        family=family, named={**family.defaults, **dict(shape.sizes)}, hidden=hidden,
        layers=shape.layers, heads=heads, kv_heads=shape.kv_heads or heads,
        head_dim=shape.head_dim or hidden // heads, width=shape.intermediate_size or 4 * hidden,
        vocab=shape.vocab_size,
    )  # fmt: skip
    mixers = shape.mixers or family.mixer * shape.layers
    mlps = shape.mlps or (letters.EXPERTS if shape.experts else letters.DENSE) * shape.layers
    kinds = tuple(
        _kind(shape, s, mixer, mlp, count)
        for (mixer, mlp), count in Counter(zip(mixers, mlps, strict=True)).items()
    )
    return _whole(shape, s, kinds)


def _kind(shape: ModelShape, s: Sizes, mixer: str, mlp: str, count: int) -> LayerKind:
    parts = [MIXERS[letter](s, mixer) for letter in _parts_of(mixer)]
    norms = s.family.norms + (mixer == letters.CROSS)
    if s["two_norms"]:  # Falcon 40B: one for attention and one for the MLP
        norms = 2
    linears = [linear for part in parts for linear in part.linears]
    other = sum(part.other for part in parts) + norms * _norm(s) + s.family.plus
    dense, experts, router = None, None, 0
    if mlp in (letters.DENSE, letters.WIDE, letters.BESIDE):
        width = (s["dense_width"] or s.width) * (2 if mlp == letters.WIDE else 1)
        dense = Dense(width, gated=_is_gated(s), fused=bool(s.family.fused_mlp))
        linears += _mlp(s, width, "mlp", fused=s.family.fused_mlp)
    if mlp in (letters.EXPERTS, letters.BESIDE) and shape.experts:
        experts = _experts(shape, s, beside=mlp == letters.BESIDE)
        linears += _around_experts(s, experts)
        router = 0 if s.family.linear_router else experts.count * s.hidden
        router += experts.count * s.family.router_biases
        if mlp == letters.BESIDE:  # Gemma 4: scales of the input and of each expert, three norms
            router += s.hidden + experts.count
            other += 3 * s.hidden
    extra, more = _beside_layer(s)
    linears += extra
    return LayerKind(
        count=count,
        mixers=tuple(part.is_ for part in parts if part.is_ is not None),
        dense=dense,
        experts=experts,
        linears=tuple(linears),
        router=router,
        other=other + more + sum(linear.outputs for linear in linears if linear.biased),
    )


def _parts_of(mixer: str) -> str:
    if mixer == letters.NONE:
        return ""
    return {letters.BOTH: letters.MAMBA + letters.ATTENTION, letters.CROSS: "ax"}.get(mixer, mixer)


def _norm(s: Sizes) -> int:
    return s.hidden * (2 if s.family.norm_bias else 1)


def _is_gated(s: Sizes) -> bool:
    """Whether the MLP has a gate; T5's versions differ in it."""
    return s.family.gated or bool(s["gated"])


# ------------------------------------------------------------------------------ MLPs


def _mlp(s: Sizes, width: int, part: Part, *, fused: str) -> list[Linear]:
    family, hidden = s.family, s.hidden
    biased = bool(s["mlp_bias"]) if family.mlp_bias is None else family.mlp_bias
    biased = bool(s["bias"]) if family.mlp_bias is False else biased
    down = Linear(family.mlp[-1], width, hidden, part, biased)
    if not _is_gated(s):
        return [Linear(family.mlp[-2], hidden, width, part, biased), down]
    if fused:
        return [Linear(fused, hidden, 2 * width, part, biased), down]
    gate, up = family.mlp[0], family.mlp[1]
    return [
        Linear(gate, hidden, width, part, biased), Linear(up, hidden, width, part, biased), down,
    ]  # fmt: skip


def _experts(shape: ModelShape, s: Sizes, *, beside: bool) -> Experts:
    width = shape.expert_size or s.width
    shared = s["shared_width"] or (s["shared_experts"] or s.family.shared) * width
    return Experts(
        count=shape.experts or 1, used=shape.experts_per_token or 1, width=width,
        shared=0 if beside else shared, inputs=s["moe_inputs"] or s.hidden,
        gated=s.family.gated, biased=s.family.expert_biases,
    )  # fmt: skip


def _around_experts(s: Sizes, experts: Experts) -> list[Linear]:
    found = []
    if s.family.linear_router:
        router = s.family.linear_router
        found.append(Linear(router, s.hidden, experts.count, "extra", adapted=False))
    if experts.inputs != s.hidden:  # Nemotron 3: experts work on a narrower vector
        found.append(Linear("fc1_latent_proj", s.hidden, experts.inputs, "extra"))
        found.append(Linear("fc2_latent_proj", experts.inputs, s.hidden, "extra"))
    if experts.shared:
        found += _mlp(s, experts.shared, "shared", fused=s.family.fused_shared)
    if experts.shared and s.family.shared_gate:
        found.append(Linear("shared_expert_gate", s.hidden, 1, "extra", adapted=False))
    return found


# ------------------------------------------------------------------------------ beside


def _beside_layer(s: Sizes) -> tuple[list[Linear], int]:
    """What Gemma 3n and 4 add to each layer: linear layers, and other parameters."""
    hidden, width = s.hidden, s["per_layer"]
    found, other = [], 0
    if width:
        found += [
            Linear("per_layer_input_gate", hidden, width, "extra"),
            Linear("per_layer_projection", width, hidden, "extra"),
        ]
        other += hidden
    streams, rank = s["streams"], s["laurel_rank"]
    if streams > 1:
        found += [
            Linear("correction_coefs", streams, streams, "extra"),
            Linear("prediction_coefs", streams, streams * streams, "extra"),
            Linear("modality_router", hidden, streams, "extra"),
        ]
        other += 2 * hidden
    if rank:
        found += [
            Linear("linear_left", hidden, rank, "extra"),
            Linear("linear_right", rank, hidden, "extra"),
        ]
        other += hidden
    return found, other


def _whole(shape: ModelShape, s: Sizes, kinds: tuple[LayerKind, ...]) -> Structure:
    family, hidden, vocab = s.family, s.hidden, s.vocab
    decoder = kind_of_type(shape.architecture) == DECODER
    inner = s["embedding_size"] or hidden
    other = family.end_norms * _norm(s)
    linears = []
    if inner != hidden:  # ELECTRA: narrow embeddings behind a matrix
        linears.append(Linear("embeddings_project", inner, hidden, "extra", biased=True))
        other += family.end_norms * 2 * (inner - hidden)
    if not family.first_norm:
        other -= _norm(s)
    if family.positions is not None:
        rows = (shape.context_tokens or s["positions"]) + family.positions
        other += family.tables * rows * inner
    if family.token_types is not None:
        other += (s["token_types"] or family.token_types) * inner
    if family.relative:
        other += family.relative * hidden
    if s["buckets"]:
        other += 2 * s["buckets"] * s.heads
    if family.pooler:
        linears.append(Linear("dense", hidden, hidden, "extra", biased=True))
    untied = not shape.tied_embeddings and not is_encoder(shape.architecture)
    if untied and family.head_bias and decoder:
        other += vocab
    width, lookup = s["per_layer"], 0
    if width:
        lookup = s.layers * width * (s["lookup_words"] or vocab)
        linears.append(Linear("per_layer_model_projection", hidden, s.layers * width, "extra"))
        other += width
    for name in ("altup_projections", "altup_unembed_projections"):
        linears += [Linear(name, hidden, hidden, "extra")] * (max(1, s["streams"]) - 1)
    return Structure(
        kinds=kinds,
        embedding=vocab * inner * (2 if untied else 1),
        lookup=lookup,
        linears=tuple(linears),
        other=other + sum(linear.outputs for linear in linears if linear.biased),
    )


EXPAND = 2  # Mamba's inner width, in multiples of the model's


class Sizes(Struct, frozen=True):
    """The sizes of one model, whatever holds them."""

    family: Layout
    named: Mapping[str, int]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocab: int

    def __getitem__(self, name: str) -> int:
        return self.named.get(name, 0)


class MixerTensors(NamedTuple):
    """A part of a layer: what it is, its linear layers and its other parameters."""

    is_: Mixer | None
    linears: tuple[Linear, ...]
    other: int


def _attention(s: Sizes, letter: str) -> MixerTensors:
    family, hidden = s.family, s.hidden
    everything = letter in (letters.ATTENTION, letters.ATTENTION.upper())
    dim, kv_heads = s.head_dim, s.kv_heads
    if everything and s["global_head_dim"]:
        dim, kv_heads = s["global_head_dim"], s["global_kv_heads"] or kv_heads
    if letter == letters.LIGHTNING:  # MiniMax-01's, counted as softmax attention with a gate
        kv_heads = s.heads
    query, keys = s.heads * dim, kv_heads * dim
    stated = bool(s["attention_bias"])
    biased = family.bias in ("qkv", "qkvo") or (family.bias.startswith("config") and stated)
    last = family.bias in ("o", "qkvo") or (family.bias == "config" and stated)
    own = not letter.isupper()
    same = bool(everything and s["keys_are_values"])
    gated_by = "queries" if letter == letters.LIGHTNING else family.gate
    gate = {"queries": query, "heads": s.heads, "": 0}[gated_by]
    q_name, k_name, v_name = family.names
    if family.fused:
        linears = [Linear(family.fused, hidden, query + 2 * keys, biased=biased)]
    else:
        outputs = query + (gate if gated_by == "queries" else 0)
        linears = [Linear(q_name, hidden, outputs, biased=biased)]
        if own:
            linears.append(Linear(k_name, hidden, keys, biased=biased))
        if own and not same:
            linears.append(Linear(v_name, hidden, keys, biased=biased))
    linears.append(Linear(family.output, query, hidden, biased=last))
    if gated_by == "heads":
        linears.append(Linear("g_proj", hidden, gate))
    norm = family.norm
    if norm == "config":
        norm = "head" if s["qk_norm"] else ""
    normed = {"head": dim * (1 + own), "whole": query + keys, "": 0}[norm]
    is_ = Attention(
        heads=s.heads, kv_heads=kv_heads, head_dim=dim,
        window=None if everything else s["window"] or None, norm=norm, gate=gate,
        sinks=family.sinks, capped=family.capped, own_keys=own, keys_are_values=same,
        cross=letter == letters.CROSS, fused=bool(family.fused),
    )  # fmt: skip
    return MixerTensors(is_, tuple(linears), normed + (s.heads if family.sinks else 0))


def _latent(s: Sizes, letter: str) -> MixerTensors:
    is_ = Latent(
        heads=s.heads, query_rank=s["query_rank"], rank=s["latent_rank"], rope_dim=s["rope_dim"],
        nope_dim=s["nope_dim"], value_dim=s["value_dim"],
    )  # fmt: skip
    hidden, rank = s.hidden, is_.rank
    if is_.query_rank:
        linears = [
            Linear("q_a_proj", hidden, is_.query_rank),
            Linear("q_b_proj", is_.query_rank, is_.q_size),
        ]
    else:
        linears = [Linear("q_proj", hidden, is_.q_size)]
    linears += [
        Linear("kv_a_proj_with_mqa", hidden, rank + is_.rope_dim),
        Linear("kv_b_proj", rank, s.heads * is_.nope_dim + is_.value_size),
        Linear("o_proj", is_.value_size, hidden),
    ]
    return MixerTensors(is_, tuple(linears), is_.query_rank + rank)


def _delta(s: Sizes, letter: str) -> MixerTensors:
    is_ = Delta(
        key_heads=s["key_heads"], value_heads=s["value_heads"], key_dim=s["key_dim"],
        value_dim=s["linear_value_dim"], kernel=s["kernel"],
    )  # fmt: skip
    hidden, keys, values, heads = s.hidden, is_.keys, is_.values, is_.value_heads
    if s.family.delta == "qwen3_next":
        inputs = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * heads}
    else:
        inputs = {
            "in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": heads,
            "in_proj_a": heads,
        }  # fmt: skip
    linears = tuple(Linear(name, hidden, outputs) for name, outputs in inputs.items())
    other = is_.channels * is_.kernel + 2 * heads + is_.value_dim  # decays, and a norm of each head
    return MixerTensors(is_, (*linears, Linear("out_proj", values, hidden)), other)


def _mamba(s: Sizes, letter: str) -> MixerTensors:
    heads = s["mamba_heads"] or s.heads
    width = s["mamba_width"] or heads * (s["mamba_head_dim"] or 0)
    width = width or (s["mamba_expand"] or EXPAND) * s.hidden
    is_ = Mamba2(
        heads=heads, head_dim=width // heads, groups=max(1, s["mamba_groups"]),
        state=s["mamba_state"], kernel=s["kernel"], normed=bool(s["gated_norm"]),
    )  # fmt: skip
    biased = bool(s["mamba_bias"])
    takes_out = s.family.refused != "out_proj"
    linears = (
        Linear("in_proj", s.hidden, is_.width + is_.channels + heads, biased=biased),
        Linear("out_proj", is_.width, s.hidden, biased=biased, adapted=takes_out),
    )
    other = is_.channels * (is_.kernel + bool(s["conv_bias"])) + 3 * heads
    return MixerTensors(is_, linears, other + (is_.width if is_.normed else 0))


def _convolution(s: Sizes, letter: str) -> MixerTensors:
    hidden, biased = s.hidden, bool(s["conv_bias"])
    linears = (
        Linear("in_proj", hidden, 3 * hidden, biased=biased),
        Linear("out_proj", hidden, hidden, biased=biased),
    )
    return MixerTensors(Convolution(hidden, s["kernel"]), linears, hidden * (s["kernel"] + biased))


MIXERS: Mapping[str, Callable[[Sizes, str], MixerTensors]] = {
    letters.ATTENTION: _attention, letters.ATTENTION.upper(): _attention,
    letters.SLIDING: _attention, letters.SLIDING.upper(): _attention, letters.CROSS: _attention,
    letters.LIGHTNING: _attention,
    letters.LATENT: _latent, letters.LATENT.upper(): _latent, letters.DELTA: _delta,
    letters.MAMBA: _mamba, letters.CONV: _convolution,
}  # fmt: skip
