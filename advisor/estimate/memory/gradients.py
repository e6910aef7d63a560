"""Gradients as they come, wait and are divided over devices, and the buffers that carry them."""

from __future__ import annotations

from advisor.estimate import sources as src
from advisor.estimate.run import CPU_OPTIMIZERS, Run
from advisor.estimate.types import Term, per_device, term_of


def first_gradients(run: Run, *, layers: int) -> list[Term]:
    """Gradients that exist while activations still stand: of the output matrix, then of the last
    layers; whole, before any division.
    """
    d, grads, name = run.dims, run.shard_grads, "first gradients"
    if run.embeddings:
        size: float = d.head_params * run.embedding_bytes
        if grads > 1 and run.stage.grad_accum > 1 and run.optimizer not in CPU_OPTIMIZERS:
            # Beside the gradients of earlier micro-batches, what dividing it does not leave here.
            size *= 1 - 1 / grads
        return [term_of(name, size, "of the trained output matrix, made first", src.COUNT)]
    if run.flat_adapters and layers:
        because = f"of {layers} layers whole, frozen weights too, before they are divided"
        return [term_of(name, layers * d.layer_params * run.weight_bytes, because, src.FSDP)]
    if run.is_module:
        return []
    head = 0 if d.encoder or run.objective.scores else d.head_params
    if run.trainer["shards_ends"] and run.is_fsdp:
        head = 0 if layers else head
    elif run.sharding in ("fsdp", "zero3"):
        # Embeddings and output stand together until their gradient is divided.
        head = max(head, d.embedding_params)
    at_once = min(1, layers) if run.optimizer_in_backward else layers
    count = head + at_once * d.layer_params
    divided = run.sharding in ("fsdp", "zero3", "zero2")
    if divided:
        size = min(2 * count, run.trainable * run.train_bytes * (1 - 1 / grads))
    else:
        size = min(count, run.trainable) * run.train_bytes
    if layers and run.fully_sharded:
        size += 2 * _picked_experts(run)
        if run.offloaded:  # this device's part, on its way to the host
            size += 2 * d.layer_params / grads
    because = (
        f"of the output matrix{f' and {layers} layers' if layers else ''},"
        f" {'before they are divided' if divided else 'made first'}"
    )
    return [term_of(name, size, because, src.FSDP if divided else src.COUNT)]


def _picked_experts(run: Run) -> int:
    """Numbers of the largest tensor of one layer's experts, gate and up, if each expert is picked
    from it by its place: autograd makes a gradient of the whole tensor for each expert
    (select_backward), beside the sum so far.
    """
    if not run.trainer["picks_experts"]:
        return 0
    experts = (kind.experts for kind in run.dims.kinds)
    return max((one.weights * 2 // 3 for one in experts if one and one.biased), default=0)


def gradients(run: Run) -> list[Term]:
    """Gradients of what trains, as they are before the optimizer's step."""
    name, share, layers = "gradients", run.shard_grads, run.dims.layers
    if run.optimizer_in_backward:
        one = run.trainable // layers if run.is_module else run.dims.layer_params
        because = "one layer at a time: the step runs inside the backward pass"
        return [term_of(name, one * run.train_bytes, because, src.COUNT)]
    on_host = run.sharding in ("zero2", "zero3") and run.optimizer in CPU_OPTIMIZERS
    if run.offloaded or (on_host and not run.trainer["keeps_gradient_shard"]):
        return [term_of(name, 0, "moved to host memory layer by layer", src.FSDP)]
    words = " + ".join(f"{count:,} trainable parameters x {wide} B" for count, wide in run.trained)
    size = run.trained_bytes / share
    return [term_of(name, size, f"{words}{per_device(share)}", src.COUNT)]


def earlier_gradients(run: Run) -> list[Term]:
    """Gradients of earlier micro-batches, which stay while the next ones are computed.

    Under FSDP most trainers divide gradients at the last micro-batch alone: until then every device
    holds them whole, in the dtype of the computation, also if weights live in host memory.
    """
    accumulates = run.stage.grad_accum > 1
    if not accumulates and (run.is_module or not run.trainer["accumulates"]):
        return []
    if not run.is_fsdp or not run.adds_up_whole or not accumulates:
        return gradients(run)
    if run.flat_adapters:
        count, wide = run.dims.layers * run.dims.layer_params, run.weight_bytes
        because = f"{count:,} of all layers x {wide} B, frozen weights too: one flat parameter each"
    else:
        count = run.trainable + run.embeddings
        pure = run.weight_bytes if run.precision != "mixed" else 2
        wide = run.train_bytes if run.is_module else pure
        because = f"{count:,} x {wide} B whole on every device: divided after the last micro-batch"
    return [term_of("gradients of earlier micro-batches", count * wide, because, src.NO_SYNC)]


def communication_buckets(run: Run) -> list[Term]:
    """Buffers of the library that adds gradients up over devices."""
    name = "communication buckets"
    if run.sharding == "ddp":
        size = min(25 * 2**20, run.trained_bytes)
        return [term_of(name, size, "DDP reduces in buckets of 25 MiB", src.COUNT)]
    if run.sharding not in ("zero2", "zero3") or run.is_module:
        return []
    bucket, which, copies = run.trainer["zero2_bucket"], "reduce and all-gather", 2
    if run.sharding == "zero3":
        which = "reduce, its copy by device, and what a second stream still reads"
        bucket, copies = run.trainer["zero3_bucket"], 3
    # transformers' "auto" sets them to the square of the hidden size.
    elements = min(run.dims.hidden**2 if isinstance(bucket, str) else bucket, run.trainable)
    because = f"{which}, {elements:,} elements each"
    return [term_of(name, elements * 2 * copies, because, src.DEEPSPEED)]
