"""Peak memory of one device: the largest of a run's moments, each a sum of named terms.

Arithmetic only.

N weights, L layers, H hidden, I MLP width, V vocabulary, T tokens of one micro-batch on one device,
g devices. Bytes everywhere. Not covered: vision towers, tensor and context parallelism, offloaded
activations' host side, dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.estimate import sources as src
from advisor.estimate.activation_memory import (
    activations,
    evaluation_memory,
    last_hidden,
    loss_memory,
    recomputed_layer,
    rollout_memory,
)
from advisor.estimate.bands import band, doubts_of
from advisor.estimate.dims import dims_of
from advisor.estimate.methods import special
from advisor.estimate.resolved_run import ResolvedRun, resolve, term_of
from advisor.estimate.static_memory import (
    cast_weights,
    communication_buckets,
    first_gradients,
    gathered_weights,
    gradients,
    optimizer_states,
    optimizer_temporaries,
    other_roles,
    weights,
)
from advisor.estimate.types import MemoryEstimate, Moment, RunSpec, Term
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
PASSING_SOURCES = {id(one) for one in (src.ACTIVATIONS, src.LOSS, src.TRL_LOSS, src.CORRECTED)}
# The blocks of one phase (logits, one layer run again) have other sizes than those of the next, so
# a cache that is not emptied keeps
# both: fsdp_qlora's reserved peaks are activations + loss + one layer, with a spread of 10 %. A
# tenth more is lost in splitting them. What a step allocates goes half into them.
OTHER_PHASES = {"allocated": 0.0, "active": 0.0, "reserved": 1.1, "unknown": 1.1, "nvidia-smi": 1.1}
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
    spec: RunSpec, shape: ModelShape, *, cpu: bool = False, device: GpuSpec | None = None
) -> MemoryEstimate | None:
    """The peak of one device with its terms and band; None where the shape holds no dimensions.

    `device` bounds what an allocator can keep, and tells an old card's CUDA from a new one's.
    """
    dims = dims_of(shape)
    if dims is None:
        return None
    s = resolve(spec, dims, cpu=cpu)
    casts = cast_weights(s)
    standing = [*weights(s), *other_roles(s), *optimizer_states(s), *communication_buckets(s)]
    standing += server_share(spec, device)
    full_gradients = gradients(s)
    # With accumulation the gradients of earlier micro-batches stay.
    kept = (
        full_gradients if spec.grad_accum > 1 or (s.stack.accumulates and not s.is_module) else []
    )
    held, scoring, layer = activations(s), loss_memory(s), recomputed_layer(s)
    passing = _bytes([*held, *scoring, *layer, *casts])
    divided = s.sharding in ("fsdp", "zero3", "zero2")

    def so_far(layers: int) -> list[Term]:
        """Gradients while activations stand: all of earlier micro-batches, and those on their way
        to be divided.
        """
        return [*kept, *(first_gradients(s, layers=layers) if divided or not kept else [])]

    ends = first_gradients(s, layers=2) if divided and not s.embeddings else []
    moments = [
        _moment("loss and start of the backward pass", s, passing, device, [*standing, *casts,
        *gathered_weights(s, layers=0), *so_far(0), *held, *last_hidden(s), *scoring]),
        _moment("backward pass through one layer", s, passing, device, [*standing, *casts,
        *gathered_weights(s, layers=2), *so_far(2), *held, *layer]),
        _moment("end of the backward pass", s, passing, device, [*standing, *gathered_weights(s,
        layers=2), *full_gradients, *ends, *layer]),
        _moment("optimizer step", s, passing, device, [*standing, *gathered_weights(s, layers=0),
        *full_gradients, *optimizer_temporaries(s)]),
        _moment("evaluation", s, passing, device, [*standing, *gathered_weights(s, layers=2),
        *evaluation_memory(s)]),
    ]  # fmt: skip
    share = special(objective(spec.objective), "written_share")
    # PPO answers the held-out prompts of its evaluations itself, beside the server.
    own = special(objective(spec.objective), "answers_at_once") is not None
    served = spec.options.get("rollouts") == "vllm" and not own
    if objective(spec.objective).generates and not served and (share is None or share(spec) > 0):
        moments.append(
            _moment(
                "generating answers",
                s,
                passing,
                device,
                [*standing, *casts, *gathered_weights(s, layers=2), *rollout_memory(s)],
            )
        )
    peak = max(moment.total_bytes for moment in moments)
    doubts = doubts_of(s, shape.origin)
    below, above = band(doubts)
    warnings = [shape.note] if shape.origin == "size" and shape.note else []
    if dims.encoder and spec.objective != "sft":
        warnings.append("an encoder: estimated as a classifier")
    if cpu:
        warnings.append("training on the CPU: the memory is RAM, and steps are slow")
    return MemoryEstimate(
        moments=tuple(moments),
        low_bytes=round(peak * (1 - below)),
        high_bytes=round(peak * (1 + above)),
        doubts=doubts,
        warnings=tuple(warnings),
    )


def _moment(
    name: str,
    s: ResolvedRun,
    passing: int,
    device: GpuSpec | None,
    terms: Sequence[Term],
) -> Moment:
    """The terms with what the chosen counter shows beyond them; `passing` bytes come and go in a
    step, one phase after the other.
    """
    extra: list[Term] = []
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
        extra += _cache(s, passing, device, terms, standing, _bytes(context))
        extra += context
        rest = UNNAMED[s.counter] * (standing + _bytes(extra))
        extra.append(
            term_of(
                "not accounted for",
                rest,
                "fragmentation and library buffers, by what published runs needed beyond the terms",
                src.ALLOCATOR,
            )
        )
    return Moment(name=name, terms=tuple(term for term in (*terms, *extra) if term.size_bytes > 0))


def _bytes(terms: Iterable[Term]) -> int:
    return sum([term.size_bytes for term in terms])


def _context(s: ResolvedRun, device: GpuSpec | None) -> list[Term]:
    """What the driver and the communication library hold beside the allocator."""
    if s.counter != "nvidia-smi" and (s.counter != "unknown" or s.stack.logs_allocator):
        return []
    before_lazy = s.stack.eager_cuda or (
        s.stack.name
        and device is not None
        and device.compute_capability is not None
        and device.compute_capability < (8, 0)
    )
    size = (EAGER_CONTEXT_BYTES if before_lazy else CONTEXT_BYTES) + (
        NCCL_BYTES if s.gpus > 1 else 0
    )
    return [
        term_of(
            "CUDA context" if device is None or device.vendor == "nvidia" else "driver and kernels",
            size,
            "driver, kernels"
            f"{', all loaded at the start before CUDA 12.2' if before_lazy else ''}"
            f"{' and NCCL' if s.gpus > 1 else ''}",
            src.CONTEXT,
        )
    ]


def _cache(
    s: ResolvedRun,
    passing: int,
    device: GpuSpec | None,
    terms: Sequence[Term],
    total: int,
    context_bytes: int,
) -> list[Term]:
    """Blocks the allocator keeps beyond what is allocated at this moment."""
    here = _bytes(term for term in terms if id(term.source) in PASSING_SOURCES)
    split = (total - here) * STANDING_CACHE[s.counter] + here * PASSING_CACHE[s.counter]
    reused = REUSED_BY_STEP * sum(term.size_bytes for term in terms if term.source is src.FOREACH)
    others = max(0.0, passing - here - reused) * OTHER_PHASES[s.counter]
    cache = [
        term_of(
            "allocator cache",
            split + others,
            f"{STANDING_CACHE[s.counter]:.0%} of what stays, and blocks of the pass's other phases",
            src.ALLOCATOR,
        )
    ]
    if s.stack.ragged and s.counter in ("reserved", "nvidia-smi"):
        ragged = RAGGED_CACHE * passing
        if device is not None and device.memory_bytes is not None:
            ragged = min(
                ragged, max(0.0, device.memory_bytes - context_bytes - total - split - others)
            )
        cache.append(
            term_of(
                "cache of other lengths",
                ragged,
                "every batch has another length, so kept blocks fit few of them",
                src.ALLOCATOR,
            )
        )
    return cache
