"""LoRA merged into the weights while answers are generated.

Beside its base each layer computes two more products for every token, which costs more than they
are worth when a token is all there is to compute. Merged weights are computed once for all tokens
of a rollout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainers.rollouts.memory import free_bytes
from trainers.step.sharding import is_divided


@contextmanager
def merged(model: Any) -> Iterator[bool]:
    """Merge the active LoRA adapters inside, if that changes no answer; whether it was done.

    Only weights that compute in float32 are merged: in 16 bits rounding swallows the small changes
    of a young adapter, so that the answers would be those of the base. Afterwards the weights are
    the tensors from before, bit for bit: nothing is subtracted again.
    """
    layers = mergeable_layers(model)
    if not layers:
        yield False
        return
    kept: list[tuple[Any, Any]] = []
    try:
        for layer in layers:
            base = layer.get_base_layer()
            kept.append((layer, base.weight.data))
            base.weight.data = base.weight.data.clone()
            layer.merge()
        yield True
    finally:
        for layer, weight in kept:
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def mergeable_layers(model: Any) -> list[Any]:
    """The LoRA layers of the model; [] if one of them cannot be merged, the merged weights do not
    fit into memory, the model is divided among processes, or it does not compute in float32.
    """
    import torch

    if not hasattr(model, "peft_config") or is_divided(model):
        return []
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    device = next(model.parameters()).device.type
    if not tuned or torch.is_autocast_enabled(device):
        return []
    for layer in tuned:
        base = layer.get_base_layer()
        plain = isinstance(layer, LoraLayer) and type(base) is torch.nn.Linear
        if not plain or layer.merged or layer.disable_adapters:
            return []
        variants = getattr(layer, "lora_variant", {})  # DoRA and others keep state of their own
        if any(name in variants for name in layer.active_adapters):
            return []
        if base.weight.dtype != torch.float32 or any(getattr(layer, "lora_bias", {}).values()):
            return []
    held = sum(one.get_base_layer().weight.numel() * 4 for one in tuned)
    return tuned if held <= free_bytes([model]) else []
