"""Time of one optimizer step: bytes, but for optimizers that multiply matrices."""

from __future__ import annotations

from advisor.estimate.memory.optimizer_states import entry_of, orthogonal_flop
from advisor.estimate.model.dims import Dims
from advisor.estimate.resolved_run import DTYPE_BYTES, resolve, trainable_params
from advisor.estimate.time.machine import CPU_BYTES_PER_S, Machine
from advisor.estimate.types import RunSpec
from advisor.methods import update

# Numbers that a step reads and writes for each weight. A fused kernel: weight, gradient and both
# moments are read, all but the gradient written. Over lists of tensors (torch.optim.adam,
# _multi_tensor_adam): decay 2, first moment 3, second 2 + 3, root 2, divided 2, epsilon 2, step 4.
FUSED, LISTS = 7, 20
CLIPPED = 3  # the gradient's norm, and its scaling: the default of transformers' Trainer and ours
# Bytes a weight that our AdamW over bfloat16 weights moves, by its operations (counted, not
# measured on a GPU): 15 in float32 that read and write, and the conversions.
CHUNK_TRAFFIC = 200
ON_HOST = 4 * (FUSED + CLIPPED)  # bytes
CPU_CHANNELS = 4  # a server's memory against a desktop's, for an optimizer on the host


def optimizer_s(spec: RunSpec, d: Dims, machine: Machine, sharding: str | None) -> float:
    """Weights, gradients and both moments are read, all but the gradients written; under Muon every
    device makes all matrices orthogonal.

    With no optimizer named it is a fused AdamW; of another framework PyTorch's usual one, which
    works over lists.
    """
    trainable = trainable_params(d, spec)
    width = DTYPE_BYTES.get(spec.weights_dtype, 2) if not update(spec.update).is_module else 4
    share = max(1, spec.gpus) if sharding in ("fsdp", "zero2", "zero3") else 1
    name = spec.optimizer or ("adamw_fused" if spec.framework is None else "adamw")
    entry = entry_of(name)
    moved: float = (FUSED if "fused" in name else LISTS) * width
    if entry.width is not None and entry.width < 2:  # weights, gradients and narrow moments
        moved = 3 * width + 4
    if entry.holds == "chunks":
        moved = CHUNK_TRAFFIC
    moved += CLIPPED * width
    if spec.fp32_master_weights:  # float32 beside 16 bit: read, written, and copied back
        moved += 10
    seconds = trainable * moved / share / machine.bytes_per_s
    if "cpu" in name or spec.offload_weights:
        # One kernel over float32 (deepspeed, csrc/adam/cpu_adam.cpp; FSDP offload: torch's own).
        on_host = trainable * ON_HOST / share / (CPU_BYTES_PER_S * CPU_CHANNELS)
        crossed = trainable * 2 * width / share / machine.host_bytes_per_s
        seconds = on_host + crossed
    if entry.keeps == "momentum of matrices":  # asked first: every candidate comes here
        seconds += orthogonal_flop(resolve(spec, d)) / machine.flops
    return seconds
