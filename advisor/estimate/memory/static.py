"""Memory held throughout a run: weights, adapters, further roles, optimizer state, and what an
optimizer step adds.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate import sources as src
from advisor.estimate.memory.optimizer_states import (
    entry_of,
    largest_weight,
    state_size,
    state_words,
)
from advisor.estimate.methods import special
from advisor.estimate.resolved_run import CPU_OPTIMIZERS, ResolvedRun, per_device, term_of
from advisor.estimate.types import LEFT_EXPERTS, Term
from advisor.ground.units import GIB
from advisor.methods import objective, update

# nf4: half a byte, and a float32 scale per 64 weights; double quantization stores the scales in 8
# bits with one more per 256.
NF4_CONSTANT_BYTES = 4 / 64
NF4_DOUBLE_CONSTANT_BYTES = 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0
DEEPSPEED_SUB_GROUP = 1_000_000_000  # sub_group_size of its configuration
# Our own AdamW over bfloat16 weights: how many weights it moves at once, and the float32 numbers
# that stand beside each meanwhile (trainers/frame/bf16_adamw.py, CHUNK).
CHUNK_ELEMENTS, CHUNK_BYTES = 2**22, 40
# Optimizers that go tensor by tensor hold up to three float32 copies of one: the update, the
# factors of its singular values or the steps towards an orthogonal matrix.
ONE_WEIGHT_BYTES = 12


def untied_embeddings(s: ResolvedRun) -> int:
    """Weights that a trainer holds twice: an output matrix of its own for every model."""
    return (
        s.dims.head_params
        if s.stack.unties_head
        and s.dims.embedding_params == s.dims.head_params
        and not s.dims.encoder
        else 0
    )


def weights(s: ResolvedRun) -> list[Term]:
    """The model's own weights with quantisation constants, and added parameters: this device's
    share.
    """
    terms = [*_base_weights(s), *_added_weights(s)]
    return (
        [replace(term, size_bytes=0, because=f"in host memory: {term.because}") for term in terms]
        if s.offloaded
        else terms
    )


def _base_weights(s: ResolvedRun) -> list[Term]:
    """The weights of the checkpoint, with quantisation constants."""
    d, spec, share = s.dims, s.spec, s.shard_all
    terms = []
    if spec.quantization in ("nf4", "int8"):
        outside = 4 if s.prepared or s.cpu else s.weight_bytes
        per_weight = 0.5 if spec.quantization == "nf4" else INT8_BYTES
        linear = s.quantisable + (d.head_params if s.quantised_head else 0)
        terms.append(
            term_of(
                "weights",
                linear * per_weight / share,
                f"{linear:,} linear weights x {per_weight:g} B{per_device(share)}",
                src.QLORA,
            )
        )
        if spec.quantization == "nf4":
            constant = NF4_DOUBLE_CONSTANT_BYTES if spec.double_quantization else NF4_CONSTANT_BYTES
            because = (
                f"a scale per 64 weights, {'8-bit' if spec.double_quantization else 'float32'}"
            )
            terms.append(
                term_of("quantisation constants", linear * constant / share, because, src.QLORA)
            )
        rest = (
            d.embedding_params
            + d.other_params
            + untied_embeddings(s)
            - (d.head_params if s.quantised_head else 0)
        )
        terms.append(
            term_of(
                "weights left unquantised",
                rest * outside / share,
                f"{rest:,} of embeddings, output and norms x {outside} B{per_device(share)}",
                src.QLORA,
            )
        )
        if s.left_experts:
            because = (
                f"{s.left_experts:,} of routed experts and routers x {outside} B"
                f"{per_device(share)}: bitsandbytes quantises linear layers alone"
            )
            size = s.left_experts * outside / share
            terms.append(term_of(LEFT_EXPERTS, size, because, src.EXPERTS))
    else:
        held = d.params + untied_embeddings(s)
        terms.append(
            term_of(
                "weights",
                held * s.weight_bytes / share,
                f"{held:,} x {s.weight_bytes} B{per_device(share)}",
                src.COUNT,
            )
        )
    return terms


def base_while_loading(s: ResolvedRun) -> list[Term]:
    """The whole 4-bit base on each GPU: the bundled trainers quantise it there before it is
    divided. Nothing where a base is read in parts, or by other trainers.
    """
    if s.shard_all < 2 or s.spec.quantization is None or s.stack.name or s.cpu:
        return []
    said = "whole on each GPU while it is quantised, then divided"
    return [
        replace(term, size_bytes=term.size_bytes * s.shard_all, because=said)
        for term in _base_weights(s)
    ]


def _added_weights(s: ResolvedRun) -> list[Term]:
    """What training adds to the weights: a module, or copies in another dtype."""
    d, spec, share = s.dims, s.spec, s.shard_all
    terms = []
    how = update(spec.update)
    if how.is_module:
        because = f"{s.trainable:,} trainable parameters x {s.train_bytes} B{per_device(share)}"
        terms.append(
            term_of(
                how.added or "added parameters",
                s.trainable * s.train_bytes / share,
                because,
                src.LORA,
            )
        )
        because = (
            f"{s.embeddings:,} x {s.embedding_bytes} B{per_device(share)}: PEFT trains a copy and"
            " keeps the base's own"
        )
        terms.append(
            term_of(
                "trained embeddings and output",
                s.embeddings * s.embedding_bytes / share,
                because,
                src.LORA,
            )
        )
    elif s.master:
        size = 0.0 if s.optimizer in CPU_OPTIMIZERS else d.params * 4 / s.shard_states
        terms.append(
            term_of(
                "float32 master weights",
                size,
                f"{d.params:,} x 4 B{per_device(s.shard_states)}",
                src.ZERO,
            )
        )
    return terms


def cast_weights(s: ResolvedRun) -> list[Term]:
    """16-bit copies of float32 weights that autocast makes for a forward pass; each is freed when
    the backward pass has gone through its layer.
    """
    if (
        s.is_module
        or s.master
        or s.offloaded
        or s.cpu
        or s.sharding == "fsdp"
        or s.spec.precision != "mixed"
        or s.weight_bytes != 4
    ):
        return []
    because = "autocast keeps a cast of every weight through the forward pass"
    return [
        term_of(
            "16-bit copies of the weights",
            (s.dims.linear_params + s.dims.routed_params) * 2 / s.shard_all,
            because,
            src.ACTIVATIONS,
        )
    ]


def gathered_weights(s: ResolvedRun, *, layers: int) -> list[Term]:
    """Weights in full around this device's share: the root unit, and as many layers as compute or
    are fetched ahead.
    """
    d, share = s.dims, s.shard_all
    if share < 2:
        return []
    whole = 0 if s.offloaded else sum(term.size_bytes for term in _base_weights(s)) * (share - 1)
    width = 2 if s.casts or s.stack.name else s.weight_bytes
    layer_bytes = (
        ((s.quantisable + d.other_params) * 0.5 + s.left_experts * width) / d.layers
        if s.spec.quantization == "nf4"
        else d.layer_params * width
    )
    if layers and s.fully_sharded and s.counter not in ("allocated", "active"):
        # FSDP 2 gathers in a stream of its own. In the forward pass two of its buffers are held
        # (_fsdp_param_group.py, wait_for_unshard), and no other stream gets their blocks later.
        layers += 1
    # Units of their own are freed before the layers' turn; what the root holds stays.
    ends = 0 if s.stack.shards_ends and layers else d.embedding_params * width
    size = ends + layers * layer_bytes
    if s.offloaded:  # this device's part of each came from the host first
        size += size / share
    parts = [
        *(["embeddings and output"] if ends else []),
        *([f"{layers} layers"] if layers else []),
    ]
    because = f"{' and '.join(parts)} in full while they compute"
    if not s.offloaded:
        size = min(size, whole)
    return [term_of("gathered weights", size, because, src.FSDP)]


def other_roles(s: ResolvedRun) -> list[Term]:
    """The further roles of a preference or reinforcement stage."""
    d, spec, share = s.dims, s.spec, s.shard_all
    base = (
        d.params * s.weight_bytes
        if not spec.quantization
        else s.quantisable * 0.52
        + (d.embedding_params + d.other_params + s.left_experts) * s.weight_bytes
    )
    what = objective(spec.objective)
    own = special(what, "other_roles")
    if own:
        roles: list[Term] = own(s, base)
        return roles
    if s.is_module or what.reference == "never":
        return []
    if what.reference == "always":
        return [term_of("reference model", base / share, "a frozen copy of the policy", src.COUNT)]
    because = "a frozen copy of the policy, since beta is not zero"
    found = bool(spec.options.get("beta"))
    return [term_of("reference model", base / share, because, src.COUNT)] if found else []


def optimizer_states(s: ResolvedRun) -> list[Term]:
    """Adam's moments, or what another optimizer keeps, on this device."""
    entry, total = entry_of(s.optimizer), state_size(s)
    source = src.ADAM if entry.name.startswith("adamw") else src.optimizer(entry)
    if s.optimizer in CPU_OPTIMIZERS:
        return [term_of("optimizer state", 0, "held in host memory", src.ADAM)]
    if entry.is_paged and not s.cpu:
        because = (
            f"paged: up to {total / GIB:.2f} GiB in unified memory, counted by no allocator and"
            " moved out under pressure"
        )
        return [term_of("optimizer state", 0, because, src.QLORA)]
    return [
        term_of(
            "optimizer state",
            total / s.shard_states,
            f"{state_words(s)}{per_device(s.shard_states)}",
            source,
        )
    ]


def optimizer_temporaries(s: ResolvedRun) -> list[Term]:
    """What the optimizer holds beside its state while it steps."""
    entry = entry_of(s.optimizer)
    alone = entry.holds == "nothing" or s.optimizer in CPU_OPTIMIZERS
    if s.sharding in ("zero1", "zero2", "zero3") and s.master and s.optimizer not in CPU_OPTIMIZERS:
        count = s.trainable / s.shard_states
        if s.sharding == "zero3":
            # stage3.py, _prepare_fp32_grad_for_sub_group: at most sub_group_size at once.
            size, which = min(count, DEEPSPEED_SUB_GROUP) * 4, ", one group at a time"
        else:
            # stage_1_and_2.py, step: beside the gradients one flat copy, then that in float32.
            size, which = count * (4 + s.train_bytes), ", made of a flat copy"
        return [
            term_of(
                "float32 gradients",
                size,
                f"DeepSpeed steps on float32 copies{per_device(s.shard_states)}{which}",
                src.DEEPSPEED,
            )
        ]
    if entry.holds == "chunks":
        return [
            term_of(
                "optimizer temporaries",
                min(CHUNK_ELEMENTS, s.trainable) * CHUNK_BYTES,
                f"steps are computed in float32, {CHUNK_ELEMENTS:,} weights at a time",
                src.COUNT,
            )
        ]
    if alone or s.spec.optimizer_in_backward or s.sharding in ("zero2", "zero3"):
        return []
    if entry.holds == "largest weight":
        largest = largest_weight(s)
        # Adam's loop makes the root of one second moment, in the weight's dtype.
        wide = s.train_bytes if entry.name.startswith("adamw") else ONE_WEIGHT_BYTES
        return [
            term_of(
                "optimizer temporaries",
                largest * wide,
                f"one tensor at a time: {wide} B for each of the {largest:,} weights of"
                " the largest",
                src.COUNT,
            )
        ]
    size = s.trainable * 4 if s.master else s.trained_bytes
    if entry.name.startswith("adam"):
        size *= s.stack.adam_copies
    return [
        term_of(
            "optimizer temporaries",
            size / s.shard_states,
            "the foreach step builds its update for all parameters at once",
            src.FOREACH,
        )
    ]
