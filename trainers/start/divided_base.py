"""A 4-bit base of which each process of FSDP2 keeps its part as soon as a matrix is quantised.

Each process reads every matrix, quantises it on its device and keeps its own rows of the packed
result: at no time is there more than that part, one matrix and its packed form. Until the model is
divided, the parameter shows one memory that all of them share, at the right shape, so it must not
be computed with; FSDP2 splits a parameter by `torch.chunk`, which then gives it the part.
"""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes
import torch
from torch import distributed
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

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


@register_quantization_config(METHOD)
class DividedConfig(BitsAndBytesConfig):
    """bitsandbytes' config for NF4."""

    def __init__(self, **options: Any) -> None:
        super().__init__(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
        self.quant_method = METHOD


@register_quantizer(METHOD)
class DividedQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' own, which keeps a part of each matrix."""

    shown: torch.Tensor | None = None  # by all matrices in the place of their own numbers

    def get_quantize_ops(self) -> ConversionOps:
        return KeepPart(self)

    def show(self, like: torch.Tensor, model: Any) -> torch.Tensor:
        """Memory of the packed matrix's shape, which is the same for all."""
        if self.shown is None:
            sizes = (
                one.in_features * one.out_features
                for one in model.modules()
                if isinstance(one, bitsandbytes.nn.Linear4bit)
            )
            length = math.ceil(max(sizes) / 2 / like.element_size())
            self.shown = torch.zeros(length, dtype=like.dtype, device=like.device)
        return self.shown[: like.numel()].view(like.shape)


class KeepPart(Bnb4bitQuantize):
    """bitsandbytes' packed matrix, of which a part is kept."""

    def convert(
        self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        done = super().convert(input_dict, model=model, **kwargs)
        for name, whole in done.items():
            parts = torch.chunk(whole.data, distributed.get_world_size())
            mine = distributed.get_rank()
            empty = whole.data[:0]
            kept = Params4bit(self.hf_quantizer.show(whole.data, model), **vars(whole))
            kept.part = (parts[mine] if mine < len(parts) else empty).clone()
            done[name] = kept
        return done
