"""Forward passes outside the trainer's own steps: probes, checks, evaluations, generated answers.

transformers wraps autocast around the forward of the model that it trains, from `train` on, and
nowhere else (its compute_loss_context_manager does nothing). What runs before and after, and what
PEFT generates, has to bring its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; the model's mode is restored afterwards.

    Under autocast if the model's attention refuses the dtype of its weights, as flash attention
    refuses float32; else without, so that numbers are those of the plainly loaded model.
    """
    import torch

    was_training, autocast = model.training, nullcontext()
    if computes_in_16_bit(model) and first_float_dtype(model) == torch.float32:
        device = next(model.parameters()).device
        autocast = torch.autocast(device.type, half_dtype(device))
    model.eval()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        model.train(was_training)


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """The model as it evaluates, with its cache, which is off while activations are recomputed:
    every token would then cost a whole forward pass.

    Autocast keeps its casts of weights that require gradients alone, and casts frozen ones for each
    token: on a CPU that took a third of the time of sixteen answers. There they require gradients
    as long as this lasts, which nothing computes; the answers are the same to the bit, and the
    casts take the memory that a step takes for them.
    """
    recomputes = bool(getattr(model, "is_activation_checkpointing", False))
    frozen = [
        one
        for one in model.parameters()
        if one.device.type == "cpu" and one.is_floating_point() and not one.requires_grad
    ]
    if recomputes:
        model.activation_checkpointing_disable()
    try:
        with evaluating(model):
            for one in frozen:
                one.requires_grad_(True)
            yield
    finally:
        for one in frozen:
            one.requires_grad_(False)
        if recomputes:
            model.activation_checkpointing_enable({"use_reentrant": False})


@contextmanager
def measuring_as_trained(trainer: Any) -> Iterator[None]:
    """The trainer's model evaluating, in the precision that its steps compute in."""
    with evaluating(trainer.model), trainer.accelerator.autocast():
        yield


def computes_in_16_bit(model: Any) -> bool:
    """True if the model's attention takes 16-bit numbers alone, as every flash attention does."""
    return "flash" in str(getattr(model.config, "_attn_implementation", None) or "")


def half_dtype(device: Any) -> Any:
    """bfloat16, or float16 on a GPU without it: what mixed precision computes in on this device."""
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def first_float_dtype(model: Any) -> Any:
    """The dtype of the base's weights, whatever module is on it; None if it has no floats.

    Adapters are float32 on any base, and packed 4-bit weights are no floats, but norms and
    embeddings are.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return next(
        (parameter.dtype for parameter in base.parameters() if parameter.is_floating_point()), None
    )


@contextmanager
def rounded_to(model: Any, dtype: str) -> Iterator[None]:
    """Inside, the model's weights are of this dtype, as FSDP casts them. They wait on the host,
    which had room for all of them when they were saved: a GPU may have none for both.
    """
    import torch

    kept = [
        (one, one.data.cpu(), one.device) for one in model.parameters() if one.is_floating_point()
    ]
    for one, _, _ in kept:
        one.data = one.data.to(getattr(torch, dtype))
    try:
        yield
    finally:
        for one, data, device in kept:
            one.data = data.to(device)
