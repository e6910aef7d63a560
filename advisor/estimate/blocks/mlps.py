"""MLPs and routed experts, as sequences of operations."""

from __future__ import annotations

from advisor.estimate.blocks.operations import Operations
from advisor.estimate.blocks.styles import Style
from advisor.estimate.blocks.tape import SAME, Tensor
from advisor.estimate.model.layers import Experts

LOOPS = 8  # steps in which experts that run one after the other are taken


def mlp(
    o: Operations,
    x: Tensor,
    width: float,
    style: Style,
    *,
    gated: bool,
    fused: bool = False,
    prefix: str = "",
) -> Tensor:
    """`LlamaMLP.forward`, `Phi3MLP.forward` (gate and up in one matrix) or `GPT2MLP.forward`."""
    if not gated:
        up = o.linear(x, width, f"{prefix}up_proj")
        return o.linear(_activated(o, up, style), x.width, f"{prefix}down_proj")
    if fused:
        both = o.linear(x, 2 * width, f"{prefix}gate_up")
        gate, up = o.split(both, width, width)
        product = _gated(o, gate, up, style)
    elif _fused(o):
        gate = o.linear(x, width, f"{prefix}gate_proj")
        product = _gated(o, gate, o.linear(x, width, f"{prefix}up_proj"), style)
    else:
        gate = _activated(o, o.linear(x, width, f"{prefix}gate_proj"), style)
        product = o.multiply(gate, o.linear(x, width, f"{prefix}up_proj"))
    return o.linear(product, x.width, f"{prefix}down_proj")


def _fused(o: Operations) -> bool:
    return o.settings.fused_mlp or o.settings.compiled


def _activated(o: Operations, x: Tensor, style: Style) -> Tensor:
    if style.activation == "steps" and not (o.settings.compiled or o.settings.own_blocks):
        return o.gelu_in_steps(x)
    return o.activate(x, saves_output=style.activation == "output")


def _gated(o: Operations, gate: Tensor, up: Tensor, style: Style) -> Tensor:
    """`activation(gate) * up`. Liger's LigerSiLUMulFunction (and what torch.compile makes of it)
    saves gate and up alone and writes their gradients in their place.
    """
    if _fused(o):
        return o.tape.record(
            "silu_mul", [gate, up], up.width, up.bytes_each, saves=[gate, up],
            in_place=not o.settings.compiled,
        )  # fmt: skip
    return o.multiply(_activated(o, gate, style), up)


def experts(o: Operations, x: Tensor, part: Experts, style: Style) -> Tensor:
    """Routed experts and the shared one (`grouped_mm_experts_forward`, `Qwen3MoeSparseMoeBlock`).

    Each token's row is copied for each expert that it uses; router and sorting leave tensors of the
    number of experts.
    """
    s, tape = o.settings, o.tape
    used = part.used
    logits = o.linear(o.cast(x, 4) if style.router == "sigmoid" else x, part.count, plain=True)
    if style.router == "chosen":
        chosen = tape.record("topk", [logits], used, logits.bytes_each, beside=8 * used)
        weights = tape.record("softmax", [chosen], used, chosen.bytes_each, saves_output=True)
    elif style.router == "sigmoid":  # with a mask over the experts of other groups
        scores = tape.record(
            "sigmoid", [logits], part.count, logits.bytes_each, saves_output=True, beside=part.count
        )
        weights = tape.record("gather", [scores], used, logits.bytes_each, beside=8 * used)
    else:
        scores = tape.record("softmax", [logits], part.count, 4, saves_output=True)
        weights = tape.record("topk", [scores], used, 4, beside=8 * used)
        if not style.weights32:
            weights = o.cast(weights, logits.bytes_each)
    inputs = part.inputs or x.width
    if s.looped_experts:
        return _looped(o, x, weights, part, style)
    rows, width = o.copy(x, used * inputs), used * part.width
    kept = s.trains or s.corrected_experts
    rows = o.cast(rows, s.weight_bytes)
    both = tape.record(
        "grouped_mm", [rows], (2 if part.gated else 1) * width, s.weight_bytes,
        saves=[rows] if kept else (), trains=kept,
    )  # fmt: skip
    if style.clamped:
        product = _clamped(o, both, width)
    elif part.gated:
        gate, up = o.split(both, width, width)
        product = _gated(o, gate, up, style)
    else:
        product = _activated(o, both, style)
    product = o.cast(product, s.weight_bytes)
    result = tape.record(
        "grouped_mm", [product], used * inputs, s.weight_bytes,
        saves=[product] if kept else (), trains=kept,
    )  # fmt: skip
    return _weighed(o, x, result, weights, part, style)


def _clamped(o: Operations, both: Tensor, width: float) -> Tensor:
    """`GptOssExperts._apply_gate`: gate and up are every other number of one tensor."""
    gate, up = o.part(both, width), o.part(both, width)
    tape, wide = o.tape, both.bytes_each
    gate = tape.record("clamp", [gate], width, wide, saves=[gate])
    up = tape.record("clamp", [up], width, wide, saves=[up])
    glu = o.multiply(gate, o.activate(o.scale(gate), saves_output=True))
    return o.multiply(tape.record("add.Scalar", [up], width, wide), glu)


def _weighed(
    o: Operations, x: Tensor, result: Tensor, weights: Tensor, part: Experts, style: Style
) -> Tensor:
    """Outputs of the used experts times the router's weights, put back in order and added up."""
    product = o.multiply(result, weights)
    back = o.copy(product, product.width)
    out = o.tape.record("sum", [back], x.width, back.bytes_each, gradient=SAME)
    out = o.cast(out, x.bytes_each)
    return _with_shared(o, x, out, part, style)


def _looped(o: Operations, x: Tensor, weights: Tensor, part: Experts, style: Style) -> Tensor:
    """`MixtralSparseMoeBlock.forward` of transformers 4: experts one after the other, each on the
    rows that chose it, so that gradients of activations exist for one at a time. Many experts are
    taken together in LOOPS steps.
    """
    loops = min(part.count, LOOPS)
    rows = part.used / loops
    out: Tensor | None = None
    for _ in range(loops):
        chosen = o.copy(x, rows * x.width)
        result = mlp(o, chosen, rows * part.width, style, gated=part.gated)
        product = o.copy(o.multiply(result, o.copy(weights, rows)), x.width)
        out = product if out is None else o.add(out, product)
    assert out is not None
    return _with_shared(o, x, o.cast(out, x.bytes_each), part, style)


def _with_shared(o: Operations, x: Tensor, out: Tensor, part: Experts, style: Style) -> Tensor:
    """The outputs of routed experts with that of the experts which every token passes through."""
    if part.shared:
        shared = mlp(o, x, part.shared, style, gated=part.gated, prefix="shared_")
        if style.shared_gate:
            gate = o.activate(o.linear(x, 1, plain=True), saves_output=True)
            shared = o.multiply(gate, shared)
        out = o.add(out, shared)
    return out
