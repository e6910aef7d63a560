"""The tensors of each mixer: attention, latent attention, gated DeltaNet, Mamba-2, convolution, ...

The sizes follow transformers 5.24 (src/transformers/models/<family>/modeling_<family>.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from advisor.estimate.model import layer_patterns as letters
from advisor.estimate.model.layers import (
    Attention,
    Convolution,
    Delta,
    Latent,
    Lightning,
    Linear,
    Mamba2,
    Mixer,
)
from advisor.estimate.model.layouts import Layout

EXPAND = 2  # Mamba's inner width, in multiples of the model's


@dataclass(frozen=True, slots=True)
class Sizes:
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


class Tensors(NamedTuple):
    """A part of a layer: what it is, its linear layers and its other parameters."""

    is_: Mixer | None
    linears: tuple[Linear, ...]
    other: int


def _attention(s: Sizes, letter: str) -> Tensors:
    """Softmax attention: projections, with the norms of queries and keys."""
    family, hidden = s.family, s.hidden
    everything = letter in (letters.ATTENTION, letters.ATTENTION.upper())
    dim, kv_heads = s.head_dim, s.kv_heads
    if everything and s["global_head_dim"]:
        dim, kv_heads = s["global_head_dim"], s["global_kv_heads"] or kv_heads
    query, keys = s.heads * dim, kv_heads * dim
    stated = bool(s["attention_bias"])
    biased = family.bias in ("qkv", "qkvo") or (family.bias.startswith("config") and stated)
    last = family.bias in ("o", "qkvo") or (family.bias == "config" and stated)
    own = not letter.isupper()
    same = bool(everything and s["keys_are_values"])
    gate = {"queries": query, "heads": s.heads, "": 0}[family.gate]
    q_name, k_name, v_name = family.names
    if family.fused:
        linears = [Linear(family.fused, hidden, query + 2 * keys, biased=biased)]
    else:
        outputs = query + (gate if family.gate == "queries" else 0)
        linears = [Linear(q_name, hidden, outputs, biased=biased)]
        if own:
            linears.append(Linear(k_name, hidden, keys, biased=biased))
        if own and not same:
            linears.append(Linear(v_name, hidden, keys, biased=biased))
    linears.append(Linear(family.output, query, hidden, biased=last))
    if family.gate == "heads":
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
    return Tensors(is_, tuple(linears), normed + (s.heads if family.sinks else 0))


def _latent(s: Sizes, letter: str) -> Tensors:
    """DeepSeek's latent attention, with the indexer of its sparse form."""
    is_ = Latent(
        heads=s.heads, query_rank=s["query_rank"], rank=s["latent_rank"], rope_dim=s["rope_dim"],
        nope_dim=s["nope_dim"], value_dim=s["value_dim"],
        index_heads=0 if letter.isupper() else s["index_heads"], index_dim=s["index_dim"],
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
    other = is_.query_rank + rank
    if is_.index_heads:
        linears += [
            Linear("wq_b", is_.query_rank, is_.index_heads * is_.index_dim),
            Linear("wk", hidden, is_.index_dim),
            Linear("weights_proj", hidden, is_.index_heads),
        ]
        other += 2 * is_.index_dim
    return Tensors(is_, tuple(linears), other)


def _delta(s: Sizes, letter: str) -> Tensors:
    """Qwen's gated DeltaNet."""
    is_ = Delta(
        key_heads=s["key_heads"], value_heads=s["value_heads"], key_dim=s["key_dim"],
        value_dim=s["linear_value_dim"], kernel=s["kernel"],
    )  # fmt: skip
    hidden, keys, values, heads = s.hidden, is_.keys, is_.values, is_.value_heads
    if s.family.delta == "qwen3_next":
        inputs = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * heads}
    elif s.family.delta == "olmo_hybrid":
        inputs = {
            "q_proj": keys, "k_proj": keys, "v_proj": values, "g_proj": values, "a_proj": heads,
            "b_proj": heads,
        }  # fmt: skip
    else:
        inputs = {
            "in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": heads,
            "in_proj_a": heads,
        }  # fmt: skip
    linears = tuple(Linear(name, hidden, outputs) for name, outputs in inputs.items())
    other = is_.channels * is_.kernel + 2 * heads + is_.value_dim  # decays, and a norm of each head
    last = "o_proj" if s.family.delta == "olmo_hybrid" else "out_proj"
    return Tensors(is_, (*linears, Linear(last, values, hidden)), other)


def _kimi(s: Sizes, letter: str) -> Tensors:
    """Kimi's delta attention: a decay for each channel, its gates through a narrow matrix."""
    is_ = Delta(
        key_heads=s["key_heads"], value_heads=s["value_heads"], key_dim=s["key_dim"],
        value_dim=s["linear_value_dim"], kernel=s["kernel"], low_rank=s["linear_value_dim"],
    )  # fmt: skip
    hidden, keys, values, low = s.hidden, is_.keys, is_.values, is_.low_rank
    linears = (
        Linear("q_proj", hidden, keys), Linear("k_proj", hidden, keys),
        Linear("v_proj", hidden, values), Linear("f_a_proj", hidden, low),
        Linear("f_b_proj", low, keys), Linear("b_proj", hidden, is_.value_heads),
        Linear("g_a_proj", hidden, low), Linear("g_b_proj", low, values),
        Linear("o_proj", values, hidden),
    )  # fmt: skip
    return Tensors(is_, linears, is_.channels * is_.kernel + keys + is_.value_heads + low)


def _mamba(s: Sizes, letter: str) -> Tensors:
    """Mamba-2."""
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
    return Tensors(is_, linears, other + (is_.width if is_.normed else 0))


def _convolution(s: Sizes, letter: str) -> Tensors:
    """LFM2's gated short convolution."""
    hidden, biased = s.hidden, bool(s["conv_bias"])
    linears = (
        Linear("in_proj", hidden, 3 * hidden, biased=biased),
        Linear("out_proj", hidden, hidden, biased=biased),
    )
    return Tensors(Convolution(hidden, s["kernel"]), linears, hidden * (s["kernel"] + biased))


def _lightning(s: Sizes, letter: str) -> Tensors:
    """MiniMax's lightning attention."""
    is_ = Lightning(s.heads, s.head_dim)
    linears = (
        Linear("qkv_proj", s.hidden, 3 * is_.q_size), Linear("out_proj", is_.q_size, s.hidden),
        Linear("output_gate", s.hidden, is_.q_size),
    )  # fmt: skip
    return Tensors(is_, linears, is_.q_size)


MIXERS: Mapping[str, Callable[[Sizes, str], Tensors]] = {
    letters.ATTENTION: _attention, letters.ATTENTION.upper(): _attention,
    letters.SLIDING: _attention, letters.SLIDING.upper(): _attention, letters.CROSS: _attention,
    letters.LATENT: _latent, letters.LATENT.upper(): _latent, letters.DELTA: _delta,
    letters.KIMI: _kimi, letters.MAMBA: _mamba, letters.CONV: _convolution,
    letters.LIGHTNING: _lightning,
}  # fmt: skip
