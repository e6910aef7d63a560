"""What a model needs before accelerate divides it among processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advisor.ground.errors import InputError


def make_divisible(model: Any, *, mixed: bool) -> None:
    """Let accelerate divide the model as it is. Call it in every process, before it is trained.

    Raises InputError for a model that it cannot divide.

    Args:
        mixed: The precision is mixed.
    """
    _check_embeddings(model)
    _give_memory(model, mixed=mixed)
    _keep_ties(model)


def _check_embeddings(model: Any) -> None:
    """Raise InputError if a copy of the embeddings trains, whose original is the output layer, too:
    these two are parts of different units.
    """
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    original = getattr(getattr(embeddings, "original_module", None), "weight", None)
    if original is not None and getattr(output, "weight", None) is original:
        raise InputError(
            "modules_to_save names the embeddings alone, and the model's output layer is the same"
            " tensor: such a model cannot be divided among several processes",
            where="launch.strategy",
            allowed="strategy: ddp, or train_embeddings: true, which trains both as one",
        )


def _give_memory(model: Any, *, mixed: bool) -> None:
    """Give addresses to the parameters of processes that read no weights, and no memory: nothing is
    written there before each process gets its part.

    accelerate knows the optimizer's parameters by their addresses: of several that have none, one
    would be trained in the place of all. Under mixed precision it makes float32 copies of what
    trains, which fill memory, unless it is float32 already.
    """
    import torch

    given: dict[int, Any] = {}  # tied weights stay one tensor
    for module in model.modules():
        for name, one in list(module.named_parameters(recurse=False)):
            if one.is_meta:
                if id(one) not in given:
                    dtype = torch.float32 if mixed and one.requires_grad else one.dtype
                    memory = torch.empty_like(one, device="cpu", dtype=dtype)
                    given[id(one)] = torch.nn.Parameter(memory, one.requires_grad)
                setattr(module, name, given[id(one)])


def _keep_ties(model: Any) -> None:
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
        setattr(model.get_submodule(place), own, first)
