"""What moves between devices, and between a device and host memory."""

from __future__ import annotations

from advisor.estimate.frameworks import framework_of
from advisor.estimate.model.dims import Dims
from advisor.estimate.resolved_run import trainable_params
from advisor.estimate.time.machine import Machine
from advisor.estimate.types import RunSpec
from advisor.methods import update

NF4_BYTES = 0.55  # of a weight with its scales
HIDDEN = 0.5  # of the shorter of work and gathering, what runs behind the longer
# Of a trained weight in 16 bit: itself, its gradient, two moments; DeepSpeed's optimizers keep
# float32 weights and moments beside (deepspeed/runtime/zero/stage3.py, bf16_optimizer.py).
ADAM_BYTES, DEEPSPEED_BYTES = 8, 16


def sharding_of(spec: RunSpec, d: Dims, machine: Machine) -> str | None:
    """How the work is shared: as stated, else over all devices if a whole copy does not fit one."""
    if spec.gpus < 2:
        return None
    if spec.sharding is not None or machine.memory_bytes is None:
        return spec.sharding
    is_deepspeed = "deepspeed" in (spec.framework or "").lower()
    width = DEEPSPEED_BYTES if is_deepspeed else ADAM_BYTES
    if update(spec.update).is_module:
        width = 2
    if spec.quantization is not None or d.params * width <= machine.memory_bytes:
        return None
    return "zero3" if is_deepspeed else "fsdp"


def gather_s(
    spec: RunSpec, d: Dims, machine: Machine, sharding: str | None, *, passes: int
) -> float:
    """Time per micro-batch to gather sharded weights for every pass over them, and to bring those
    of host memory.
    """
    if spec.gpus < 2 or sharding not in ("fsdp", "zero3"):
        return 0.0
    size = weight_bytes(spec, d, routed=d.routed_params, width=2)
    moved = machine.link_s(passes * size * (spec.gpus - 1) / spec.gpus, spec.gpus)
    if not update(spec.update).is_module:  # gradients are scattered, half behind the backward pass
        moved += 0.5 * machine.link_s(2 * d.params * (spec.gpus - 1) / spec.gpus, spec.gpus)
    if spec.offload_weights:
        moved += passes * size / spec.gpus / machine.host_bytes_per_s
    return moved


def offloaded_s(spec: RunSpec, d: Dims, machine: Machine, tokens: float) -> float:
    """Time per micro-batch to bring each layer's kept input to host memory and back."""
    if spec.gradient_checkpointing != "offload":
        return 0.0
    return 2 * tokens * d.layers * d.hidden * 2 / machine.host_bytes_per_s


def reduce_s(spec: RunSpec, d: Dims, machine: Machine, sharding: str | None) -> float:
    """Time per optimizer step to add up gradients; half of it hides behind the backward pass."""
    if spec.gpus < 2 or (sharding in ("fsdp", "zero3") and not update(spec.update).is_module):
        return 0.0
    size = trainable_params(d, spec) * 2
    return 0.5 * machine.link_s(2 * size * (spec.gpus - 1) / spec.gpus, spec.gpus)


def weight_bytes(spec: RunSpec, d: Dims, *, routed: float, width: int) -> float:
    """Bytes of the weights with so many parameters of routed experts, which a 4-bit base leaves in
    16 bit unless the stack has them as linear layers.
    """
    if spec.quantization != "nf4":
        return (d.params - d.routed_params + routed) * width
    of_experts = NF4_BYTES if framework_of(spec).linear_experts else width
    return (d.params - d.routed_params) * NF4_BYTES + routed * of_experts
