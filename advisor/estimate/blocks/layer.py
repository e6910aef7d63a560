"""The layers of a run: what they keep, and what one of them holds while it runs backwards."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from advisor.estimate.blocks.settings import ALL, BlockSettings, style_of
from advisor.estimate.blocks.tape import SAME, Operations, Tape, Tensor
from advisor.estimate.methods import special
from advisor.estimate.model.layers import Attention, Dense, Experts, Latent, LayerKind
from advisor.estimate.run import Run
from advisor.estimate.targets import NAMED_SETS, correction_ends
from advisor.methods import update

LORA_RANK = int(update("lora").keys["rank"].default)


def block_key(run: Run) -> BlockSettings:
    """What of a run decides which tensors its layers save."""
    layers_with_module = special(run.update, "adapted")
    adapted = frozenset(layers_with_module(run)) if layers_with_module else frozenset()
    if adapted and run.target_modules in NAMED_SETS:
        adapted |= {ALL}
    # Modules on a 16-bit base train under autocast: so our trainers, where a spec is silent
    # (rules/base/precision.yaml), and transformers' Trainer with `bf16`, which recipes set.
    usual = run.trainer["accelerate"] if not run.is_ours else run.precision is None
    mixed = run.precision == "mixed" or (usual and run.is_module)
    wide = 4 if run.weight_bytes == 4 and run.hidden_bytes == 4 else 2
    # Rows of several lengths are padded, and the mask that says so is not left out: SDPA then takes
    # the memory-efficient kernel (transformers, integrations/sdpa_attention.py, use_gqa_in_sdpa).
    # On the CPU the bundled trainers need one too, and where a prefix makes queries and keys differ
    # in number (transformers, masking_utils.py, _ignore_causal_mask_sdpa).
    on_cpu = run.device.is_cpu and run.is_ours
    padded = run.ragged > 0 or (on_cpu and (run.stage.update == "prefix" or len(run.lengths) > 1))
    masked = padded and (run.sequences > 1 or run.stage.update == "prefix")
    masked = masked and run.stage.attention == "sdpa"
    may_be_whole = any(_whole_scores(kind) for kind in run.dims.kinds)
    return BlockSettings(
        trains=not run.is_module,
        weight_bytes=wide,
        stream_bytes=run.hidden_bytes,
        norm_bytes=4 if run.prepared and run.hidden_bytes == 4 else wide,
        autocast=mixed,
        quantised=run.stage.quantization is not None,
        quantised_inputs_kept=run.stage.quantization == "nf4"
        and run.trainer["keeps_quantised_inputs"],
        adapted=adapted,
        rank=(run.rank or LORA_RANK) if adapted else 0,
        adapter_bytes=run.train_bytes,
        dropout=bool(adapted) and bool(run.options.get("dropout")),
        casts_adapter_inputs=run.casts,
        scores=run.eager,
        seq_len=run.longest_tokens if masked or run.eager or may_be_whole else 0,
        masked=masked,
        flash=run.has_kernel and (may_be_whole or "attention" not in run.left_open),
        fused_norms=run.has_fused_layers or run.stage.compile,
        fused_mlp=run.has_fused_layers,
        compiled=run.stage.compile,
        gpu=not run.device.is_cpu,
        wide_list=not run.device.is_cpu,
        corrected_experts=correction_ends(run) > 0,
        scan_kernels=not run.is_ours or run.stage.kernels == "hub",
        own_blocks=not (run.is_ours or run.trainer["accelerate"]),
        looped_experts=run.trainer["linear_experts"],
    )


def _whole_scores(kind: LayerKind) -> bool:
    return any(isinstance(one, Attention) and (one.capped or one.sinks) for one in kind.mixers)


@lru_cache(maxsize=4)
def layers_of(run: Run) -> list[tuple[LayerKind, LayerMemory]]:
    """Each kind of layer with what it holds, in bytes per token."""
    key, dims = block_key(run), run.dims
    return [(kind, layer_memory(kind, dims.hidden, dims.family, key)) for kind in dims.kinds]


def attention(o: Operations, x: Tensor, part: Attention) -> Tensor:
    """Softmax attention (`LlamaAttention.forward`), without its output projection's residual."""
    q_size, kv_size = part.q_size, part.kv_size
    gate = None
    if part.fused:
        q, k, v = o.split(o.linear(x, q_size + 2 * kv_size, "qkv"), q_size, kv_size, kv_size)
    else:
        q = o.linear(x, 2 * q_size if part.gate == q_size else q_size, "q_proj")
        if part.gate == q_size:
            q, gate = o.split(q, q_size, part.gate)
            gate = o.copy(gate)
        q = _normed(o, q, part)
        if part.own_keys:
            k = o.linear(x, kv_size, "k_proj")
            before, k = k, _normed(o, k, part)
            v = before if part.keys_are_values else o.linear(x, kv_size, "v_proj")
        else:  # those of an earlier layer, which keeps them
            k, v = (o.tape.outside(kv_size, q.bytes_each) for _ in range(2))
    if o.style.rotary:
        q = _rotated(o, q)
        k = _rotated(o, k) if part.own_keys else k
    out = weighted_values(o, q, k, v, part)
    if gate is not None:
        out = o.multiply(out, o.activate(gate, saves_output=True))
    return o.linear(out, x.width, "o_proj")


def _normed(o: Operations, x: Tensor, part: Attention) -> Tensor:
    return o.rms_norm(x, in_float32=o.style.norm == "rms32") if part.norm else x


def _rotated(o: Operations, x: Tensor) -> Tensor:
    """`x * cos + rotate_half(x) * sin`: the constants are saved once for all layers; they have the
    residual stream's dtype, and so has the result if it is wider.
    """
    x = x if x.bytes_each >= o.settings.stream_bytes else o.promoted(x, o.settings.stream_bytes)
    straight = o.scale(x)
    first, second = o.part(x, x.width / 2), o.part(x, x.width / 2)
    return o.add(straight, o.scale(o.join((o.scale(second), first))))


def weighted_values(
    o: Operations, q: Tensor, k: Tensor, v: Tensor, part: Attention | Latent
) -> Tensor:
    """Values weighted by the softmax of scores.

    A fused kernel saves q, k, v, its result and one float32 per head and token
    (`_scaled_dot_product_flash_attention`; `_efficient_attention` the mask too). Step by step,
    scores exist whole: softmax saves its result in float32, the product with the values its cast.
    """
    s, tape, heads = o.settings, o.tape, part.heads
    capped, sinks = (part.capped, part.sinks) if isinstance(part, Attention) else (False, False)
    if s.autocast or s.flash:
        q, k, v = o.cast(q, 2), o.cast(k, 2), o.cast(v, 2)
    wide = q.bytes_each
    # SDPA takes neither caps nor sinks: scores are whole where no kernel of another library does.
    whole = s.scores or ((capped or sinks) and not s.flash)
    if (whole or s.masked) and k.width < q.width:
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
        return o.copy(out) if o.style.rotary == "joined" else out
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
    if o.style.softmax == "float32" or (o.style.softmax == "plain" and s.autocast and s.wide_list):
        scores = o.cast(scores, 4)  # only float16 is widened within the kernel
        weights = tape.record("softmax", [scores], size, 4, saves_output=True)
        weights = o.cast(weights, wide)
    else:
        weights = tape.record("softmax", [scores], size, scores.bytes_each, saves_output=True)
        weights = o.cast(o.part(weights, size), wide) if sinks else weights
    if o.style.dropout and s.model_dropout:
        weights = tape.record("native_dropout", [weights], size, wide, beside=size)
    width = q.width * v.width / k.width
    return o.copy(tape.record("bmm", [weights, v], width, wide, saves=[weights, v]))


def latent_attention(o: Operations, x: Tensor, part: Latent) -> Tensor:
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
    return o.linear(weighted_values(o, q, k, v, part), x.width, "o_proj")


LOOPS = 8  # steps in which experts that run one after the other are taken


def mlp(o: Operations, x: Tensor, part: Dense, prefix: str = "") -> Tensor:
    """`LlamaMLP.forward`, `Phi3MLP.forward` (gate and up in one matrix) or `GPT2MLP.forward`."""
    width = part.width
    if not part.gated:
        up = o.linear(x, width, f"{prefix}up_proj")
        return o.linear(_activated(o, up), x.width, f"{prefix}down_proj")
    if part.fused:
        gate, up = o.split(o.linear(x, 2 * width, f"{prefix}gate_up"), width, width)
        product = _gated(o, gate, up)
    elif _fused(o):
        gate = o.linear(x, width, f"{prefix}gate_proj")
        product = _gated(o, gate, o.linear(x, width, f"{prefix}up_proj"))
    else:
        gate = _activated(o, o.linear(x, width, f"{prefix}gate_proj"))
        product = o.multiply(gate, o.linear(x, width, f"{prefix}up_proj"))
    return o.linear(product, x.width, f"{prefix}down_proj")


def _fused(o: Operations) -> bool:
    return o.settings.fused_mlp or o.settings.compiled


def _activated(o: Operations, x: Tensor) -> Tensor:
    if o.style.activation == "steps" and not (o.settings.compiled or o.settings.own_blocks):
        return o.gelu_in_steps(x)
    return o.activate(x, saves_output=o.style.activation == "output")


def _gated(o: Operations, gate: Tensor, up: Tensor) -> Tensor:
    """`activation(gate) * up`. Liger's LigerSiLUMulFunction (and what torch.compile makes of it)
    saves gate and up alone and writes their gradients in their place.
    """
    if _fused(o):
        return o.tape.record(
            "silu_mul", [gate, up], up.width, up.bytes_each, saves=[gate, up],
            in_place=not o.settings.compiled,
        )  # fmt: skip
    return o.multiply(_activated(o, gate), up)


def experts(o: Operations, x: Tensor, part: Experts) -> Tensor:
    """Routed experts and the shared one (`grouped_mm_experts_forward`, `Qwen3MoeSparseMoeBlock`).

    Each token's row is copied for each expert that it uses; router and sorting leave tensors of the
    number of experts.
    """
    s, tape = o.settings, o.tape
    used = part.used
    logits = o.linear(o.cast(x, 4) if o.style.router == "sigmoid" else x, part.count, plain=True)
    if o.style.router == "chosen":
        chosen = tape.record("topk", [logits], used, logits.bytes_each, beside=8 * used)
        weights = tape.record("softmax", [chosen], used, chosen.bytes_each, saves_output=True)
    elif o.style.router == "sigmoid":  # with a mask over the experts of other groups
        scores = tape.record(
            "sigmoid", [logits], part.count, logits.bytes_each, saves_output=True, beside=part.count
        )
        weights = tape.record("gather", [scores], used, logits.bytes_each, beside=8 * used)
    else:
        scores = tape.record("softmax", [logits], part.count, 4, saves_output=True)
        weights = tape.record("topk", [scores], used, 4, beside=8 * used)
        if not o.style.weights32:
            weights = o.cast(weights, logits.bytes_each)
    inputs = part.inputs or x.width
    if s.looped_experts:
        return _looped(o, x, weights, part)
    rows, width = o.copy(x, used * inputs), used * part.width
    kept = s.trains or s.corrected_experts
    rows = o.cast(rows, s.weight_bytes)
    both = tape.record(
        "grouped_mm", [rows], (2 if part.gated else 1) * width, s.weight_bytes,
        saves=[rows] if kept else (), trains=kept,
    )  # fmt: skip
    if o.style.clamped:
        product = _clamped(o, both, width)
    elif part.gated:
        gate, up = o.split(both, width, width)
        product = _gated(o, gate, up)
    else:
        product = _activated(o, both)
    product = o.cast(product, s.weight_bytes)
    result = tape.record(
        "grouped_mm", [product], used * inputs, s.weight_bytes,
        saves=[product] if kept else (), trains=kept,
    )  # fmt: skip
    return _weighed(o, x, result, weights, part)


def _clamped(o: Operations, both: Tensor, width: float) -> Tensor:
    """`GptOssExperts._apply_gate`: gate and up are every other number of one tensor."""
    gate, up = o.part(both, width), o.part(both, width)
    tape, wide = o.tape, both.bytes_each
    gate = tape.record("clamp", [gate], width, wide, saves=[gate])
    up = tape.record("clamp", [up], width, wide, saves=[up])
    glu = o.multiply(gate, o.activate(o.scale(gate), saves_output=True))
    return o.multiply(tape.record("add.Scalar", [up], width, wide), glu)


def _weighed(o: Operations, x: Tensor, result: Tensor, weights: Tensor, part: Experts) -> Tensor:
    product = o.multiply(result, weights)
    back = o.copy(product, product.width)
    out = o.tape.record("sum", [back], x.width, back.bytes_each, gradient=SAME)
    out = o.cast(out, x.bytes_each)
    return _with_shared(o, x, out, part)


def _looped(o: Operations, x: Tensor, weights: Tensor, part: Experts) -> Tensor:
    """`MixtralSparseMoeBlock.forward` of transformers 4: experts one after the other, each on the
    rows that chose it, so that gradients of activations exist for one at a time. Many experts are
    taken together in LOOPS steps.
    """
    loops = min(part.count, LOOPS)
    rows = part.used / loops
    out: Tensor | None = None
    for _ in range(loops):
        result = mlp(o, o.copy(x, rows * x.width), Dense(rows * part.width, gated=part.gated))
        product = o.copy(o.multiply(result, o.copy(weights, rows)), x.width)
        out = product if out is None else o.add(out, product)
    assert out is not None
    return _with_shared(o, x, o.cast(out, x.bytes_each), part)


def _with_shared(o: Operations, x: Tensor, out: Tensor, part: Experts) -> Tensor:
    if part.shared:
        shared = mlp(o, x, Dense(part.shared, gated=part.gated), "shared_")
        if o.style.shared_gate:
            shared = o.multiply(o.activate(o.linear(x, 1, plain=True), saves_output=True), shared)
        out = o.add(out, shared)
    return out


class LayerMemory(NamedTuple):
    """Bytes per token of one layer."""

    kept: float  # saved for the backward pass, its input among them if an operation saves it
    kept_inside: float  # the same without its input, which checkpointing counts already
    # The worst point of its backward pass, saved tensors and gradients together, without its input.
    backward: float
    forward: float  # the worst point of a pass that saves nothing


@lru_cache(maxsize=4096)
def layer_memory(kind: LayerKind, hidden: int, family: str, settings: BlockSettings) -> LayerMemory:
    """What one layer of this kind holds, per token of a micro-batch."""
    tape, x, out = record_layer(kind, hidden, family, settings)
    return LayerMemory(
        kept=tape.saved_bytes(),
        kept_inside=tape.saved_bytes(leaving_out=[x]),
        backward=tape.backward_peak(out, leaving_out=[x]),
        forward=tape.forward_peak(leaving_out=[x]),
    )


def record_layer(
    kind: LayerKind, hidden: int, family: str, settings: BlockSettings
) -> tuple[Tape, Tensor, Tensor]:
    """The operations of one layer, its input and its output."""
    o = Operations(settings, style_of(family))
    x = o.tape.tensor(hidden, settings.stream_bytes)
    return o.tape, x, _layer(o, x, kind)


def _layer(o: Operations, x: Tensor, kind: LayerKind) -> Tensor:
    """`LlamaDecoderLayer.forward` with the orders of norms that families have."""
    order = o.style.order
    if order in ("parallel", "shared"):
        normed = _norm(o, x)
        mixed = _mixed(o, normed, kind)
        return o.add(o.add(_mlps(o, normed if order == "shared" else _norm(o, x), kind), mixed), x)
    if kind.mixers:
        inner = _mixed(o, x if order == "post" else _norm(o, x), kind)
        x = o.add(x, inner if order == "pre" else _norm(o, inner))
    if kind.dense or kind.experts:
        inner = _mlps(o, x if order == "post" else _norm(o, x), kind)
        x = o.add(x, inner if order == "pre" else _norm(o, inner))
    return x


def _norm(o: Operations, x: Tensor) -> Tensor:
    if o.style.norm == "layer":
        return o.layer_norm(x)
    return o.rms_norm(x, in_float32=o.style.norm == "rms32")


def _dropped(o: Operations, x: Tensor) -> Tensor:
    if not o.style.dropout or not o.settings.model_dropout:
        return x
    return o.tape.record("native_dropout", [x], x.width, x.bytes_each, beside=x.width)


def _mixed(o: Operations, x: Tensor, kind: LayerKind) -> Tensor:
    out: Tensor | None = None
    names = {linear.name for linear in kind.linears if linear.adapted}
    for mixer in kind.mixers:
        inner = o.scale(x) if o.style.scaled else x
        if isinstance(mixer, Attention):
            one = attention(o, inner, mixer)
        elif isinstance(mixer, Latent):
            one = latent_attention(o, inner, mixer)
        else:
            from advisor.estimate.blocks.states import with_state  # few models have any

            one = with_state(o, inner, mixer, names)
        out = one if out is None else o.add(out, one)
    assert out is not None
    return _dropped(o, out)


def _mlps(o: Operations, x: Tensor, kind: LayerKind) -> Tensor:
    out, dense = None, kind.dense
    if dense:
        out = mlp(o, x, dense)
    if kind.experts:
        routed = experts(o, x, kind.experts)
        out = routed if out is None else o.add(out, routed)
    assert out is not None
    return _dropped(o, out)
