"""Blocks that move information between tokens, as sequences of operations."""

from __future__ import annotations

from advisor.estimate.blocks.operations import Operations
from advisor.estimate.blocks.styles import Style
from advisor.estimate.blocks.tape import SAME, Tensor
from advisor.estimate.model.layers import Attention, Latent


def attention(o: Operations, x: Tensor, part: Attention, style: Style) -> Tensor:
    """Softmax attention (`LlamaAttention.forward`), without its output projection's residual."""
    q_size, kv_size = part.q_size, part.kv_size
    gate = None
    if part.fused:
        fused = o.linear(x, q_size + 2 * kv_size, "qkv")
        q, k, v = o.split(fused, q_size, kv_size, kv_size)
    else:
        q = o.linear(x, 2 * q_size if part.gate == q_size else q_size, "q_proj")
        if part.gate == q_size:
            q, gate = o.split(q, q_size, part.gate)
            gate = o.copy(gate)
        q = _normed(o, q, part, style)
        if part.own_keys:
            k = o.linear(x, kv_size, "k_proj")
            before, k = k, _normed(o, k, part, style)
            v = before if part.keys_are_values else o.linear(x, kv_size, "v_proj")
        else:  # those of an earlier layer, which keeps them
            k, v = (o.tape.outside(kv_size, q.bytes_each) for _ in range(2))
    if style.rotary:
        q = _rotated(o, q)
        k = _rotated(o, k) if part.own_keys else k
    out = weighted_values(o, q, k, v, part.heads, style, capped=part.capped, sinks=part.sinks)
    if gate is not None:
        out = o.multiply(out, o.activate(gate, saves_output=True))
    return o.linear(out, x.width, "o_proj")


def _normed(o: Operations, x: Tensor, part: Attention, style: Style) -> Tensor:
    """Queries or keys behind their RMSNorm, where the model has one."""
    return o.rms_norm(x, in_float32=style.norm == "rms32") if part.norm else x


def _rotated(o: Operations, x: Tensor) -> Tensor:
    """`x * cos + rotate_half(x) * sin`: the constants are saved once for all layers; they have the
    residual stream's dtype, and so has the result if it is wider.
    """
    x = x if x.bytes_each >= o.settings.stream_bytes else o.promoted(x, o.settings.stream_bytes)
    straight = o.scale(x)
    first, second = o.part(x, x.width / 2), o.part(x, x.width / 2)
    return o.add(straight, o.scale(o.join((o.scale(second), first))))


def weighted_values(
    o: Operations,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    style: Style,
    *,
    capped: bool = False,
    sinks: bool = False,
) -> Tensor:
    """Values weighted by the softmax of scores.

    A fused kernel saves q, k, v, its result and one float32 per head and token
    (`_scaled_dot_product_flash_attention`; `_efficient_attention` the mask too). Step by step,
    scores exist whole: softmax saves its result in float32, the product with the values its cast.
    """
    s, tape = o.settings, o.tape
    if s.autocast or s.flash:
        q, k, v = o.cast(q, 2), o.cast(k, 2), o.cast(v, 2)
    wide = q.bytes_each
    # SDPA takes neither caps nor sinks: scores are whole where no kernel of another library does.
    whole = s.scores or ((capped or sinks) and not s.flash and not s.shared_adapter_inputs)
    if (whole or s.masked or s.repeats_keys) and k.width < q.width:
        times = q.width / k.width
        k, v = o.copy(k, k.width * times), o.copy(v, v.width * times)
    if not whole:
        beside = 4 * heads + (wide * s.seq_len if s.masked else 0)
        # The kernel's gradients: a float32 sum for the queries, and gradients of keys and values
        # for each query head before they are added up (flash_api.cpp, mha_bwd).
        scratch = 4 * q.width + (2 * wide * q.width if k.width < q.width else 0) if s.gpu else 0.0
        out = tape.record(
            "sdpa", [q, k, v], q.width * v.width / k.width, wide, saves=[q, k, v],
            saves_output=True, beside=beside, scratch=scratch,
        )  # fmt: skip
        return o.copy(out) if style.rotary == "joined" or s.apart else out
    if o.tape.sizes[v.storage] > v.size:  # matmul copies a view that it cannot flatten
        v = o.copy(v)
    size = heads * s.seq_len
    scores = tape.record("bmm", [q, k], size, wide, saves=[q, k])
    scores = o.scale(scores)
    if capped:
        scores = o.scale(o.activate(o.scale(scores), saves_output=True))
    scores = o.scale(scores)  # plus the mask
    if sinks:
        # With the sinks' column, in the dtype of the wider of both, and less the largest.
        scores = o.copy(o.cast(o.copy(scores), max(wide, s.norm_bytes)))
    if style.softmax == "float32" or (style.softmax == "plain" and s.autocast and s.wide_list):
        scores = o.cast(scores, 4)  # only float16 is widened within the kernel
        weights = tape.record("softmax", [scores], size, 4, saves_output=True)
        weights = o.cast(weights, wide)
    else:
        weights = tape.record("softmax", [scores], size, scores.bytes_each, saves_output=True)
        weights = o.cast(o.part(weights, size), wide) if sinks else weights
    if style.dropout and s.model_dropout:
        weights = tape.record("native_dropout", [weights], size, wide, beside=size)
    width = q.width * v.width / k.width
    return o.copy(tape.record("bmm", [weights, v], width, wide, saves=[weights, v]))


def latent_attention(o: Operations, x: Tensor, part: Latent, style: Style) -> Tensor:
    """DeepSeek's latent attention (`DeepseekV3Attention.forward`)."""
    nope, rope = part.nope_dim * part.heads, part.rope_dim * part.heads
    if part.query_rank:
        narrow = o.rms_norm(o.linear(x, part.query_rank, "q_a_proj"))
        q = o.linear(narrow, part.q_size, "q_b_proj")
    else:
        q = o.linear(x, part.q_size, "q_proj")
    q_pass, q_rot = o.split(q, nope, rope)
    compressed = o.linear(x, part.rank + part.rope_dim, "kv_a_proj_with_mqa")
    narrow, k_rot = o.split(compressed, part.rank, part.rope_dim)
    narrow = o.rms_norm(narrow)
    q_rot, k_rot = _rotated(o, q_rot), _rotated(o, k_rot)
    q = o.join((q_pass, q_rot))
    both = o.linear(narrow, nope + part.value_size, "kv_b_proj")
    k_pass, v = o.split(both, nope, part.value_size)
    k = o.tape.record("copy_", [k_pass, k_rot], part.q_size, both.bytes_each, gradient=SAME)
    out = weighted_values(o, q, k, v, part.heads, style)
    return o.linear(out, x.width, "o_proj")
