"""One layer of a real model run forwards and backwards on the CPU, with every storage counted: what
autograd saves, and how high memory rises in the backward pass.

The CPU differs from a GPU in three things, which are set right here: its autocast leaves norms,
softmax and powers in 16 bit (`Wide`), PEFT asks whether CUDA's autocast is on, and a mode that counts
turns an in-place `index_put_` into a copy.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROWS, LENGTH = 8, 64


@dataclass(frozen=True)
class Traced:
    """Bytes per token of one layer: saved, saved beside its input, and the backward pass's peak."""

    kept: float
    kept_inside: float
    backward: float


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that exist, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.index_put.default, torch.ops.aten._unsafe_index_put.default):
            func = torch.ops.aten.index_put_.default
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Wide(TorchFunctionMode):
    """CUDA's autocast runs these in float32 unless they are given a dtype."""

    NAMES = frozenset(
        (F.layer_norm, F.softmax, torch.softmax, torch.pow, F.softplus, torch.exp, torch.cumsum,
         torch.Tensor.pow, torch.Tensor.exp, torch.Tensor.cumsum, torch.Tensor.softmax)
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.NAMES and torch.is_autocast_enabled("cpu") and not kwargs.get("dtype"):
            args = tuple(map(self.widened, args))
            kwargs = {name: self.widened(one) for name, one in kwargs.items()}
        return func(*args, **kwargs)

    @staticmethod
    def widened(one: Any) -> Any:
        floating = isinstance(one, torch.Tensor) and one.is_floating_point()
        return one.float() if floating else one


class Gradient(torch.autograd.Function):
    """Makes the gradient that the layer is given, which nobody else holds."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return torch.ones(ctx.shape, dtype=ctx.dtype)


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    """16-bit autocast as on CUDA."""
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda device="cpu": asked("cpu")
    try:
        with Wide(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            yield
    finally:
        torch.is_autocast_enabled = asked


def layers_of(model: Any) -> list[Any]:
    """The layers that gradient checkpointing runs again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]


def trace(
    model: Any, *, vocab: int, mixed: bool, length: int = LENGTH, padded: bool = False
) -> list[Traced]:
    """Each layer of a model in bytes per token: the difference between two batches, so that what
    does not grow with the batch (gradients of weights, positions) drops out.
    """
    rows = ROWS * LENGTH // length
    few, many = (
        run_layers(model, torch.randint(5, vocab, (count, length)), mixed, padded)
        for count in (rows, 2 * rows)
    )
    tokens = rows * length
    return [
        Traced(*((after - before) / tokens for before, after in zip(one, two, strict=True)))
        for one, two in zip(few, many, strict=True)
    ]


def run_layers(model: Any, ids: Any, mixed: bool, padded: bool) -> list[tuple[int, int, int]]:
    """Each layer's (bytes saved, the same without its input, peak of the backward pass)."""
    mask = torch.ones_like(ids)
    if padded:
        mask[:, -3:] = 0
    calls: dict[Any, Any] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.__setitem__(module, (args, kwargs)), with_kwargs=True
        )
        for layer in layers_of(model)
    ]
    with torch.no_grad(), autocast(mixed):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [_layer(layer, *calls[layer], mixed) for layer in layers_of(model)]


def _layer(layer: Any, args: Any, kwargs: Any, mixed: bool) -> tuple[int, int, int]:
    """(bytes saved, the same without the layer's input, peak of the backward pass)."""
    x = args[0] if args else kwargs["hidden_states"]
    # A view of a leaf: autocast would keep one cast of a leaf for all who read it.
    leaf = x.detach().clone().requires_grad_()
    x = leaf.view(leaf.shape)
    if args:
        args = (x, *args[1:])
    else:
        kwargs = {**kwargs, "hidden_states": x}
    others = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    owned = [*layer.parameters(), *layer.buffers(), *(one for one in others if one is not x)]
    outside = {one.untyped_storage()._cdata for one in owned}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in outside:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with autocast(mixed), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(*args, **kwargs)
    alive.clear()
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
        for parameter in layer.parameters()
        if parameter.requires_grad
    ]
    with Alive() as counted:
        with autocast(mixed):
            out = layer(*args, **kwargs)
        loss = Gradient.apply(out[0] if isinstance(out, tuple) else out)
        del out
        counted.peak = counted.now
        loss.backward()
    for hook in hooks:
        hook.remove()
    total = sum(kept.values())
    return total, total - kept.get(leaf.untyped_storage()._cdata, 0), counted.peak
