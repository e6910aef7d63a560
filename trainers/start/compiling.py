"""torch.compile for the layers of a model (plan key `compile`), in training alone.

Each kind of layer is compiled once and used for all of its layers, which takes a fraction of the
time of the whole model (regional compilation) and leaves its forward, the loss on top and the names
of the weights as they are: adapters, gradient checkpointing, checkpoints and copies of the model
see nothing of it. Evaluation and generated answers run as they are, because their shapes change
with every token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import MethodType
from typing import Any

from trainers.job.types import Model

BACKEND = "inductor"
# Widths change from batch to batch, and a layer is compiled anew for a kind of input it has not
# seen: more than these and torch falls back to plain code without a word (its own default is 8).
MOST_VERSIONS = 64


def compile_layers(model: Model, *, backend: str = BACKEND) -> int:
    """Compile the forward of the model's repeated layers; how many were.

    A layer whose forward was replaced already, by us or a library, is left alone.
    """
    config: Any = import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, MOST_VERSIONS)
    layers = repeated_layers(model)
    for layer in layers:
        kind: Any = type(layer)
        layer.forward = MethodType(_in_training(kind, backend), layer)
    return len(layers)


def compile_said(model: Model) -> str:
    """Compile the model's layers; a line that says how many."""
    count = compile_layers(model)
    return (
        f"compile: {count} layers, of which each kind is compiled in the first steps"
        if count
        else "compile: nothing, since transformers names no repeated layers of this model"
    )


def repeated_layers(model: Model) -> list[Any]:
    """The blocks that the model's architecture consists of, as transformers names them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [
        module
        for module in base.modules()
        if type(module).__name__ in names and "forward" not in module.__dict__
    ]


@functools.cache
def _in_training(kind: Any, backend: str) -> Callable[..., Any]:
    """The forward of a kind of layer: compiled in training, else as it was. A plain function of the
    layer, so that a copy of a layer uses its own weights.
    """
    import torch

    plain: Any = kind.forward
    compiled: Any = torch.compile(plain, backend=backend)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    return forward
