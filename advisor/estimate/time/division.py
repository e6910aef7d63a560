"""What several devices add to a step: weights gathered and laid out, gradients added up, rows sent
to experts, and the host's work for it. Loaded where a run is divided.
"""

from __future__ import annotations

from advisor.estimate.run import Run
from advisor.estimate.time.machine import EXPERT_LINEARS, Machine, loops_over_experts, weight_bytes

FULLY_SHARD = 2  # version of FSDP
# Of a trained weight in 16 bit: itself, its gradient, two moments; DeepSpeed's optimizers keep
# float32 weights and moments beside (deepspeed/runtime/zero/stage3.py, bf16_optimizer.py).
ADAM_BYTES, DEEPSPEED_BYTES = 8, 16
# DeepSpeed's hooks fetch and release the parameters of each module of ZeRO-3 in Python: QwenLM/Qwen
# README at 512 tokens, whose steps no arithmetic fills, with 7 modules a layer: 2 ms a layer and
# pass. FSDP does it for each layer and its tensors: 1 ms for a layer of 9 and their adapters is
# assumed.
ZERO3_MODULE_S, FSDP_TENSOR_S = 0.28e-3, 0.045e-3
# ZeRO-2 copies each tensor's gradient by a hook of its own in the backward pass: the same README,
# full fine-tuning of 1.8B at 512 tokens, 24 layers of 8 tensors: 0.26 s a micro-batch.
ZERO2_TENSOR_S = 0.9e-3
LAYER_MODULES, PLAIN_MODULES = 9, 6  # that hold parameters: products and norms


def divide(
    run: Run, machine: Machine, passes: int, tokens: float
) -> tuple[str | None, float, float, float, float]:
    """How the work is shared, and of a micro-batch of so many tokens: bytes laid out, seconds of
    the host, and seconds to gather; of an optimizer step seconds to add up gradients.
    """
    sharding = sharding_of(run, machine)
    return (
        sharding,
        copied_bytes(run, sharding, passes),
        sharding_s(run, sharding or run.device.sharding, passes=passes),
        gather_s(run, machine, sharding, passes, tokens),
        reduce_s(run, machine, sharding),
    )


def sharding_of(run: Run, machine: Machine) -> str | None:
    """How the work is shared: as stated, else over all devices if a whole copy does not fit one."""
    d = run.dims
    if run.gpus < 2:
        return None
    if run.device.sharding is not None or machine.memory_bytes is None:
        return run.device.sharding
    is_deepspeed = "deepspeed" in run.trainer.name.lower()
    width = DEEPSPEED_BYTES if is_deepspeed else ADAM_BYTES
    if run.is_module:
        width = 2
    if run.stage.quantization is not None or d.params * width <= machine.memory_bytes:
        return None
    return "zero3" if is_deepspeed else "fsdp"


def gather_s(run: Run, machine: Machine, sharding: str | None, passes: int, rows: float) -> float:
    """Time per micro-batch to gather sharded weights for every pass over them, to bring those of
    host memory, and to send so many tokens to their experts.
    """
    d = run.dims
    if run.gpus < 2 or sharding not in ("fsdp", "zero3"):
        return 0.0
    own = d.routed_params * run.shards_experts
    size = weight_bytes(run, routed=d.routed_params - own, width=2)
    if not run.is_module:  # gradients are scattered, half behind the backward pass
        size += (d.params - own) / passes
    gathered = passes * size * (run.gpus - 1) / run.gpus
    moved = machine.link_s(gathered, run.gpus) / machine.gathers
    if own:
        devices = (run.gpus - 1) * (1 - (1 - 1 / run.gpus) ** d.used_experts)
        sent = 2 * rows * d.routed_layers * devices * d.hidden * 2
        moved += machine.link_s((passes + 1) * sent, run.gpus)
    if run.device.offloads:
        moved += passes * size / run.gpus / machine.host_bytes_per_s
    return moved


def copied_bytes(run: Run, sharding: str | None, passes: int) -> float:
    """Bytes per micro-batch that FSDP 2 moves on each device to lay out what it gathers as whole
    tensors, in every pass over the layers, and whole gradients as what it scatters; between the
    products, not beside them (torch, _fsdp_collectives.py, foreach_all_gather_copy_out and
    foreach_reduce). Flat parameters of FSDP 1 are gathered in place.
    """
    d = run.dims
    if sharding != "fsdp" or run.gpus < 2 or run.trainer["fsdp"] != FULLY_SHARD:
        return 0.0
    own = d.routed_params * run.shards_experts
    trained = 0 if run.is_module else d.params - own
    size = weight_bytes(run, routed=d.routed_params - own, width=2)
    return 2 * (passes * size + 2 * trained)


def reduce_s(run: Run, machine: Machine, sharding: str | None) -> float:
    """Time per optimizer step to add up gradients; half of it hides behind the backward pass."""
    if run.gpus < 2 or (sharding in ("fsdp", "zero3") and not run.is_module):
        return 0.0
    size = run.trainable * 2
    return 0.5 * machine.link_s(2 * size * (run.gpus - 1) / run.gpus, run.gpus)


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
    is_looped = d.experts > 1 and loops_over_experts(run)
    experts = d.routed_layers * d.experts * EXPERT_LINEARS if is_looped else 0
    if sharding == "zero3":
        return passes * (modules + experts) * ZERO3_MODULE_S
    adapted = 1 + 2 * run.is_module  # a module's two matrices beside each weight
    return passes * (modules + experts) * adapted * FSDP_TENSOR_S
