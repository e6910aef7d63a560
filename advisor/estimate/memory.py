"""Peak memory of one device: the largest of a run's moments, each a sum of named terms.

Arithmetic only.

N weights, L layers, H hidden, I MLP width, V vocabulary, T tokens of one micro-batch on one device,
g devices. Bytes everywhere. Not covered: vision towers, tensor and context parallelism, offloaded
activations' host side, dropout masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from advisor.estimate import sources as src
from advisor.estimate.activation_memory import (
    activations,
    evaluation_memory,
    last_hidden,
    loss_memory,
    recomputed_layer,
    rollout_memory,
)
from advisor.estimate.bands import band, doubts_of, need_band
from advisor.estimate.dims import dims_of
from advisor.estimate.frameworks import guess_note
from advisor.estimate.gradient_memory import (
    communication_buckets,
    earlier_gradients,
    first_gradients,
    gradients,
)
from advisor.estimate.methods import special
from advisor.estimate.resolved_run import ResolvedRun, resolve, term_of
from advisor.estimate.static_memory import (
    cast_weights,
    gathered_weights,
    optimizer_states,
    optimizer_temporaries,
    other_roles,
    weights,
)
from advisor.estimate.types import CACHE_TERMS, MemoryEstimate, Moment, RunSpec, Term
from advisor.ground.types import GpuSpec, ModelShape
from advisor.ground.units import GIB
from advisor.methods import objective

# Beyond what is allocated: blocks split and kept. Weights and states are allocated once and lose
# little.
STANDING_CACHE = {
    "allocated": 0.0,
    "active": 0.0,
    "reserved": 0.02,
    "unknown": 0.02,
    "nvidia-smi": 0.02,
}
PASSING_CACHE = {
    "allocated": 0.0,
    "active": 0.02,
    "reserved": 0.0,
    "unknown": 0.0,
    "nvidia-smi": 0.0,
}
# The sources, one object each, of terms that come and go within a step: told by identity, since
# this is asked for every term of every estimate.
PASSING_SOURCES = {
    id(one) for one in (src.ACTIVATIONS, src.BLOCKS, src.LOSS, src.TRL_LOSS, src.CORRECTED)
}
# The blocks of one phase (logits, one layer run again) have other sizes than those of the next, so
# a cache that is not emptied keeps
# both: fsdp_qlora's reserved peaks are activations + loss + one layer, with a spread of 10 %. What
# is lost in splitting them is fitted. What a step allocates goes half into them.
OTHER_PHASES = {
    "allocated": 0.0,
    "active": 0.0,
    "reserved": 1.17,
    "unknown": 1.17,
    "nvidia-smi": 1.17,
}
REUSED_BY_STEP = 0.5
# Batches of ever new lengths: nearly twice everything that comes and goes (ms-swift's padded runs);
# given back before an allocation fails, so never beyond the card.
RAGGED_CACHE = 1.8
# What published runs needed beyond all named terms, where a counter of the process or of the
# allocator was read. These constants are fitted so that few runs are predicted too low, which costs
# more than too high (`python -m benchmarks refit`).
UNNAMED = {"allocated": 0.0, "active": 0.0, "reserved": 0.01, "unknown": 0.01, "nvidia-smi": 0.01}
# The same in RAM: seven runs here held 7 to 36 % more than the terms, most where rows have many
# lengths.
CPU_BUFFER_BYTES, CPU_KEPT = int(0.1 * GIB), 0.15
CPU_KERNEL_BYTES = int(
    0.3 * GIB
)  # under autocast: bfloat16 kernels that oneDNN compiles for each shape
# Memory that CUDA does not hand out: it reports 79.2 GiB of an "80 GB" GPU whose driver lists 80.0,
# 39.5 of 40.0, 23.65 of 24.0 (PyTorch's out-of-memory messages: "has a total capacity of").
DRIVER_BYTES, DRIVER_SHARE = int(0.6 * GIB), 0.014
CONTEXT_BYTES, EAGER_CONTEXT_BYTES, NCCL_BYTES = int(0.6 * GIB), int(1.3 * GIB), int(0.6 * GIB)


def server_share(spec: RunSpec, device: GpuSpec | None) -> list[Term]:
    """What a vLLM server takes that shares the GPU with the trainer: its share, whatever it needs
    of it.
    """
    share = spec.options.get("server_memory")
    if not share or device is None or device.memory_bytes is None:
        return []
    return [
        term_of(
            "vLLM server on the same GPU",
            share * device.memory_bytes,
            f"launch.vllm.memory {share:g} of {device.memory_bytes / GIB:.0f} GiB",
            src.COUNT,
        )
    ]


def memory_estimate(
    spec: RunSpec,
    shape: ModelShape,
    *,
    cpu: bool = False,
    device: GpuSpec | None = None,
    device_bytes: int | None = None,
) -> MemoryEstimate | None:
    """The peak of one device with its terms and band; None where the shape holds no dimensions.

    Args:
        device: Tells an old GPU's CUDA from a new one's, and how much memory there is.
        device_bytes: Memory of the device if that is not the catalogue's: bounds what an allocator
            can keep and a counter can read.
    """
    dims = dims_of(shape)
    if dims is None:
        return None
    s = resolve(spec, dims, cpu=cpu)
    casts = cast_weights(s)
    held_weights = weights(s)
    standing = [*held_weights, *other_roles(s), *optimizer_states(s), *communication_buckets(s)]
    standing += server_share(spec, device)
    full_gradients = gradients(s)
    kept = earlier_gradients(s)
    held, scoring, layer = activations(s), loss_memory(s), recomputed_layer(s)
    passing = _bytes([*held, *scoring, *layer, *casts])
    divided = s.sharding in ("fsdp", "zero3", "zero2")
    readable = None if cpu else readable_bytes(s, device, device_bytes)
    whole = device_bytes or (None if device is None else device.memory_bytes)
    room = (passing, device, readable)

    def so_far(layers: int) -> list[Term]:
        """Gradients while activations stand: all of earlier micro-batches, and those on their way
        to be divided.
        """
        return [*kept, *(first_gradients(s, layers=layers) if divided or not kept else [])]

    ends = first_gradients(s, layers=2) if divided and not s.embeddings else []
    moments = [
        _moment("loss and start of the backward pass", s, room, [*standing, *casts,
        *gathered_weights(s, layers=0), *so_far(0), *held, *last_hidden(s), *scoring]),
        _moment("backward pass through one layer", s, room, [*standing, *casts,
        *gathered_weights(s, layers=2), *so_far(2), *held, *layer]),
        _moment("end of the backward pass", s, room, [*standing, *gathered_weights(s,
        layers=2), *full_gradients, *ends, *layer]),
        _moment("optimizer step", s, room, [*standing, *gathered_weights(s, layers=0),
        *full_gradients, *optimizer_temporaries(s)]),
    ]  # fmt: skip
    if s.evaluates:
        testing = [*standing, *gathered_weights(s, layers=2), *evaluation_memory(s)]
        moments.append(_moment("evaluation", s, room, testing))
    share = special(objective(spec.objective), "written_share")
    # PPO answers the held-out prompts of its evaluations itself, beside the server.
    own = special(objective(spec.objective), "answers_at_once") is not None
    served = spec.options.get("rollouts") == "vllm" and not own
    if objective(spec.objective).generates and not served and (share is None or share(spec) > 0):
        moments.append(
            _moment(
                "generating answers",
                s,
                room,
                [*standing, *casts, *gathered_weights(s, layers=2), *rollout_memory(s)],
            )
        )
    total = max(moment.total_bytes for moment, _ in moments)
    peak = total if readable is None else min(total, readable)
    need = max(need for _, need in moments)
    doubts = doubts_of(s, shape.origin)
    below, above = band(doubts)
    need_low, need_high = need_band(
        need,
        standing_bytes=_bytes(standing),
        weights_bytes=_bytes(held_weights),
        doubts=doubts,
    )
    warnings = [shape.note] if shape.origin == "size" and shape.note else []
    if not s.stack.is_known:
        warnings.append(guess_note(spec, s.stack))
    if dims.encoder and spec.objective != "sft":
        warnings.append("an encoder: estimated as a classifier")
    if cpu:
        warnings.append("training on the CPU: the memory is RAM, and steps are slow")
    return MemoryEstimate(
        moments=tuple(moment for moment, _ in moments),
        low_bytes=round(peak * (1 - below)),
        # How much the driver and the context keep is an estimate too: the band ends at the GPU.
        high_bytes=round(min(peak * (1 + above), whole if whole and not cpu else math.inf)),
        need_bytes=need,
        need_low_bytes=need_low,
        need_high_bytes=need_high,
        readable_bytes=readable,
        doubts=doubts,
        warnings=tuple(warnings),
    )


def readable_bytes(
    s: ResolvedRun, device: GpuSpec | None, device_bytes: int | None = None
) -> int | None:
    """The most that the counter can show on this device: its memory less what the driver keeps, and
    for a counter of the allocator less the CUDA context too; None if the memory is not known.
    """
    total = device_bytes or (None if device is None else device.memory_bytes)
    if total is None:
        return None
    kept = min(DRIVER_BYTES, DRIVER_SHARE * total)
    beside = 0 if _shows_context(s) else _context_bytes(s, device)
    return max(0, round(total - kept - beside))


def _moment(
    name: str,
    s: ResolvedRun,
    room: tuple[int, GpuSpec | None, int | None],
    terms: Sequence[Term],
) -> tuple[Moment, int]:
    """The terms with what the chosen counter shows beyond them, and how much of all that must be
    there.

    Args:
        room: Bytes that come and go in a step, one phase after the other; the device; the most its
            counter can show, which the allocator's cache fills and does not exceed.
    """
    passing, device, readable = room
    extra: list[Term] = []
    cache: list[Term] = []
    if s.cpu:
        kept = CPU_BUFFER_BYTES + CPU_KEPT * passing
        extra.append(
            term_of(
                "memory freed and kept",
                kept,
                f"buffers of libraries, {CPU_KEPT:.0%} of what comes and goes: malloc gives back"
                " what lies on top",
                src.MALLOC,
            )
        )
        if s.spec.precision == "mixed":
            extra.append(
                term_of(
                    "compiled kernels",
                    CPU_KERNEL_BYTES,
                    "of bfloat16 products, one for each shape",
                    src.MALLOC,
                )
            )
        extra.append(
            term_of(
                "Python and libraries",
                0.7 * GIB,
                "interpreter, torch and tokenizer in RAM",
                src.ALLOCATOR,
            )
        )
    else:
        context = _context(s, device)
        standing = _bytes(terms)
        split, cache = _cache(s, passing, terms, standing)
        extra += [*split, *context]
        rest = UNNAMED[s.counter] * (standing + _bytes([*extra, *cache]))
        extra.append(
            term_of(
                "not accounted for",
                rest,
                "fragmentation and library buffers, by what published runs needed beyond the terms",
                src.ALLOCATOR,
            )
        )
    need = _bytes([*terms, *extra])
    if readable is not None:
        cache = _at_most(cache, readable - need)
    found = (term for term in (*terms, *cache, *extra) if term.size_bytes > 0)
    return Moment(name=name, terms=tuple(found)), need


def _at_most(cache: Sequence[Term], room: int) -> list[Term]:
    """Cached blocks as far as there is room: the rest is given back."""
    kept = []
    for term in cache:
        size = min(term.size_bytes, max(0, room))
        room -= size
        given_back = "" if size == term.size_bytes else "; the rest is given back on this GPU"
        kept.append(replace(term, size_bytes=size, because=term.because + given_back))
    return kept


def _bytes(terms: Iterable[Term]) -> int:
    return sum([term.size_bytes for term in terms])


def _shows_context(s: ResolvedRun) -> bool:
    """Whether the counter counts the whole process."""
    return s.counter == "nvidia-smi" or (s.counter == "unknown" and not s.stack.logs_allocator)


def _loads_all_kernels(s: ResolvedRun, device: GpuSpec | None) -> bool:
    """Whether CUDA is older than 12.2, by the framework's wording or the GPU's age."""
    return s.stack.eager_cuda or bool(
        s.stack.name
        and device is not None
        and device.compute_capability is not None
        and device.compute_capability < (8, 0)
    )


def _context_bytes(s: ResolvedRun, device: GpuSpec | None) -> int:
    eager = _loads_all_kernels(s, device)
    return (EAGER_CONTEXT_BYTES if eager else CONTEXT_BYTES) + (NCCL_BYTES if s.gpus > 1 else 0)


def _context(s: ResolvedRun, device: GpuSpec | None) -> list[Term]:
    """What the driver and the communication library hold beside the allocator."""
    if not _shows_context(s):
        return []
    loaded = ", all loaded at the start before CUDA 12.2" if _loads_all_kernels(s, device) else ""
    return [
        term_of(
            "CUDA context" if device is None or device.vendor == "nvidia" else "driver and kernels",
            _context_bytes(s, device),
            f"driver, kernels{loaded}{' and NCCL' if s.gpus > 1 else ''}",
            src.CONTEXT,
        )
    ]


def _cache(
    s: ResolvedRun, passing: int, terms: Sequence[Term], total: int
) -> tuple[list[Term], list[Term]]:
    """What the allocator holds beyond what is allocated at this moment: blocks split and lost, and
    whole free segments, which it gives back when memory is short.
    """
    here = _bytes(term for term in terms if id(term.source) in PASSING_SOURCES)
    split = (total - here) * STANDING_CACHE[s.counter] + here * PASSING_CACHE[s.counter]
    reused = REUSED_BY_STEP * sum(term.size_bytes for term in terms if term.source is src.FOREACH)
    others = max(0.0, passing - here - reused) * OTHER_PHASES[s.counter]
    lost = term_of(
        "fragmentation",
        split,
        f"blocks split and lost, {STANDING_CACHE[s.counter]:.0%} of what stays",
        src.ALLOCATOR,
    )
    cache = [
        term_of(
            CACHE_TERMS[0],
            others,
            "free blocks of the pass's other phases, given back when memory is short",
            src.ALLOCATOR,
        )
    ]
    if s.ragged and s.counter in ("reserved", "nvidia-smi"):
        cache.append(
            term_of(
                CACHE_TERMS[1],
                RAGGED_CACHE * s.ragged * passing,
                "every batch has another length, so kept blocks fit few of them",
                src.ALLOCATOR,
            )
        )
    return [lost], cache
