"""A 4-bit base of which each process of FSDP2 keeps its part as soon as a matrix is quantised.

Each process reads every matrix, quantises it on its device and keeps its own rows of the packed
result: at no time is there more than that part, one matrix and its packed form. Until the model is
divided, the parameter shows one memory that all of them share, at the right shape, so it must not
be computed with; FSDP2 splits a parameter by `torch.chunk`, which then gives it the part. The
packed experts of a layer (packed_experts.py) are such a parameter, too, divided by experts.
"""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes
import torch
from torch import distributed
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from trainers.start.packed_experts import PACKED, Nf4Config, Nf4Quantizer, Pack, parts_of

METHOD = "nf4_divided"


class Params4bit(bitsandbytes.nn.Params4bit):
    """A packed matrix, of which this process holds a part. accelerate looks for this name."""

    part: Any  # of this process; the rest is in others

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.chunk or not hasattr(args[0], "part"):
            return super().__torch_function__(func, types, args, kwargs)
        whole, *rest = args
        parts = list(torch.chunk(torch.empty(whole.shape, device="meta"), *rest, **(kwargs or {})))
        if (mine := distributed.get_rank()) < len(parts):
            parts[mine] = whole.part
        return tuple(parts)


def is_end(model: Any, name: str) -> bool:
    """True for the matrix of the embeddings or of the output."""
    module, part = get_module_from_name(model, name)
    return part == "weight" and module in (
        model.get_input_embeddings(),
        model.get_output_embeddings(),
    )


@register_quantization_config(METHOD)
class DividedConfig(Nf4Config):
    """The config of NF4 with packed experts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.quant_method = METHOD


@register_quantizer(METHOD)
class DividedQuantizer(Nf4Quantizer):
    """NF4 of which a part of each matrix is kept. Embeddings and output, which stay in 16 bits, are
    on the host until FSDP2 divides them, one after the other.
    """

    shown: torch.Tensor | None = None  # by all matrices in the place of their own numbers

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return is_end(model, param_name) or super().param_needs_quantization(
            model, param_name, **kwargs
        )

    def get_quantize_ops(self) -> ConversionOps:
        return KeepPart(self)

    def show(self, like: torch.Tensor, model: Any) -> torch.Tensor:
        """Memory of the packed matrix's shape, which is the same for all."""
        if self.shown is None:
            sizes = [
                one.in_features * one.out_features
                for one in model.modules()
                if isinstance(one, bitsandbytes.nn.Linear4bit)
            ]
            sizes += [
                getattr(one, part).numel() for one in model.modules() for part in parts_of(one)
            ]
            length = math.ceil(max(sizes) / 2 / like.element_size())
            self.shown = torch.zeros(length, dtype=like.dtype, device=like.device)
        return self.shown[: like.numel()].view(like.shape)

    def keep_part(self, whole: torch.Tensor, model: Any, **attributes: Any) -> Params4bit:
        """The parameter that has this process's part of a packed matrix."""
        parts = torch.chunk(whole, distributed.get_world_size())
        mine = distributed.get_rank()
        kept = Params4bit(self.show(whole, model), requires_grad=False, **attributes)
        kept.part = (parts[mine] if mine < len(parts) else whole[:0]).clone()
        return kept


class KeepPart(Pack):
    """Packed matrices and experts, of which a part is kept."""

    def convert(
        self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        (name, given), *_ = input_dict.items()
        if is_end(model, name):
            one = given[0] if isinstance(given, list) else given
            return {name: torch.nn.Parameter(one.cpu(), requires_grad=False)}
        done = super().convert(input_dict, model=model, **kwargs)
        keep, config = self.hf_quantizer.keep_part, self.hf_quantizer.quantization_config
        for name, whole in done.items():
            module, part = get_module_from_name(model, name)
            if part in parts_of(module):
                packed = f"{part}_{PACKED}"
                stored = getattr(module, packed).view(config.bnb_4bit_quant_storage)
                delattr(module, packed)
                module.register_parameter(packed, keep(stored, model, bnb_quantized=True))
            else:
                done[name] = keep(whole.data, model, **vars(whole))
        return done
