"""Blocks that carry a state from token to token: gated DeltaNet, Mamba-2 and short convolutions.

Each has two forms: a kernel (flash-linear-attention, mamba_ssm), which saves its inputs and little
else, and plain torch, which works in chunks in float32 and saves a matrix of the chunk's length for
each head and token. transformers takes the kernel where it is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from advisor.estimate.blocks.tape import SAME, Operations, Tensor
from advisor.estimate.model.layers import Convolution, Delta, Mamba2

DELTA_CHUNK = 64  # torch_chunk_gated_delta_rule, and fla's chunk_gated_delta_rule
MAMBA_CHUNK = 256  # `mamba_chunk_size` of Falcon-H1, Granite 4 and Bamba


def with_state(
    o: Operations, x: Tensor, part: Delta | Mamba2 | Convolution, names: Collection[str]
) -> Tensor:
    """What the part makes of its input; `names` are those of the layer's matrices."""
    if isinstance(part, Delta):
        return delta_net(o, x, part, names)
    return mamba2(o, x, part, names) if isinstance(part, Mamba2) else convolution(o, x, part)


def delta_net(o: Operations, x: Tensor, part: Delta, names: Collection[str]) -> Tensor:
    """`Qwen3NextGatedDeltaNet.forward`, or `Qwen3_5GatedDeltaNet.forward` with a matrix for each
    input; `names` are those of the layer's matrices.
    """
    keys, values, heads = part.keys, part.values, part.value_heads
    if "in_proj_qkvz" in names:
        projected = o.linear(x, 2 * keys + 2 * values, "in_proj_qkvz")
        parts = o.split(projected, keys, keys, values, values)
        q, k, v, z = (o.copy(one) for one in parts)
        both = o.linear(x, 2 * heads, "in_proj_ba")
        beta, decay = (o.copy(one) for one in o.split(both, heads, heads))
        mixed = o.join((q, k, v))
    else:
        mixed = o.linear(x, part.channels, "in_proj_qkv")
        z = o.linear(x, values, "in_proj_z")
        beta, decay = o.linear(x, heads, "in_proj_b"), o.linear(x, heads, "in_proj_a")
    mixed = _convolved(o, mixed)
    q, k, v = o.split(mixed, keys, keys, values)
    beta = o.activate(beta, saves_output=True)
    decay = o.scale(o.activate(o.cast(decay, 4)))
    scan = _delta_kernel if o.settings.scan_kernels else _delta_in_chunks
    out = scan(o, (q, k, v), (beta, decay), part)
    out = _gated_norm(o, out, z)
    return o.linear(out, x.width, "out_proj")


def _convolved(o: Operations, x: Tensor) -> Tensor:
    """A short convolution over tokens with silu behind: `convolution_backward` needs its input,
    silu its own; the kernel (causal_conv1d) its input alone.
    """
    out = o.tape.record("convolution", [x], x.width, x.bytes_each, saves=[x])
    return out if o.settings.scan_kernels else o.activate(out)


def _gated_norm(o: Operations, x: Tensor, z: Tensor) -> Tensor:
    """`RMSNormGated`: the norm's product in the input's dtype times silu of a float32 gate; one
    kernel keeps both inputs.
    """
    if o.settings.scan_kernels:
        return o.tape.record("rms_norm_gated", [x, z], x.width, x.bytes_each, saves=[x, z])
    return o.cast(o.multiply(o.rms_norm(x), o.activate(o.cast(z, 4))), x.bytes_each)


def _delta_kernel(
    o: Operations, qkv: Sequence[Tensor], gates: Sequence[Tensor], part: Delta
) -> Tensor:
    """fla, ChunkGatedDeltaRuleFunction: saves q, k, v, decay, beta, and a matrix of the chunk's
    length for each head; its backward pass makes the states again.
    """
    saved, value = [*qkv, *gates], qkv[2]
    states = part.value_heads * part.key_dim * part.value_dim / DELTA_CHUNK
    inner = part.value_heads * part.key_dim
    return o.tape.record(
        "chunk_gated_delta_rule", saved, value.width, value.bytes_each, saves=saved,
        beside=2 * part.value_heads * DELTA_CHUNK,
        scratch=2 * (2 * states + 2 * inner + 3 * value.width),
    )  # fmt: skip


def _delta_in_chunks(
    o: Operations, qkv: Sequence[Tensor], gates: Sequence[Tensor], part: Delta
) -> Tensor:
    """`torch_chunk_gated_delta_rule`, in float32."""
    (q, k, v), (beta, decay) = qkv, gates
    tape, heads, narrow = o.tape, part.value_heads, v.bytes_each
    inner, square = heads * part.key_dim, heads * DELTA_CHUNK
    if part.key_heads != heads:
        q, k = o.copy(q, inner), o.copy(k, inner)
    q, k, v = (_widened(o, one) for one in (q, k, v))
    beta = _widened(o, beta)
    q, k = _unit(o, q, heads), _unit(o, k, heads)
    q = o.scale(q)
    v_beta, k_beta = o.multiply(v, beta), o.multiply(k, beta)
    total = tape.record("cumsum", [decay], heads, 4)
    pairs = tape.record("sub", [total, total], square, 4)
    pairs = tape.record("masked_fill", [pairs], square, 4)
    pairs = tape.record("exp", [pairs], square, 4, saves_output=True)
    system = o.multiply(o.product(k_beta, k, square), pairs)
    inside = o.multiply(o.product(q, k, square), pairs)
    grown = tape.record("exp", [total], heads, 4, saves_output=True)
    decayed = o.multiply(k_beta, grown)
    new_values = tape.record(
        "solve_triangular", [system, v_beta], v.width, 4, saves=[system], saves_output=True
    )
    new_keys = tape.record(
        "solve_triangular", [system, decayed], inner, 4, saves=[system], saves_output=True
    )
    q = o.multiply(q, grown)
    k = o.multiply(k, tape.record("exp", [total], heads, 4, saves_output=True))
    # One step per chunk: the state before it, and the new values that it adds; their products are
    # in 16 bit under autocast.
    wide = 2 if o.settings.autocast else 4
    new_keys, q, inside, k = (o.cast(one, wide) for one in (new_keys, q, inside, k))
    state = heads * part.key_dim * part.value_dim / DELTA_CHUNK * 4
    update = tape.record(
        "chunk", [new_values, new_keys], v.width, wide, saves=[new_keys], saves_output=True,
        beside=state, scratch=state,
    )  # fmt: skip
    out = tape.record("chunk", [q, inside, update, k], v.width, 4, saves=[q, inside, update, k])
    return o.cast(out, narrow)


def _widened(o: Operations, x: Tensor) -> Tensor:
    return o.cast(x, 4) if x.bytes_each != 4 else o.copy(x)


def _unit(o: Operations, x: Tensor, heads: int) -> Tensor:
    """`l2norm`: x times the inverse root of its sum of squares."""
    square = o.tape.record("mul", [x], x.width, 4, saves=[x], scratch=x.size)
    total = o.tape.record("sum", [square], heads, 4, gradient=SAME)
    return o.multiply(x, o.tape.record("rsqrt", [total], heads, 4, saves_output=True))


def mamba2(o: Operations, x: Tensor, part: Mamba2, names: Collection[str]) -> Tensor:
    """`FalconH1Mixer.forward`, `GraniteMoeHybridMambaLayer`: projections around a selective state
    space scan. The kernel (mamba_split_conv1d_scan_combined) saves the projected input and its
    result, and makes the rest again. `names` are those of matrices that PEFT adapts.
    """
    last = "out_proj" if "out_proj" in names else ""
    projected = o.linear(x, part.width + part.channels + part.heads, "in_proj")
    if o.style.scaled:  # by a float32 vector in a float32 model
        wide = max(projected.bytes_each, o.settings.stream_bytes)
        projected = o.tape.record("mul.Scalar", [projected], projected.width, wide)
    if o.settings.scan_kernels:
        states = part.heads * part.head_dim * part.state / MAMBA_CHUNK * 4
        out = o.tape.record(
            "mamba_split_conv1d_scan_combined", [projected], part.width, projected.bytes_each,
            saves=[projected], saves_output=True, beside=4 * part.groups,
            scratch=projected.size + part.channels * 4 + 2 * states,
        )  # fmt: skip
        return o.linear(out, x.width, last)
    gate, mixed, steps = o.split(projected, part.width, part.channels, part.heads)
    mixed = _convolved(o, mixed)
    ends = part.groups * part.state
    inner, b, c = o.split(mixed, part.width, ends, ends)
    out = _scan_in_chunks(o, inner, (b, c), steps, part)
    if part.normed:
        out = o.rms_norm(o.multiply(out, o.activate(o.cast(gate, 4))), in_float32=True)
    else:
        out = o.multiply(out, o.activate(gate))
    return o.linear(o.cast(out, x.bytes_each), x.width, last)


def _scan_in_chunks(
    o: Operations, x: Tensor, ends_of: Sequence[Tensor], steps: Tensor, part: Mamba2
) -> Tensor:
    """`mamba2_chunk_scan` in plain torch, in float32: for each head and token, rows of matrices as
    long as a chunk.
    """
    tape, heads = o.tape, part.heads
    square, ends, states = heads * MAMBA_CHUNK, heads * part.state, part.width * part.state
    steps = o.activate(o.tape.record("add", [steps], heads, steps.bytes_each))
    steps = tape.record("clamp", [steps], heads, steps.bytes_each, saves=[steps])
    wide = o.cast(x, 4)
    b, c = (o.copy(o.cast(one, 4), ends) for one in ends_of)
    skipped = o.weigh(4, wide)
    wide = o.multiply(wide, o.cast(steps, 4))
    decay = tape.record("mul", [steps], heads, 4)
    total = tape.record("cumsum", [decay], heads, 4)
    pairs = tape.record("masked_fill", [decay], square, 4)
    pairs = tape.record("cumsum", [pairs], square, 4)
    pairs = tape.record("masked_fill", [pairs], square, 4)
    pairs = tape.record("exp", [pairs], square, 4, saves_output=True)
    weights = o.multiply(o.product(o.copy(c), o.copy(b), square), pairs)
    inside = o.product(o.copy(weights), o.copy(wide), part.width)
    b_decayed = o.multiply(b, tape.record("exp", [total], heads, 4, saves_output=True))
    each = states / MAMBA_CHUNK
    before = o.product(o.copy(o.product(o.copy(b_decayed), o.copy(wide), each)), None, each)
    read = o.product(o.copy(c), o.copy(before), part.width)
    across = o.multiply(read, tape.record("exp", [total], heads, 4, saves_output=True))
    return o.add(o.add(inside, across), skipped)


def convolution(o: Operations, x: Tensor, part: Convolution) -> Tensor:
    """`Lfm2ShortConv.forward`: a gate before and after a convolution over a few tokens."""
    b, c, inner = o.split(o.linear(x, 3 * part.width, "in_proj"), *([part.width] * 3))
    inner = o.multiply(b, inner)
    inner = o.tape.record("convolution", [inner], part.width, x.bytes_each, saves=[inner])
    return o.linear(o.copy(o.multiply(c, inner)), x.width, "out_proj")
