"""Weights that a module trains are float32 while they are trained, whatever the base is.

PEFT sees to that for its own layers, not for whole modules of the base that are trained beside
them (`modules_to_save`: a new head, embeddings), which stay in the dtype of the base. In bfloat16
most of their updates are rounded away, and the loss scaler of float16 refuses to unscale them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def train_in_float32(model: Any) -> None:
    """Give each 16-bit weight of the model's modules float32, if it has modules at all.

    A module of the base that is trained beside them takes and returns the dtype of the base as
    before, so that the model also runs outside autocast, and activations do not grow.
    """
    if not hasattr(model, "peft_config"):
        return  # the stage's precision says what weights that are trained in place are
    for dtype, module in trained_copies(model):
        if hasattr(module, "casts"):
            continue
        for parameter in module.parameters():
            if is_half(parameter):
                parameter.data = parameter.data.float()
        # Tied embeddings and output layer are two modules with one weight: each casts for itself.
        module.casts = _cast_around(module, dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and is_half(parameter):
            parameter.data = parameter.data.float()


def _cast_around(module: Any, dtype: Any) -> list[Any]:
    """Let a module take 16-bit numbers as float32, and return this dtype; the hooks that do."""

    def widened(value: Any) -> Any:
        return value.float() if hasattr(value, "is_floating_point") and is_half(value) else value

    def before(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tuple(map(widened, given)), {key: widened(one) for key, one in named.items()}

    def after(_: Any, given: tuple[Any, ...], output: Any) -> Any:
        return output.to(dtype) if hasattr(output, "to") else output

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]


def dither(model: Any, seed: int) -> None:
    """Spread each float32 matrix evenly over the numbers that round to the same bfloat16 matrix:
    products under autocast stay what they were, and an update far smaller than a step of bfloat16
    moves as large a share of the weights by a step as it is of that step.

    The weights of a checkpoint are none of that. One in eight of a float16 checkpoint, 8 % of a
    4-bit one, lie exactly between two bfloat16 numbers: the first update moves all of these by a
    whole step. Those of a bfloat16 checkpoint lie on them: small updates move nothing. Full DPO of
    SmolLM2-135M at a learning rate of 1e-6 has a margin of 0.103 and 0.197 after one and two
    updates in float32, -0.006 and -0.020 in mixed precision, and 0.079 and 0.153 with this.

    Vectors, and embeddings that are no output layer, stay in float32 under autocast.
    """
    import torch

    tables = [one.weight for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    products = [one.weight for one in model.modules() if isinstance(one, torch.nn.Linear)]
    kept = {id(one) for one in tables} - {id(one) for one in products}
    with torch.no_grad():
        for place, one in enumerate(model.parameters()):
            if one.dtype != torch.float32 or one.is_meta or one.dim() < 2 or id(one) in kept:
                continue
            # The lower half of a float32's bits is what bfloat16 has not: numbers up to half its
            # range away round to the same.
            generator = torch.Generator(one.device).manual_seed(seed + place)
            away = torch.empty(one.shape, dtype=torch.int16, device=one.device)
            away.random_(-(2**15) + 1, 2**15, generator=generator)
            one.copy_(one.to(torch.bfloat16))
            one.view(torch.int32).add_(away * (one != 0))


def float32_weights(model: Any) -> dict[str, Any]:
    """Name -> value of the weights of a module that came with the model, which are float32. TRL
    rounds those on a quantised base to bfloat16 as it is made.
    """
    if not hasattr(model, "peft_config"):
        return {}
    found = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    return {name: one.data for name, one in found if one.element_size() == 4}


def round_to_base(model: Any) -> None:
    """Round what `train_in_float32` made float32 of the base's own modules to the base's dtype.

    Then the model in memory, which is evaluated, saved and checked, is the one that anybody loads:
    PEFT puts saved modules into the dtype of the base.
    """
    if not hasattr(model, "peft_config"):
        return
    for dtype, module in trained_copies(model):
        for cast in module.__dict__.pop("casts", []):
            cast.remove()
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)


def trained_copies(model: Any) -> Iterator[tuple[Any, Any]]:
    """(dtype of a 16-bit module of the base, the copy of it that is trained) for each module that
    PEFT saves whole, adapter by adapter.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtypes = [one.dtype for one in wrapper.original_module.parameters() if is_half(one)]
            for module in wrapper.modules_to_save.values() if dtypes else ():
                yield dtypes[0], module


def is_half(tensor: Any) -> bool:
    """True for a float of 16 bits."""
    return bool(tensor.is_floating_point() and tensor.element_size() == 2)
