"""What is special about the cost of a method: one file each, which its YAML names (`arithmetic`).

A file holds functions by these names, as far as the method needs them:

| function | of | gives |
| --- | --- | --- |
| `trainable_params(run) -> int` | update | parameters that get a gradient (required) |
| `adapted(run) -> Sequence[str]` | update | linear layers that keep an input for a module |
| `kept_bytes(run) -> float` | update | bytes a token that its own layers keep |
| `written_out(run) -> int` | update | weights of a layer computed in each forward pass |
| `embedding_copies(run) -> int` | update | embeddings that are trained as a copy |
| `other_roles(run, base_bytes) -> list[Term]` | objective | memory of further models |
| `answers_at_once(run) -> int` | objective | answers that are written together |
| `flop_factor(run, factor) -> float` | objective | FLOP per weight and token of a step |
| `beside_flops(run, weights) -> float` | objective | FLOP per token of other models |
| `written_share(run) -> float` | objective | share of its rows that the model answers |
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.resources import estimate_methods_dir, method_roots
from advisor.methods.model import Method, Update


@cache
def _module(name: str) -> ModuleType:
    """The file estimate/methods/<name>.py of the project, or of a folder in ADVISE_METHODS."""
    if (estimate_methods_dir() / f"{name}.py").is_file():
        return importlib.import_module(f"advisor.estimate.methods.{name}")
    path = next(
        path
        for root in method_roots()
        if (path := root / "estimate" / "methods" / f"{name}.py").is_file()
    )
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of one's own does while it is read
        del sys.modules[spec.name]
        raise InputError(
            f"cannot be loaded: {type(error).__name__}: {error}", where=str(path)
        ) from error
    return module


def special(method: Method, name: str) -> Callable[..., Any] | None:
    """The function of that name in the method's file, or None where nothing is special."""
    found: Callable[..., Any] | None = None
    if method.arithmetic:
        found = getattr(_module(method.arithmetic), name, None)
    if found is None and name == "trainable_params" and isinstance(method, Update):
        raise InputError(
            f"estimate/methods/{method.arithmetic}.py has no function `trainable_params`",
            "trainable_params(run) -> int: the parameters that get a gradient",
            where=method.at,
        )
    return found
