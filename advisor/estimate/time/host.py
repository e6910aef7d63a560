"""Time of the host: starting kernels, and gathering shards in Python."""

from __future__ import annotations

from advisor.estimate.methods import special
from advisor.estimate.run import Run
from advisor.estimate.time.machine import Machine

LAUNCH_S = 8e-6  # of one kernel of an eager loop, with its Python
# Kernels of a layer's forward pass in transformers' code: two norms of 8 each, 7 products, rotary
# embedding 12, attention 4, gate 2, sums 2; a plain one has norms of 1, 4 products, no rotary. With
# fused layers norms, rotary and gate are one each.
EAGER_KERNELS, FUSED_KERNELS, PLAIN_KERNELS = 43, 18, 14
ADAPTER_KERNELS = 11  # casts, dropout, two products, scale and sum, and PEFT's Python
COMPILED_SHARE = 0.4
# An expert in a loop: its tokens found (the host waits for them), gathered, three products, gate,
# weighed and added (transformers, integrations/moe.py and the blocks of release 4).
EXPERT_KERNELS, EXPERT_LINEARS = 14, 3
DEQUANTISE_KERNELS = 4  # absmax of blocks, its offset, weights, and bitsandbytes' Python
GROUPED_KERNELS = 16  # all experts of a layer in grouped products: sort, gather, products, sum
# DeepSpeed's hooks fetch and release the parameters of each module of ZeRO-3 in Python: QwenLM/Qwen
# README at 512 tokens, whose steps no arithmetic fills, with 7 modules a layer: 2 ms a layer and
# pass. FSDP does it for each layer and its tensors: 1 ms for a layer of 9 and their adapters is
# assumed.
ZERO3_MODULE_S, FSDP_TENSOR_S = 0.28e-3, 0.045e-3
# ZeRO-2 copies each tensor's gradient by a hook of its own in the backward pass: the same README,
# full fine-tuning of 1.8B at 512 tokens, 24 layers of 8 tensors: 0.26 s a micro-batch.
ZERO2_TENSOR_S = 0.9e-3
LAYER_MODULES, PLAIN_MODULES = 9, 6  # that hold parameters: products and norms


def forward_launches_s(run: Run, machine: Machine, *, rows: float = 4096.0) -> float:
    """Time to start all kernels of one forward pass over so many tokens."""
    d = run.dims
    layers_with_module = special(run.update, "adapted")
    adapted = len(layers_with_module(run)) if layers_with_module else 0
    is_fused = run.stage.kernels not in ("none", "auto") or run.trainer["fused_norms"]
    kernels = PLAIN_KERNELS if not d.gated else FUSED_KERNELS if is_fused else EAGER_KERNELS
    narrow = 1 + bool(run.stage.quantization)
    a_layer = kernels + ADAPTER_KERNELS * adapted * narrow
    total = d.layers * a_layer
    if d.experts > 1 and (layers := d.routed_layers):
        if loops_over_experts(run):
            chosen = d.experts * (1 - (1 - d.used_experts / d.experts) ** max(1.0, rows))
            each = EXPERT_KERNELS
            if run.stage.quantization and run.trainer["linear_experts"]:
                each += EXPERT_LINEARS * DEQUANTISE_KERNELS
            total += layers * chosen * each
        else:
            total += layers * GROUPED_KERNELS
    return total * LAUNCH_S * machine.launch_share


def loops_over_experts(run: Run) -> bool:
    """Whether experts are called one after the other: so in transformers 4, whose experts are
    linear layers; 5 has grouped products, and so have stacks made for pretraining.
    """
    return run.trainer["linear_experts"] and not run.is_ours and run.trainer["accelerate"]


def sharding_s(run: Run, sharding: str | None, *, passes: int) -> float:
    """Time of the host for a micro-batch to fetch and release shards, in `passes` over the layers
    (forward, again, backward). Experts that are linear layers are modules and tensors of their own:
    an example is ms-swift's Qwen3-30B-A3B under ZeRO-3, 9.5 times slower than Megatron.
    """
    d = run.dims
    if sharding == "zero2" and not run.is_module:
        return d.layers * (LAYER_MODULES if d.gated else PLAIN_MODULES) * ZERO2_TENSOR_S
    if sharding not in ("zero3", "fsdp"):
        return 0.0
    modules = d.layers * (LAYER_MODULES if d.gated else PLAIN_MODULES)
    experts = 0
    if d.experts > 1 and loops_over_experts(run):
        experts = d.routed_layers * d.experts * EXPERT_LINEARS
    if sharding == "zero3":
        return passes * (modules + experts) * ZERO3_MODULE_S
    adapted = 1 + 2 * run.is_module  # a module's two matrices beside each weight
    return passes * (modules + experts) * adapted * FSDP_TENSOR_S
