"""Weights that are one tensor under several names, while a model is divided among processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def keep_ties(model: Any) -> None:
    """Let `model.tie_weights()` tie what is tied now, and nothing else.

    accelerate calls it twice while it divides a model. transformers' own ties what the base model's
    config says: to the copy of the embeddings that a module trains, an output layer that had been
    frozen; and it fails at a copy of the output layer.
    """
    names: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(one), []).append(name)
    ties = [found for found in names.values() if len(found) > 1]

    def tie_weights(*_: Any, **__: Any) -> None:
        for found in ties:
            _tie(model, found)

    model.tie_weights = tie_weights


def _tie(model: Any, names: Sequence[str]) -> None:
    first = model.get_parameter(names[0])
    for name in names[1:]:
        place, _, own = name.rpartition(".")
        model.get_submodule(place)._parameters[own] = first
