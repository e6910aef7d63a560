"""The layers of a run: what they keep, and what one of them holds while it runs backwards."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from advisor.estimate.blocks.layer import LayerMemory, layer_memory
from advisor.estimate.blocks.settings import ALL, BlockSettings
from advisor.estimate.methods import special
from advisor.estimate.model.layers import Attention, LayerKind
from advisor.estimate.run import Run
from advisor.estimate.targets import NAMED_SETS, correction_ends
from advisor.methods import update

LORA_RANK = int(update("lora").keys["rank"].default)


def block_key(run: Run) -> BlockSettings:
    """What of a run decides which tensors its layers save."""
    layers_with_module = special(run.update, "adapted")
    adapted = frozenset(layers_with_module(run)) if layers_with_module else frozenset()
    if adapted and run.target_modules in NAMED_SETS:
        adapted |= {ALL}
    # Modules on a 16-bit base train under autocast: so our trainers, where a spec is silent
    # (rules/base/precision.yaml), and transformers' Trainer with `bf16`, which recipes set.
    usual = run.trainer["accelerate"] if not run.is_ours else run.precision is None
    mixed = run.precision == "mixed" or (usual and run.is_module)
    wide = 4 if run.weight_bytes == 4 and run.hidden_bytes == 4 else 2
    # Rows of several lengths are padded, and the mask that says so is not left out: SDPA then takes
    # the memory-efficient kernel (transformers, integrations/sdpa_attention.py, use_gqa_in_sdpa).
    # On the CPU the bundled trainers need one too where rows are not laid end to end.
    padded = run.ragged > 0 or (run.device.is_cpu and run.is_ours and _needs_mask(run))
    masked = padded and (run.sequences > 1 or run.stage.update == "prefix")
    masked = masked and run.trainer["masks_padding"] and run.stage.attention == "sdpa"
    return BlockSettings(
        trains=not run.is_module,
        weight_bytes=wide,
        stream_bytes=run.hidden_bytes,
        norm_bytes=4 if run.prepared and run.hidden_bytes == 4 else wide,
        autocast=mixed,
        quantised=run.stage.quantization is not None,
        quantised_inputs_kept=run.stage.quantization == "nf4"
        and run.trainer["keeps_quantised_inputs"],
        adapted=adapted,
        rank=(run.rank or LORA_RANK) if adapted else 0,
        adapter_bytes=run.train_bytes,
        dropout=bool(adapted)
        and bool(run.options.get("dropout", run.trainer["drops_adapter_inputs"])),
        casts_adapter_inputs=run.casts,
        shared_adapter_inputs=run.trainer["fused_adapters"],
        scores=run.eager,
        seq_len=run.longest_tokens
        if masked or run.eager or any(_whole_scores(kind) for kind in run.dims.kinds)
        else 0,
        masked=masked,
        apart=run.device.is_cpu and run.rows.unpadded and (run.sequences > 1 or run.stage.packing),
        repeats_keys=run.trainer["repeats_keys"],
        flash=run.stage.attention == "flash_attention_2",
        fused_norms=run.fused_norms or run.stage.compile,
        fused_mlp=run.fused_mlp,
        compiled=run.stage.compile,
        gpu=not run.device.is_cpu,
        wide_list=not run.device.is_cpu,
        corrected_experts=correction_ends(run) > 0,
        scan_kernels=not run.is_ours or run.stage.kernels == "hub",
        own_blocks=run.trainer["plain_blocks"],
        model_dropout=not (run.trainer["plain_blocks"] and run.trainer.is_known),
        looped_experts=run.trainer["linear_experts"],
    )


def _needs_mask(run: Run) -> bool:
    """Whether rows that the CPU trains on are padded, or have a prefix before them, so that queries
    and keys differ in number (transformers, masking_utils.py, _ignore_causal_mask_sdpa).
    """
    return run.stage.update == "prefix" or (len(run.rows.lengths) > 1 and not run.rows.unpadded)


def _whole_scores(kind: LayerKind) -> bool:
    return any(isinstance(one, Attention) and (one.capped or one.sinks) for one in kind.mixers)


@lru_cache(maxsize=4)
def layers_of(run: Run) -> list[tuple[LayerKind, LayerMemory]]:
    """Each kind of layer with what it holds, in bytes per token."""
    key, dims = block_key(run), run.dims
    return [(kind, layer_memory(kind, dims.hidden, dims.family, key)) for kind in dims.kinds]


def parts_of(run: Run) -> list[LayerMemory]:
    """Attention and MLP of each kind alone, where each is checkpointed for itself."""
    settings = block_key(run)
    return [
        layer_memory(part, run.dims.hidden, run.dims.family, settings)
        for kind in run.dims.kinds
        for part in (replace(kind, dense=None, experts=None), replace(kind, mixers=()))
    ]
