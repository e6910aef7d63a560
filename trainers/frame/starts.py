"""Starts of LoRA that take a part out of the base: PiSSA and OLoRA, on a base that stays as it is.

PEFT writes W - s B0 A0 over the base's weights W and trains from A0, B0. Whoever loads such an
adapter without PEFT gets another model, and the base with the adapter switched off is no longer the
base. Here W stays, and the part that the adapter begins with is taken off each layer's output:

    W x + s B A x - s B0 A0 x

The difference is a plain LoRA of twice the rank, [A; A0] and [B, -B0], and so it is saved.

Dimensions: r rank, I inputs, O outputs of a layer: A is r, I and B is O, r.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

NAMES = ("pissa", "olora")
ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"


def moves_base(value: Any) -> bool:
    """True for a value of init_lora_weights with which PEFT would change the base."""
    return isinstance(value, str) and value.lower().startswith(NAMES)


@dataclass
class Start:
    """What the adapter of one layer began with, frozen."""

    a_rI: Any
    b_Or: Any

    def __call__(self, layer: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """The layer's output less what its adapter began with; a forward hook."""
        from torch.nn.functional import linear

        on = layer.merged or ADAPTER in layer.active_adapters
        if layer.disable_adapters or not on:
            return output
        part = linear(linear(inputs[0].to(self.a_rI.dtype), self.a_rI), self.b_Or)
        return output - (layer.scaling[ADAPTER] * part).to(output.dtype)


def begin_with(model: Any, value: str) -> None:
    """Start every LoRA layer of the model with that decomposition of its weights."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for layer in model.modules():
        if (
            not isinstance(layer, LoraLayer)
            or isinstance(layer, ParamWrapper)
            or ADAPTER not in layer.lora_A
        ):
            continue
        base, parts = layer.get_base_layer(), (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        dtype = parts[0].weight.dtype
        weight = base.weight
        # Quantised weights are replaced by PEFT, others overwritten in place.
        before = weight.data.clone() if weight.dtype.is_floating_point else weight.data
        if value.lower() == "olora":
            layer.olora_init(ADAPTER)
        else:
            layer.pissa_init(ADAPTER, value.lower())
        base.weight = weight
        weight.data = before
        for part in parts:
            part.weight.data = part.weight.data.to(dtype).contiguous()
        layer.start = Start(*(part.weight.detach().clone() for part in parts))
        layer.register_forward_hook(layer.start)
    # What was really done, for the record; saving writes what the file is.
    model.peft_config[ADAPTER].init_lora_weights = value


def started_layers(model: Any) -> dict[str, Any]:
    """The layers with such a start, by the names that their tensors have in an adapter's file."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(vars(module).get("start"), Start)
    }


def save_plain(model: Any, folder: Path, *, state_dict: Any = None) -> None:
    """Write the adapter as a plain LoRA of twice the rank on the unchanged base."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(
        model, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False
    )
    starts = {name: layer.start for name, layer in started_layers(model).items()}
    plain = {}
    for key, tensor in tensors.items():
        name, part = layer_of(key)
        if part is None:
            plain[key] = tensor.contiguous()
            continue
        # A layer without such a start gets zeros, because one rank holds for all.
        start = starts.get(name)
        if part == "A":
            other = torch.zeros_like(tensor) if start is None else start.a_rI
            plain[key] = torch.cat([tensor, other.to(tensor)], dim=0).contiguous()
        else:
            other = torch.zeros_like(tensor) if start is None else -start.b_Or
            plain[key] = torch.cat([tensor, other.to(tensor)], dim=1).contiguous()
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    plain_config(model.peft_config[ADAPTER]).save_pretrained(str(folder))


def plain_config(config: Any) -> Any:
    """The config of the plain LoRA that `save_plain` writes."""
    plain = copy.deepcopy(config)
    plain.init_lora_weights, plain.inference_mode = True, True
    # The scale stays: alpha / r, or alpha / sqrt(r).
    factor = sqrt(2) if plain.use_rslora else 2
    plain.r, plain.lora_alpha = 2 * plain.r, factor * plain.lora_alpha
    plain.rank_pattern = {key: 2 * value for key, value in (plain.rank_pattern or {}).items()}
    plain.alpha_pattern = {
        key: factor * value for key, value in (plain.alpha_pattern or {}).items()
    }
    return plain


def load_plain(model: Any, folder: Path) -> None:
    """Put back what `save_plain` wrote: the trained half and what it began with."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    starts = {name: layer.start for name, layer in started_layers(model).items()}
    trained = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        name, part = layer_of(key)
        if part is None:
            trained[key] = tensor
            continue
        dim = 0 if part == "A" else 1
        half, other = tensor.chunk(2, dim=dim)
        trained[key] = half.contiguous()
        if name in starts and part == "A":
            starts[name].a_rI.copy_(other)
        elif name in starts:
            starts[name].b_Or.copy_(-other)
    set_peft_model_state_dict(model, trained)


def layer_of(key: str) -> tuple[str, str | None]:
    """(the layer of a tensor in an adapter's file, A or B); (the key, None) for other tensors."""
    for part in ("A", "B"):
        for ending in (f".lora_{part}.weight", f".lora_embedding_{part}"):
            if key.endswith(ending):
                return key.removesuffix(ending), part
    return key, None
