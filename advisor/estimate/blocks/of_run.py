"""The layers of a run: what they keep, and what one of them holds while it runs backwards."""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate.blocks.layer import LayerMemory, layer_memory
from advisor.estimate.blocks.settings import ALL, BlockSettings
from advisor.estimate.methods import special
from advisor.estimate.model.dims import NAMED_SETS, corrects_experts
from advisor.estimate.model.layers import Attention, LayerKind
from advisor.estimate.resolved_run import ResolvedRun
from advisor.methods import update

LORA_RANK = int(update("lora").keys["rank"].default)


def settings_of(s: ResolvedRun) -> BlockSettings:
    """What of a run decides which tensors its layers save."""
    spec, stack = s.spec, s.stack
    how = update(spec.update)
    layers_with_module = special(how, "adapted")
    adapted = frozenset(layers_with_module(s.dims, spec)) if layers_with_module else frozenset()
    if adapted and spec.target_modules in NAMED_SETS:
        adapted |= {ALL}
    # Modules on a 16-bit base train under autocast: so our trainers, where a spec is silent
    # (rules/base/precision.yaml), and transformers' Trainer with `bf16`, which recipes set.
    usual = stack.accelerate if stack.name else spec.precision is None
    mixed = spec.precision == "mixed" or (usual and s.is_module)
    wide = 4 if s.weight_bytes == 4 and s.hidden_bytes == 4 else 2
    # Rows of several lengths are padded, and the mask that says so is not left out: SDPA then takes
    # the memory-efficient kernel (transformers, integrations/sdpa_attention.py, use_gqa_in_sdpa).
    # On the CPU the bundled trainers need one too where rows are not laid end to end.
    padded = s.ragged > 0 or (s.cpu and not stack.name and _needs_mask(s))
    masked = padded and (s.rows > 1 or spec.update == "prefix")
    masked = masked and stack.masks_padding and spec.attention == "sdpa"
    return BlockSettings(
        trains=not s.is_module,
        weight_bytes=wide,
        stream_bytes=s.hidden_bytes,
        norm_bytes=4 if s.prepared and s.hidden_bytes == 4 else wide,
        autocast=mixed,
        quantised=spec.quantization is not None,
        quantised_inputs_kept=spec.quantization == "nf4" and stack.keeps_quantised_inputs,
        adapted=adapted,
        rank=(spec.rank or LORA_RANK) if adapted else 0,
        adapter_bytes=s.train_bytes,
        dropout=bool(adapted) and bool(spec.options.get("dropout", stack.drops_adapter_inputs)),
        casts_adapter_inputs=s.casts,
        shared_adapter_inputs=stack.fused_adapters,
        scores=s.eager,
        seq_len=spec.longest_tokens
        if masked or s.eager or any(_whole_scores(kind) for kind in s.dims.kinds)
        else 0,
        masked=masked,
        apart=s.cpu and spec.unpadded and (s.rows > 1 or spec.packing),
        repeats_keys=stack.repeats_keys,
        flash=spec.attention == "flash_attention_2",
        fused_norms=s.fused_norms or spec.compile,
        fused_mlp=s.fused_mlp,
        compiled=spec.compile,
        gpu=not s.cpu,
        wide_list=not s.cpu,
        corrected_experts=corrects_experts(s.dims, spec),
        scan_kernels=bool(stack.name) or spec.kernels == "hub",
        own_blocks=stack.plain_blocks,
        model_dropout=not (stack.plain_blocks and stack.is_known),
        looped_experts=stack.linear_experts,
    )


def _needs_mask(s: ResolvedRun) -> bool:
    """Whether rows that the CPU trains on are padded, or have a prefix before them, so that queries
    and keys differ in number (transformers, masking_utils.py, _ignore_causal_mask_sdpa).
    """
    spec = s.spec
    return spec.update == "prefix" or (len(spec.lengths) > 1 and not spec.unpadded)


def _whole_scores(kind: LayerKind) -> bool:
    return any(isinstance(one, Attention) and (one.capped or one.sinks) for one in kind.mixers)


# The run that was asked about last, with its layers: one estimate asks three times, and a run
# cannot be hashed.
_LATEST: list[tuple[ResolvedRun, list[tuple[LayerKind, LayerMemory]]]] = []


def layers_of(s: ResolvedRun) -> list[tuple[LayerKind, LayerMemory]]:
    """Each kind of layer with what it holds, in bytes per token."""
    for run, layers in _LATEST:
        if run is s:
            return layers
    settings = settings_of(s)
    layers = [
        (kind, layer_memory(kind, s.dims.hidden, s.dims.family, settings)) for kind in s.dims.kinds
    ]
    _LATEST[:] = [(s, layers)]
    return layers


def parts_of(s: ResolvedRun) -> list[LayerMemory]:
    """Attention and MLP of each kind alone, where each is checkpointed for itself."""
    settings = settings_of(s)
    return [
        layer_memory(part, s.dims.hidden, s.dims.family, settings)
        for kind in s.dims.kinds
        for part in (replace(kind, dense=None, experts=None), replace(kind, mixers=()))
    ]
