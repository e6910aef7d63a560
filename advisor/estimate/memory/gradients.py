"""Gradients as they come, wait and are divided over devices, and the buffers that carry them."""

from __future__ import annotations

from advisor.estimate import sources as src
from advisor.estimate.resolved_run import CPU_OPTIMIZERS, ResolvedRun, per_device, term_of
from advisor.estimate.types import Term
from advisor.methods import objective


def first_gradients(s: ResolvedRun, *, layers: int) -> list[Term]:
    """Gradients that exist while activations still stand: of the output matrix, then of the last
    layers; whole, before any division.
    """
    d, spec = s.dims, s.spec
    if s.embeddings:
        # Beside the gradients of earlier micro-batches, what dividing it does not leave here.
        rest = (
            1 - 1 / s.shard_grads
            if s.shard_grads > 1 and spec.grad_accum > 1 and s.optimizer not in CPU_OPTIMIZERS
            else 1
        )
        return [
            term_of(
                "first gradients",
                d.head_params * s.embedding_bytes * rest,
                "of the trained output matrix, made first",
                src.COUNT,
            )
        ]
    if s.flat_adapters and layers:
        return [
            term_of(
                "first gradients",
                layers * d.layer_params * s.weight_bytes,
                f"of {layers} layers whole, frozen weights too, before they are divided",
                src.FSDP,
            )
        ]
    if s.is_module:
        return []
    head = 0 if d.encoder or objective(spec.objective).scores else d.head_params
    if s.stack.shards_ends and s.sharding == "fsdp":
        head = 0 if layers else head
    elif s.sharding in ("fsdp", "zero3"):
        # Embeddings and output stand together until their gradient is divided.
        head = max(head, d.embedding_params)
    count = head + (min(1, layers) if spec.optimizer_in_backward else layers) * d.layer_params
    divided = s.sharding in ("fsdp", "zero3", "zero2")
    size = (
        min(2 * count, s.trainable * s.train_bytes * (1 - 1 / s.shard_grads))
        if divided
        else min(count, s.trainable) * s.train_bytes
    )
    if layers and s.fully_sharded:
        size += 2 * s.picked_experts
        if s.offloaded:  # this device's part, on its way to the host
            size += 2 * d.layer_params / s.shard_grads
    because = (
        f"of the output matrix{f' and {layers} layers' if layers else ''},"
        f" {'before they are divided' if divided else 'made first'}"
    )
    return [term_of("first gradients", size, because, src.FSDP if divided else src.COUNT)]


def gradients(s: ResolvedRun) -> list[Term]:
    """Gradients of what trains, as they are before the optimizer's step."""
    if s.spec.optimizer_in_backward:
        one = (
            s.dims.layer_params if not s.is_module else s.trainable // s.dims.layers
        ) * s.train_bytes
        return [
            term_of(
                "gradients",
                one,
                "one layer at a time: the step runs inside the backward pass",
                src.COUNT,
            )
        ]
    on_host = s.sharding in ("zero2", "zero3") and s.optimizer in CPU_OPTIMIZERS
    if s.offloaded or (on_host and not s.stack.keeps_gradient_shard):
        return [term_of("gradients", 0, "moved to host memory layer by layer", src.FSDP)]
    share = s.shard_grads
    return [
        term_of(
            "gradients", s.trained_bytes / share, f"{s.trained_words}{per_device(share)}", src.COUNT
        )
    ]


def earlier_gradients(s: ResolvedRun) -> list[Term]:
    """Gradients of earlier micro-batches, which stay while the next ones are computed.

    Under FSDP most trainers divide gradients at the last micro-batch alone: until then every device
    holds them whole, in the dtype of the computation, also where weights live in host memory.
    """
    spec = s.spec
    if spec.grad_accum < 2 and not (s.stack.accumulates and not s.is_module):
        return []
    if s.sharding != "fsdp" or not s.adds_up_whole or spec.grad_accum < 2:
        return gradients(s)
    if s.flat_adapters:
        count, wide = s.dims.layers * s.dims.layer_params, s.weight_bytes
        because = f"{count:,} of all layers x {wide} B, frozen weights too: one flat parameter each"
    else:
        count = s.trainable + s.embeddings
        pure = s.weight_bytes if spec.precision != "mixed" else 2
        wide = s.train_bytes if s.is_module else pure
        because = f"{count:,} x {wide} B whole on every device: divided after the last micro-batch"
    return [term_of("gradients of earlier micro-batches", count * wide, because, src.NO_SYNC)]


def communication_buckets(s: ResolvedRun) -> list[Term]:
    """Buffers of the library that adds gradients up over devices."""
    if s.sharding in ("zero2", "zero3") and not s.is_module:
        overlapped = s.sharding == "zero3"
        # transformers' "auto" sets them to the square of the hidden size.
        bucket = s.stack.zero3_bucket if overlapped else s.stack.zero2_bucket
        elements = min(s.dims.hidden**2 if isinstance(bucket, str) else bucket, s.trainable)
        which = (
            "reduce, its copy by device, and what a second stream still reads"
            if overlapped
            else "reduce and all-gather"
        )
        because = f"{which}, {elements:,} elements each"
        return [
            term_of(
                "communication buckets",
                elements * 2 * (3 if overlapped else 2),
                because,
                src.DEEPSPEED,
            )
        ]
    if s.sharding == "ddp":
        return [
            term_of(
                "communication buckets",
                min(25 * 2**20, s.trained_bytes),
                "DDP reduces in buckets of 25 MiB",
                src.COUNT,
            )
        ]
    return []
