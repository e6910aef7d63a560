"""One layer of a model under given settings: what it keeps, and how high its backward pass
rises."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from advisor.estimate.blocks.mixers import attention, latent_attention
from advisor.estimate.blocks.mlps import experts, mlp
from advisor.estimate.blocks.operations import Operations
from advisor.estimate.blocks.settings import BlockSettings
from advisor.estimate.blocks.states import convolution, delta_net, lightning, mamba2
from advisor.estimate.blocks.styles import Style, style_of
from advisor.estimate.blocks.tape import Tape, Tensor
from advisor.estimate.model.layers import Attention, Convolution, Delta, Latent, LayerKind, Mamba2


class LayerMemory(NamedTuple):
    """Bytes per token of one layer.

    Attributes:
        kept: Saved for the backward pass, its input among them if an operation saves it.
        kept_inside: The same without its input, which checkpointing counts already.
        backward: The worst point of its backward pass, saved tensors and gradients together,
            without its input.
        forward: The worst point of a pass that saves nothing.
    """

    kept: float
    kept_inside: float
    backward: float
    forward: float


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
    o = Operations(settings)
    x = o.tape.tensor(hidden, settings.stream_bytes)
    return o.tape, x, _layer(o, x, kind, style_of(family))


def _layer(o: Operations, x: Tensor, kind: LayerKind, style: Style) -> Tensor:
    """`LlamaDecoderLayer.forward` with the orders of norms that families have."""
    order = style.order
    if order in ("parallel", "shared"):
        normed = _norm(o, x, style)
        mixed = _mixed(o, normed, kind, style)
        second = normed if order == "shared" else _norm(o, x, style)
        return o.add(o.add(_mlps(o, second, kind, style), mixed), x)
    if kind.mixers:
        inner = _mixed(o, x if order == "post" else _norm(o, x, style), kind, style)
        x = o.add(x, inner if order == "pre" else _norm(o, inner, style))
    if kind.dense or kind.experts:
        inner = _mlps(o, x if order == "post" else _norm(o, x, style), kind, style)
        x = o.add(x, inner if order == "pre" else _norm(o, inner, style))
    return x


def _norm(o: Operations, x: Tensor, style: Style) -> Tensor:
    if style.norm == "layer":
        return o.layer_norm(x)
    return o.rms_norm(x, in_float32=style.norm == "rms32")


def _dropped(o: Operations, x: Tensor, style: Style) -> Tensor:
    if not style.dropout or not o.settings.model_dropout:
        return x
    return o.tape.record("native_dropout", [x], x.width, x.bytes_each, beside=x.width)


def _mixed(o: Operations, x: Tensor, kind: LayerKind, style: Style) -> Tensor:
    """All mixers of a layer, side by side."""
    out: Tensor | None = None
    names = {linear.name for linear in kind.linears if linear.adapted}
    for mixer in kind.mixers:
        inner = o.scale(x) if style.scaled else x
        if isinstance(mixer, Attention):
            one = attention(o, inner, mixer, style)
        elif isinstance(mixer, Latent):
            one = latent_attention(o, inner, mixer, style)
        elif isinstance(mixer, Delta):
            one = delta_net(o, inner, mixer, names)
        elif isinstance(mixer, Mamba2):
            one = mamba2(o, inner, mixer, style, names)
        elif isinstance(mixer, Convolution):
            one = convolution(o, inner, mixer)
        else:
            one = lightning(o, inner, mixer)
        out = one if out is None else o.add(out, one)
    assert out is not None
    return _dropped(o, out, style)


def _mlps(o: Operations, x: Tensor, kind: LayerKind, style: Style) -> Tensor:
    """The dense MLP, the experts, or both side by side."""
    out, dense = None, kind.dense
    if dense:
        out = mlp(o, x, dense.width, style, gated=dense.gated, fused=dense.fused)
    if kind.experts:
        routed = experts(o, x, kind.experts, style)
        out = routed if out is None else o.add(out, routed)
    assert out is not None
    return _dropped(o, out, style)
