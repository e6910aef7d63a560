"""Memory held throughout a run: weights, adapters, further roles, optimizer state, and what an
optimizer step adds.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from advisor.estimate import sources as src
from advisor.estimate.memory.optimizer_states import (
    entry_of,
    largest_weight,
    state_size,
    state_words,
)
from advisor.estimate.methods import special
from advisor.estimate.run import CPU_OPTIMIZERS, Run
from advisor.estimate.types import LEFT_EXPERTS, HostMoment, Term, per_device, term_of
from advisor.ground.types import FSDP
from advisor.ground.units import GIB

# nf4: half a byte, and a float32 scale per 64 weights; double quantization stores the scales in 8
# bits with one more per 256.
CONSTANTS, UNQUANTISED = "quantisation constants", "weights left unquantised"
NF4_CONSTANT_BYTES = 4 / 64
NF4_DOUBLE_CONSTANT_BYTES = 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0
DEEPSPEED_SUB_GROUP = 1_000_000_000  # sub_group_size of its configuration
# Our own AdamW over bfloat16 weights: how many weights it moves at once, and the float32 numbers
# that stand beside each meanwhile (trainers/step/own_optimizers.py, CHUNK).
CHUNK_ELEMENTS, CHUNK_BYTES = 2**22, 40
# Optimizers that go tensor by tensor hold up to three float32 copies of one: the update, the
# factors of its singular values or the steps towards an orthogonal matrix.
ONE_WEIGHT_BYTES = 12


def weights(run: Run) -> list[Term]:
    """The model's weights with quantisation constants, and added ones: this device's share."""
    terms = [*_base_weights(run), *_added_weights(run)]
    if not run.offloaded:
        return terms
    return [replace(one, size_bytes=0, because=f"in host memory: {one.because}") for one in terms]


def _base_weights(run: Run) -> Iterator[Term]:
    d, stage, share = run.dims, run.stage, run.sharing("weights")
    each = per_device(share)
    if stage.quantization not in ("nf4", "int8"):
        held, wide = d.params, run.weight_bytes
        yield term_of("weights", held * wide / share, f"{held:,} x {wide} B{each}", src.COUNT)
        return
    outside = 4 if run.prepared or run.device.is_cpu else run.weight_bytes
    per_weight = 0.5 if stage.quantization == "nf4" else INT8_BYTES
    head = d.head_params if run.quantised_head else 0
    linear, left = run.quantisable + head, run.left_experts
    because = f"{linear:,} linear weights x {per_weight:g} B{each}"
    yield term_of("weights", linear * per_weight / share, because, src.QLORA)
    if stage.quantization == "nf4":
        is_double = stage.double_quantization is not False
        constant = NF4_DOUBLE_CONSTANT_BYTES if is_double else NF4_CONSTANT_BYTES
        because = f"a scale per 64 weights, {'8-bit' if is_double else 'float32'}"
        # FSDP divides parameters, and bitsandbytes keeps the scales beside them.
        parts = 1 if run.is_ours else share
        yield term_of(CONSTANTS, linear * constant / parts, because, src.QLORA)
    rest = d.embedding_params + d.other_params - head
    because = f"{rest:,} of embeddings, output and norms x {outside} B{each}"
    yield term_of(UNQUANTISED, rest * outside / share, because, src.QLORA)
    if left:
        because = (
            f"{left:,} of routed experts and routers x {outside} B{each}: bitsandbytes quantises"
            " linear layers alone"
        )
        yield term_of(LEFT_EXPERTS, left * outside / share, because, src.EXPERTS)


def base_while_loading(run: Run) -> list[Term]:
    """A quantised base on each GPU while the bundled trainers load it: its part of what is packed,
    and one matrix, or all experts of a layer (trainers/start/packed_experts.py). Before it is
    divided, embeddings and output are on the host (divided_base.py), and experts that are not
    packed are whole. Nothing if it is never above what is held later, and for other trainers.
    """
    share = run.sharing("weights")
    if run.stage.quantization is None or not run.is_ours or run.device.is_cpu:
        return []
    if share < 2 and not run.packs_experts:
        return []
    divided = run.stage.divides_base or share < 2
    kept = ("weights", CONSTANTS, UNQUANTISED) if divided else (CONSTANTS,)
    because = "whole on each GPU until the model is divided"
    terms = [
        term
        if term.name in kept
        else replace(term, size_bytes=term.size_bytes * share, because=because)
        for term in _base_weights(run)
    ]
    if divided:
        d = run.dims
        packed = 2.5 * d.hidden * max(d.width, d.q_size)
        plain = run.weight_bytes * d.head_params if share > 1 else 0  # on its way to the host
        # Packed one by one and as one; in 16 bit so, too, or a byte of MXFP4 in 16 bit.
        each = (2.0 if run.model.stored == "mxfp4" else 5.0) if run.packs_experts else 0.0
        routed = each * 2 * d.experts * d.hidden * d.expert_width
        why = "the largest: read in 16 bit and packed, or of the output"
        terms.append(term_of("one matrix on its way", max(packed, plain, routed), why, src.QLORA))
    return terms


def _added_weights(run: Run) -> Iterator[Term]:
    """What training adds to the weights: a module, or copies in another dtype."""
    share = run.sharing("weights")
    if run.is_module:
        wide, copied = run.train_bytes, run.embedding_bytes
        because = f"{run.trainable:,} trainable parameters x {wide} B{per_device(share)}"
        name = run.update.added or "added parameters"
        yield term_of(name, run.trainable * wide / share, because, src.LORA)
        because = (
            f"{run.embeddings:,} x {copied} B{per_device(share)}: PEFT trains a copy and keeps the"
            " base's own"
        )
        size = run.embeddings * copied / share
        yield term_of("trained embeddings and output", size, because, src.LORA)
    elif run.master:
        params, share = run.dims.params, run.sharing("states")
        size = 0.0 if run.optimizer in CPU_OPTIMIZERS else params * 4 / share
        because = f"{params:,} x 4 B{per_device(share)}"
        yield term_of("float32 master weights", size, because, src.ZERO)


def cast_weights(run: Run) -> list[Term]:
    """16-bit copies of float32 weights that autocast makes for a forward pass; each is freed when
    the backward pass has gone through its layer.
    """
    stays = run.is_module or run.master or run.offloaded or run.device.is_cpu or run.is_fsdp
    if stays or run.precision != "mixed" or run.weight_bytes != 4:
        return []
    size = (run.dims.linear_params + run.dims.routed_params) * 2 / run.sharing("weights")
    because = "autocast keeps a cast of every weight through the forward pass"
    return [term_of("16-bit copies of the weights", size, because, src.ACTIVATIONS)]


def gathered_weights(run: Run, *, layers: int) -> list[Term]:
    """Weights in full around this device's share: the root unit, and as many layers as compute or
    are fetched ahead.
    """
    d, share = run.dims, run.sharing("weights")
    if share < 2:
        return []
    width = 2 if run.casts or not run.is_ours else run.weight_bytes
    layer_bytes: float = run.layer_gathered * width
    if run.stage.quantization == "nf4":
        narrow = (run.quantisable + d.other_params) * 0.5
        layer_bytes = (narrow + run.left_experts * width) / d.layers
    if layers and run.offloaded and run.trainer["fsdp"] == 2 and not run.is_ours:
        layers += 1  # two gathered buffers are held (_fsdp_param_group.py, wait_for_unshard)
    # Units of their own are freed before the layers' turn; what the root holds stays.
    ends = 0 if run.trainer["shards_ends"] and layers else d.embedding_params * width
    size: float = ends + layers * layer_bytes
    if run.offloaded:  # this device's part of each came from the host first
        size += size / share
    else:
        size = min(size, sum(term.size_bytes for term in _base_weights(run)) * (share - 1))
    parts = [
        *(["embeddings and output"] if ends else []),
        *([f"{layers} layers"] if layers else []),
    ]
    because = f"{' and '.join(parts)} in full while they compute"
    return [term_of("gathered weights", size, because, src.FSDP)]


def other_roles(run: Run) -> list[Term]:
    """The further roles of a preference or reinforcement stage."""
    d, wide, what = run.dims, run.weight_bytes, run.objective
    base: float = d.params * wide
    if run.stage.quantization:
        plain = d.embedding_params + d.other_params + run.left_experts
        base = run.quantisable * 0.52 + plain * wide
    if own := special(what, "other_roles"):
        return list(own(run, base))
    if run.is_module or what.reference == "never":
        return []
    because = "a frozen copy of the policy"
    if what.reference == "with_beta":
        if not run.options.get("beta"):
            return []
        because += ", since beta is not zero"
    size = d.params * run.frozen_bytes / run.sharing("weights")
    return [term_of("reference model", size, because, src.COUNT)]


def optimizer_states(run: Run) -> Term:
    """Adam's moments, or what another optimizer keeps, on this device."""
    entry, total, share = entry_of(run.optimizer), state_size(run), run.sharing("states")
    name = "optimizer state"
    if run.optimizer in CPU_OPTIMIZERS:
        return term_of(name, 0, "held in host memory", src.ADAM)
    if entry.is_paged and not run.device.is_cpu:
        because = (
            f"paged: up to {total / GIB:.2f} GiB in unified memory, counted by no allocator and"
            " moved out under pressure"
        )
        return term_of(name, 0, because, src.QLORA)
    source = src.ADAM if entry.name.startswith("adamw") else src.optimizer(entry)
    return term_of(name, total / share, f"{state_words(run)}{per_device(share)}", source)


def optimizer_temporaries(run: Run) -> list[Term]:
    """What the optimizer holds beside its state while it steps."""
    entry, share, name = entry_of(run.optimizer), run.sharing("states"), "optimizer temporaries"
    on_host = run.optimizer in CPU_OPTIMIZERS
    if run.sharding in ("zero1", "zero2", "zero3") and run.master and not on_host:
        count = run.trainable / share
        if run.sharding == "zero3":
            # stage3.py, _prepare_fp32_grad_for_sub_group: at most sub_group_size at once.
            size, which = min(count, DEEPSPEED_SUB_GROUP) * 4, ", one group at a time"
        else:
            # stage_1_and_2.py, step: beside the gradients one flat copy, then that in float32.
            size, which = count * (4 + run.train_bytes), ", made of a flat copy"
        because = f"DeepSpeed steps on float32 copies{per_device(share)}{which}"
        return [term_of("float32 gradients", size, because, src.DEEPSPEED)]
    if entry.holds == "chunks":
        because = f"steps are computed in float32, {CHUNK_ELEMENTS:,} weights at a time"
        size = min(CHUNK_ELEMENTS, run.trainable) * CHUNK_BYTES
        return [term_of(name, size, because, src.COUNT)]
    holds_nothing = entry.holds == "nothing" or on_host or run.optimizer_in_backward
    if holds_nothing or run.sharding in ("zero2", "zero3"):
        return []
    if entry.holds == "largest weight":
        largest = largest_weight(run)
        # Adam's loop makes the root of one second moment, in the weight's dtype.
        wide = run.train_bytes if entry.name.startswith("adamw") else ONE_WEIGHT_BYTES
        because = (
            f"one tensor at a time: {wide} B for each of the {largest:,} weights of the largest"
        )
        return [term_of(name, largest * wide, because, src.COUNT)]
    size = run.trainable * 4 if run.master else run.trained_bytes
    if entry.name.startswith("adam"):
        size *= run.trainer["adam_copies"]
    because = "the foreach step builds its update for all parameters at once"
    return [term_of(name, size / share, because, src.FOREACH)]


# Of a part that a process writes: the tensors, unless they are in host memory already, and the file
# that is made of them (torch/distributed/checkpoint/filesystem.py).
COPIES, COPIES_OFFLOADED = 2, 1


def _without_offloading(run: Run) -> Run:
    return replace(run, device=replace(run.device, offloads=False, is_cpu=False))


def host_bytes(run: Run) -> int | None:
    """Bytes that lie in the memory of each machine: its GPUs' parts of weights, gradients and
    optimizer states. None if nothing is offloaded, or the dimensions are not known.

    Left out: page-locked buffers that torch rounds up, and the checkpoint while it is read.
    """
    if not run.is_sized or not run.device.offloads:
        return None
    here = _without_offloading(run)
    size = sum(term.size_bytes for term in (*weights(here), *gradients(here), *other_roles(here)))
    return round(
        (size + state_size(here) / here.sharing("states")) * here.gpus / here.device.machines
    )


def host_moments(run: Run) -> tuple[HostMoment, ...]:
    """What each machine needs of its own memory, by moment; of the first one if they differ.

    Empty if no model is divided, for other trainers, and if the dimensions are not known.

    Left out: Python and its libraries (about 1 GiB a process), rows, page cache, and the file of a
    result while it is made.
    """
    if not run.is_sized or not run.is_ours or run.device.sharding != FSDP or run.device.gpus < 2:
        return ()
    kept = host_bytes(run) or 0
    run = _without_offloading(run)
    beside = " beside what is offloaded" if kept else ""
    trained = run.trained_bytes
    copies = COPIES_OFFLOADED if kept else COPIES
    parts = copies * (trained + state_size(run)) / run.device.machines
    found = []
    if run.stage.quantization is None:  # a 4-bit base is quantised on each GPU, tensor by tensor
        whole = run.dims.params * run.weight_bytes
        because = "the base is read whole by one process of each machine, which sends the others"
        found.append(HostMoment("loading", round(whole), f"{because} their parts"))
    if kept:
        because = "weights, gradients and optimizer states are offloaded"
        found.append(HostMoment("training", kept, because))
    because = (
        "each process writes its part of the trained weights and of the optimizer's states from a"
        f" copy{beside}"
    )
    found.append(HostMoment("checkpoint", round(kept + parts), because))
    because = f"the trained weights are put together in the first process{beside}"
    found.append(HostMoment("saving", round(kept + trained), because))
    return tuple(found)


def first_gradients(run: Run, *, layers: int) -> list[Term]:
    """Gradients that exist while activations still stand: of the output matrix, then of the last
    layers; whole, before any division.
    """
    d, grads, name = run.dims, run.sharing("gradients"), "first gradients"
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
    count = head + at_once * run.layer_gathered
    divided = run.sharding in ("fsdp", "zero3", "zero2")
    if divided:
        size = min(2 * count, run.trainable * run.train_bytes * (1 - 1 / grads))
    else:
        size = min(count, run.trainable) * run.train_bytes
    if layers and run.offloaded and run.trainer["fsdp"] == 2 and not run.is_ours:
        size += 2 * d.layer_params / grads  # this device's part, on its way to the host
    because = (
        f"of the output matrix{f' and {layers} layers' if layers else ''},"
        f" {'before they are divided' if divided else 'made first'}"
    )
    return [term_of(name, size, because, src.FSDP if divided else src.COUNT)]


def gradients(run: Run) -> list[Term]:
    """Gradients of what trains, as they are before the optimizer's step."""
    name, share, layers = "gradients", run.sharing("gradients"), run.dims.layers
    if run.optimizer_in_backward:
        one = run.trainable // layers if run.is_module else run.dims.layer_params
        because = "one layer at a time: the step runs inside the backward pass"
        return [term_of(name, one * run.train_bytes, because, src.COUNT)]
    on_host = run.sharding in ("zero2", "zero3") and run.optimizer in CPU_OPTIMIZERS
    if run.offloaded or on_host:
        return [term_of(name, 0, "moved to host memory layer by layer", src.FSDP)]
    words = " + ".join(f"{count:,} trainable parameters x {wide} B" for count, wide in run.trained)
    return [term_of(name, run.trained_bytes / share, f"{words}{per_device(share)}", src.COUNT)]


def earlier_gradients(run: Run) -> list[Term]:
    """Gradients of earlier micro-batches, which stay while the next ones are computed.

    Under FSDP most trainers divide gradients at the last micro-batch alone: until then every device
    holds them whole, in the dtype of the computation, also if weights live in host memory.
    """
    if run.stage.grad_accum == 1:
        return []
    if not run.is_fsdp or not run.adds_up_whole:
        return gradients(run)
    if run.flat_adapters:
        count, wide = run.dims.layers * run.dims.layer_params, run.weight_bytes
        because = f"{count:,} of all layers x {wide} B, frozen weights too: one flat parameter each"
    else:
        count = run.trainable + run.embeddings
        if run.shards_experts and not run.is_module:
            count -= round(run.dims.routed_params * (1 - 1 / run.gpus))
        pure = run.weight_bytes if run.precision != "mixed" else 2
        wide = run.train_bytes if run.is_module else pure
        because = f"{count:,} x {wide} B whole on every device: divided after the last micro-batch"
    return [term_of("gradients of earlier micro-batches", count * wide, because, src.NO_SYNC)]


def communication_buckets(run: Run) -> list[Term]:
    """DDP's buckets, which are a second copy of all gradients unless gradients are views of them
    (torch/nn/parallel/distributed.py, gradient_as_bucket_view).
    """
    if run.sharding != "ddp":
        return []
    because = "DDP adds gradients up in copies of them"
    return [term_of("communication buckets", run.trained_bytes, because, src.COUNT)]
