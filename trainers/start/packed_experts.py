"""Routed experts in 4 bits: what bitsandbytes does for linear layers, for the tensors in which
transformers keeps all experts of a layer.

Such a tensor is quantised (NF4) expert by expert as soon as its layer is read, so that neither the
host nor the card ever holds the model in 16 bits, and is kept as plain buffers. The module runs one
expert after the other by bitsandbytes' 4-bit product, whose backward pass writes the weights out
again and keeps nothing but the packed ones. In place of the tensor stands one number, seen at its
shape, by which transformers, PEFT and this package find it; corrections of it (LoRA) are applied to
the rows, and saved as PEFT saves those of a 16-bit base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from peft.tuners.lora import ParamWrapper
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.mxfp4 import Mxfp4Dequantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from advisor.ground.errors import InputError
from advisor.methods.model import NF4_BLOCK as BLOCK

METHOD = FORWARD = "nf4_with_experts"
PARTS = ("gate_up_proj", "up_proj", "down_proj")
PACKED, SCALES, OFFSETS, NESTED = "packed", "scales", "offsets", "scales_of_scales"


@register_quantization_config(METHOD)
class Nf4Config(BitsAndBytesConfig):
    """bitsandbytes' config, whose experts are packed, too. `stored`: how the files hold them."""

    def __init__(self, *, stored: str | None = None, **options: Any) -> None:
        super().__init__(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
        self.quant_method, self.stored = METHOD, stored


@register_quantizer(METHOD)
class Nf4Quantizer(Bnb4BitHfQuantizer):
    """Linear layers as bitsandbytes has them, experts packed."""

    serialized_names: ClassVar = {
        part: [f"{part}_blocks", f"{part}_scales"] for part in ("gate_up_proj", "down_proj")
    }

    def _process_model_before_weight_loading(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, *args, **kwargs)
        experts = [
            (name, one, part) for name, one in model.named_modules() for part in parts_of(one)
        ]
        for name, module, part in experts:
            check_width(f"{name}.{part}", getattr(module, part), module.is_transposed)
        if experts:
            model.set_experts_implementation(FORWARD)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        module, part = get_module_from_name(model, param_name)
        return part in parts_of(module) or super().param_needs_quantization(
            model, param_name, **kwargs
        )

    def get_quantize_ops(self) -> ConversionOps:
        return Pack(self)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        model = super()._dequantize(model, dtype=dtype)
        for module in filter(is_packed, model.modules()):
            for part in module.nf4_states:
                whole = written(module, part).to(dtype)
                setattr(module, part, torch.nn.Parameter(whole, requires_grad=False))
                for name in (PACKED, SCALES, OFFSETS, NESTED):
                    if hasattr(module, f"{part}_{name}"):
                        delattr(module, f"{part}_{name}")
            del module.nf4_states
        return model

    def get_weight_conversions(self) -> list[WeightConverter]:
        if self.quantization_config.stored != "mxfp4":
            return []
        return [
            WeightConverter(names, part, [WriteOut(self)])
            for part, names in self.serialized_names.items()
        ]


class WriteOut(Mxfp4Dequantize):
    """MXFP4 written out, one expert as it is asked for: the library's way needs ten times as much.
    What is quantised while loading is cast to the model's dtype when it is read; bytes up to 255
    stand that in each of them (bfloat16 has 8 bits before the point).
    """

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        values = {key: one[0] if isinstance(one, list) else one for key, one in input_dict.items()}
        return {kwargs["full_layer_name"]: self.matrices(values, **kwargs)}

    def matrices(self, values: dict[str, torch.Tensor], **kwargs: Any) -> Iterator[torch.Tensor]:
        for number in range(len(next(iter(values.values())))):
            of_one = {key: one[number, None].to(torch.uint8) for key, one in values.items()}
            (matrix,) = super().convert(of_one, **kwargs).values()
            yield matrix[0].detach()  # it is a parameter: a graph would keep it


class Pack(Bnb4bitQuantize):
    """A tensor of experts into the buffers of its module; all else as bitsandbytes does."""

    def convert(
        self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        done = {}
        for name, value in input_dict.items():
            module, part = get_module_from_name(model, name)
            if part in parts_of(module):
                matrices = value[0] if isinstance(value, list) else value
                config = self.hf_quantizer.quantization_config
                pack(module, part, matrices, nested=config.bnb_4bit_use_double_quant)
                done[name] = stand_in(module, part)
            else:
                done |= super().convert({name: value}, model=model, **kwargs)
        return done


def parts_of(module: torch.nn.Module) -> list[str]:
    """The names of the tensors of all experts, in a module that transformers lets us run."""
    if not hasattr(module, "is_concatenated"):  # set by its use_experts_implementation
        return []
    there = dict(module.named_parameters(recurse=False))
    return [part for part in PARTS if part in there]


def is_packed(module: torch.nn.Module) -> bool:
    return hasattr(module, "nf4_states")


def check_width(name: str, tensor: torch.Tensor, is_transposed: bool) -> None:
    """Raise InputError if rows of the matrices are no multiple of a block."""
    width = tensor.shape[1 if is_transposed else 2]
    if width % BLOCK:
        raise InputError(
            f"{name} cannot be kept in 4 bits: rows of {width} numbers are no multiple of {BLOCK}",
            where=name,
            hint="quantization: null trains this model on 16-bit weights",
        )


def stand_in(module: torch.nn.Module, part: str) -> torch.nn.Parameter:
    """One number on the device of the packed tensor, seen at the shape that it had."""
    whole = module.get_parameter(part)
    one = torch.zeros((), dtype=whole.dtype, device=module.get_buffer(f"{part}_{SCALES}").device)
    return torch.nn.Parameter(one.expand(whole.shape), requires_grad=False)


def pack(module: Any, part: str, matrices: Iterable[torch.Tensor], *, nested: bool) -> None:
    """Put the matrices of all experts into buffers of their module, one after the other.

    Args:
        matrices: (out, in) each, or (in, out) if the module is transposed.
        nested: Whether the scales are quantised, too.
    """
    kept: dict[str, list[torch.Tensor]] = {PACKED: [], SCALES: [], OFFSETS: [], NESTED: []}
    states: list[QuantState] = []
    for matrix in matrices:
        rows = (matrix.t() if module.is_transposed else matrix).contiguous()
        packed, state = quantize_4bit(
            rows, blocksize=BLOCK, compress_statistics=nested, quant_type="nf4"
        )
        kept[PACKED].append(packed.reshape(-1))
        kept[SCALES].append(state.absmax)
        if nested:
            kept[OFFSETS].append(state.offset)
            kept[NESTED].append(state.state2.absmax)
        states.append(state)
    for name, several in kept.items():
        if several:
            module.register_buffer(f"{part}_{name}", torch.stack(several))
    for number, state in enumerate(states):  # which keep no memory of their own then
        state.absmax = getattr(module, f"{part}_{SCALES}")[number]
        if nested:
            state.offset = getattr(module, f"{part}_{OFFSETS}")[number]
            state.state2.absmax = getattr(module, f"{part}_{NESTED}")[number]
            state.code, state.state2.code = states[0].code, states[0].state2.code
    if not is_packed(module):
        module.nf4_states, module.nf4_corrections = {}, {}
    module.nf4_states[part] = states


def written(module: Any, part: str) -> torch.Tensor:
    """The weights of all experts that the packed ones stand for, at their own shape."""
    packed = getattr(module, f"{part}_{PACKED}")
    matrices = [
        dequantize_4bit(packed[number].view(-1, 1), state)
        for number, state in enumerate(module.nf4_states[part])
    ]
    stacked = torch.stack(matrices)
    return stacked.transpose(1, 2).contiguous() if module.is_transposed else stacked


def run(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' layer, as transformers' own: the rows of each expert go through its matrices.

    Args:
        hidden_states: (tokens, width).
        top_k_index: (tokens, k), the experts of each token; `top_k_weights` weighs them.
    """
    if not is_packed(self):  # of a model whose other layers are packed
        return type(self).forward.__wrapped__(self, hidden_states, top_k_index, top_k_weights)
    tokens, chosen = top_k_index.shape
    experts = top_k_index.reshape(-1)
    order = torch.argsort(experts, stable=True)
    counts = torch.bincount(experts, minlength=self.num_experts).tolist()
    rows = hidden_states[order // chosen]
    done = []
    for expert, part in enumerate(rows.split(counts)):
        if len(part):
            inner = product(self, "gate_up_proj" if self.has_gate else "up_proj", expert, part)
            inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
            done.append(product(self, "down_proj", expert, inner))
    out = torch.cat(done)
    if self.has_post_expert_norm:
        out = self.post_expert_norm(out)
    weighted = out * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    summed = weighted[back].view(tokens, chosen, -1).sum(dim=1)
    return summed.to(hidden_states.dtype)


def product(module: Any, part: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """(rows, in) to (rows, out) by one matrix of one expert, with its bias and corrections."""
    state = module.nf4_states[part][expert]
    packed = getattr(module, f"{part}_{PACKED}")[expert]
    given = rows.to(state.dtype)
    out = bitsandbytes.matmul_4bit(given, packed, quant_state=state)
    if module.has_bias:
        out = out + getattr(module, f"{part}_bias")[expert]
    out = out.to(rows.dtype)
    for lowered, raised, scale in module.nf4_corrections.get(part, ()):
        inner = torch.nn.functional.linear(rows.to(lowered.dtype), lowered[expert])
        out = out + (torch.nn.functional.linear(inner, raised[expert]) * scale).to(out.dtype)
    return out


def corrections(wrapper: ParamWrapper) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """(experts, rank, in), (experts, out, rank) and the scale of each active LoRA of a tensor."""
    for name in wrapper.active_adapters:
        if name in wrapper.lora_A:
            lowered, raised = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
            count = wrapper.num_experts
            yield (
                lowered.view(count, -1, lowered.shape[1]),
                raised.view(raised.shape[0], -1, count).permute(2, 0, 1),
                wrapper.scaling[name],
            )


def correcting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's forward pass of a corrected tensor, which adds all corrections to all weights: on
    packed experts they act on the rows.
    """

    def corrected(self: ParamWrapper, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.get_base_layer()
        if not is_packed(base) or self.disable_adapters:
            return forward(self, x, *args, **kwargs)
        base.nf4_corrections[self.parameter_name] = tuple(corrections(self))
        try:
            return self.base_layer(x, *args, **kwargs)
        finally:
            del base.nf4_corrections[self.parameter_name]

    return corrected


ALL_EXPERTS_FUNCTIONS.register(FORWARD, run)
ParamWrapper.forward = correcting(ParamWrapper.forward)
