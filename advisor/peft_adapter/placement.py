"""Where adapters go in a model: found by the model's structure, not by a list of architectures.

A layer of a transformer holds something that mixes tokens (attention) and something that does not
(the MLP). Both map the hidden size onto itself. Most architectures make each one module and add the
residual outside it; there the adapter wraps the module. Where a module adds the residual itself
(BERT's `output`, BLOOM's MLP), it takes the residual as an argument; there the adapter wraps the
module's last linear layer, so that it still acts before the residual.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

OUTPUT, INPUT, RESIDUAL = "output", "input", "residual"
# Classes that mix tokens: attention, and what stands in for it in hybrid models.
MIXES_TOKENS = re.compile(r"(Attention|Attn|Mixer|DeltaNet|ShortConv)\d*$")
# Names of the argument by which a module takes the residual it adds.
RESIDUAL_ARGUMENTS = ("input_tensor", "residual")
OTHER_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|speech|image|vqmodel)")


class UnsupportedModel(ValueError):
    """The model has no place where this adapter could go."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place of an adapter.

    reads: OUTPUT: the wrapped module's output. INPUT: its first argument, added to its output.
        RESIDUAL: the residual that the module takes as an argument, added to it.
    """

    reads: str
    argument: str | None = None  # the residual's name, where there is one


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """What an adapter depends on in its base."""

    hidden_size: int
    layers: int


def base_shape(model: Any) -> ModuleShape:
    """Hidden size and number of layers.

    Raises UnsupportedModel where the model's config does not say.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(config, "hidden_size", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(hidden, int) or not isinstance(layers, int):
        raise UnsupportedModel(
            f"{type(model).__name__}: its config names no hidden_size and num_hidden_layers, so"
            " this is no transformer that adapters fit into"
        )
    return ModuleShape(hidden_size=hidden, layers=layers)


def find_places(model: Any, placement: str, layers: list[int] | None = None) -> dict[str, Place]:
    """The module names that get an adapter, in order.

    Raises UnsupportedModel with the reason where there are none.

    Args:
        model: A transformers model, with or without adapters in it already.
        placement: houlsby, pfeiffer or parallel.
        layers: Numbers of the layers that get one; None: all.
    """
    shape = base_shape(model)
    wrong = sorted(number for number in layers or () if number >= shape.layers)
    if wrong:
        raise UnsupportedModel(
            f"layers names {', '.join(map(str, wrong))}, but {type(model).__name__} has layers 0 to"
            f" {shape.layers - 1}"
        )
    places: dict[str, Place] = {}
    for stack, blocks in layer_stacks(model, shape.layers):
        for number, block in enumerate(blocks):
            if layers is not None and number not in layers:
                continue
            try:
                found = _places_of(block, placement)
            except UnsupportedModel as error:
                raise UnsupportedModel(
                    f"{type(model).__name__}: layer {stack}.{number} ({type(bare(block)).__name__})"
                    f" {error}"
                ) from None
            places |= {f"{stack}.{number}.{name}": place for name, place in found.items()}
    if not places:
        raise UnsupportedModel(
            f"{type(model).__name__}: no list of {shape.layers} layers was found in it, so adapters"
            " have no place"
        )
    return places


def layer_stacks(model: Any, length: int) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of the model's layers: one, or two in an encoder-decoder.

    Towers for images and sound are left out.
    """
    inside: list[str] = []
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == length
            and name
            and not OTHER_TOWERS.search(name)
        ):
            if any(name.startswith(outer + ".") for outer in inside):
                continue  # experts inside a layer
            inside.append(name)
            if all(_holds_matrices(block) for block in module):
                yield name, module


def bare(module: Any) -> Any:
    """The module without adapters around it."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _places_of(block: Any, placement: str) -> dict[str, Place]:
    children = {
        name: child
        for name, child in bare(block).named_children()
        if _holds_matrices(child) and "cross" not in name.lower()
    }
    mixers = {
        name: child
        for name, child in children.items()
        if MIXES_TOKENS.search(type(bare(child)).__name__)
    }
    if not mixers:
        raise UnsupportedModel(
            f"has no part recognised as attention (it holds {_described(children)})"
        )
    rest = {name: child for name, child in children.items() if name not in mixers}
    places: dict[str, Place] = {}
    if placement == "houlsby":
        name, child = next(iter(mixers.items()))
        places |= _after_attention(name, child)
    places |= _at_mlp(rest, parallel=placement == "parallel")
    return places


def _after_attention(name: str, child: Any) -> dict[str, Place]:
    inner = bare(child)
    if _residual_argument(inner):
        return _on_last_linear(name, child)
    for inner_name, module in inner.named_children():
        if _residual_argument(bare(module)):
            return _on_last_linear(f"{name}.{inner_name}", module)
    return {name: Place(OUTPUT)}


def _at_mlp(rest: dict[str, Any], *, parallel: bool) -> dict[str, Place]:
    adding = {name: child for name, child in rest.items() if _residual_argument(bare(child))}
    modules = {name: child for name, child in rest.items() if not _is_linear(bare(child))}
    linears = [name for name in rest if name not in modules]
    if len(adding) == 1:
        ((name, child),) = adding.items()
        argument = _residual_argument(bare(child))
        if not parallel:
            return _on_last_linear(name, child)
        # BERT's `output` gets the MLP's input as the residual; BLOOM's MLP gets its input first and
        # the residual beside it.
        return {name: Place(RESIDUAL if argument == "input_tensor" else INPUT, argument)}
    if (
        len(modules) == 1
        and not linears
        and not isinstance(
            bare(next(iter(modules.values()))), nn.ModuleList | nn.ModuleDict | nn.Sequential
        )
    ):
        return {next(iter(modules)): Place(INPUT if parallel else OUTPUT)}
    if not modules and len(linears) == 2:
        if parallel:
            raise UnsupportedModel(
                f"has its MLP as two loose linear layers ({', '.join(linears)}), which a parallel"
                " adapter cannot span; take placement houlsby or pfeiffer"
            )
        return {linears[-1]: Place(OUTPUT)}
    raise UnsupportedModel(
        f"has no single part recognised as its MLP (beside attention it holds {_described(rest)})"
    )


def _on_last_linear(name: str, module: Any) -> dict[str, Place]:
    if bare(module) is not module:
        raise UnsupportedModel(
            "carries an adapter with placement parallel already, around the place this one needs;"
            " add the other one first"
        )
    linears = [
        child_name for child_name, child in module.named_children() if _is_linear(bare(child))
    ]
    if not linears:
        raise UnsupportedModel(
            f"has a part ({name}) that adds its residual itself and holds no linear layer"
        )
    return {f"{name}.{linears[-1]}": Place(OUTPUT)}


def _residual_argument(module: Any) -> str | None:
    try:
        arguments = inspect.signature(type(module).forward).parameters
    except (TypeError, ValueError):
        return None
    return next((name for name in RESIDUAL_ARGUMENTS if name in arguments), None)


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D"
        and isinstance(getattr(module, "weight", None), torch.Tensor)
    )


def _holds_matrices(module: Any) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def _described(children: dict[str, Any]) -> str:
    return (
        ", ".join(f"{name}: {type(bare(child)).__name__}" for name, child in children.items())
        or "nothing with weights"
    )
