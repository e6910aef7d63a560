"""Peak memory of one device: the largest of a run's moments, each a sum of named terms.

Arithmetic only.

N weights, L layers, H hidden, I MLP width, V vocabulary, T tokens of one micro-batch on one device,
g devices. Bytes everywhere. Not covered: vision towers, tensor and context parallelism, offloaded
activations' host side, dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from advisor.estimate import sources as src
from advisor.estimate.memory.activations import (
    activations,
    evaluation_memory,
    last_hidden,
    loss_memory,
    recomputed_layer,
    rollout_memory,
)
from advisor.estimate.memory.bands import band, doubts_of, guess_note, need_band
from advisor.estimate.memory.static import (
    base_while_loading,
    cast_weights,
    communication_buckets,
    earlier_gradients,
    first_gradients,
    gathered_weights,
    gradients,
    optimizer_states,
    optimizer_temporaries,
    other_roles,
    weights,
)
from advisor.estimate.methods import special
from advisor.estimate.run import Run
from advisor.estimate.types import CACHE_TERMS, MemoryEstimate, Moment, Term, term_of
from advisor.ground.units import GIB

ON_PROCESSOR = "without a GPU the processor trains, in slow steps and in RAM"
# Counters that show blocks which the allocator holds and no tensor does.
HOLDS_CACHE = ("reserved", "unknown", "nvidia-smi")


class HeldBlocks(NamedTuple):
    """What PyTorch's allocator holds beyond the allocated peak, as shares of the memory that comes
    and goes with a micro-batch: a freed block's place holds few tensors of other sizes.

    Medians over 50 simulated runs each (activations with and without checkpointing, losses of 0 to
    95 % of what passes, gradients of 0 to 3 times as much).
    """

    kept: float  # all micro-batches of one length
    lost: float  # of it, what cannot be given back when memory is short
    anew: float  # held once more by a micro-batch that is longer than all before it


FIXED, EXPANDING = HeldBlocks(0.30, 0.22, 0.30), HeldBlocks(0.08, 0.01, 0.0)
# Micro-batches that are longer than all before, each by its length over the longest and without
# the last, where rows are padded to the longest of a batch.
RECORDS = 3.0
# What published runs showed beyond all named terms, where a counter of the process or of the
# allocator was read. Fitted so that few runs are predicted too low, which costs more than too high
# (`python -m benchmarks refit`). Of it, what must be there: the least with which each published run
# that ran out of memory needs more than its GPU had.
UNNAMED = 0.07
UNNAMED_NEEDED = 0.03
BEYOND = "what published runs show beyond the other terms"
LIBRARIES = f"buffers of libraries, {UNNAMED_NEEDED:.0%}: {BEYOND}"
OTHER_STREAMS = f"blocks of other streams, {UNNAMED - UNNAMED_NEEDED:.0%}: {BEYOND}"
# The same in RAM, beyond live tensors, of SmolLM2-135M cut to 4 to 30 layers: 13 to 26 % of what
# comes and goes where activations are kept. Where layers are run again, their blocks serve no
# logits, and logits that a shorter micro-batch freed do not serve a longer one, since gradients lie
# between: a third to all of the loss was held once more by our two losses on the CPU, nothing by
# TRL's.
CPU_BUFFER_BYTES, CPU_KEPT, CPU_LOSS_KEPT = int(0.1 * GIB), 0.15, 0.5
# Under autocast: bfloat16 kernels that oneDNN compiles for each shape.
CPU_KERNEL_BYTES = int(0.3 * GIB)
# Memory that CUDA does not hand out: it reports 79.2 GiB of an "80 GB" GPU whose driver lists 80.0,
# 39.5 of 40.0, 23.65 of 24.0 (PyTorch's out-of-memory messages: "has a total capacity of").
DRIVER_BYTES, DRIVER_SHARE = int(0.6 * GIB), 0.014
CONTEXT_BYTES, EAGER_CONTEXT_BYTES, NCCL_BYTES = int(0.6 * GIB), int(1.3 * GIB), int(0.6 * GIB)


def server_share(run: Run) -> list[Term]:
    """What a vLLM server takes that shares the trainer's GPU: its share, whatever it needs."""
    share, gpu = run.options.get("server_memory"), run.device.gpu
    if not share or gpu is None or gpu.memory_bytes is None:
        return []
    because = f"launch.vllm.memory {share:g} of {gpu.memory_bytes / GIB:.0f} GiB"
    return [term_of("vLLM server on the same GPU", share * gpu.memory_bytes, because, src.COUNT)]


def memory_estimate(run: Run) -> MemoryEstimate | None:
    """The peak of one device with its terms and band; None if the model's dimensions are not known.

    The device tells an old GPU's CUDA from a new one's; its memory bounds what an allocator can
    keep and a counter can read.
    """
    if not run.is_sized:
        return None
    cpu, shape = run.device.is_cpu, run.model
    casts = cast_weights(run)
    held_weights = weights(run)
    static = [*held_weights, *other_roles(run), optimizer_states(run), *communication_buckets(run)]
    server = server_share(run)
    static += [] if run.trainer["server_sleeps"] else server
    full_gradients = gradients(run)
    kept = earlier_gradients(run)
    held, scoring, layer = list(activations(run)), loss_memory(run), list(recomputed_layer(run))
    hidden = last_hidden(run)
    loss = _bytes([hidden, *scoring])
    transient = _bytes([*held, *casts]) + max(loss, _bytes(layer))
    divided = run.sharding in ("fsdp", "zero3", "zero2")
    readable = None if cpu else readable_bytes(run)
    blocks = _blocks_held(run, transient)
    whole = run.device.total_bytes
    ends, within = gathered_weights(run, layers=0), gathered_weights(run, layers=2)
    on_their_way = first_gradients(run, layers=2)
    room = AllocatorState(
        flowing=_bytes([*held, *scoring, *layer, *casts]), blocks=blocks, readable=readable,
        unfit=_unfit(run, _bytes(layer), _bytes(scoring)) if cpu else 0.0,
        context=[] if cpu else _context(run),
    )  # fmt: skip

    def so_far(first: list[Term]) -> list[Term]:
        """Gradients while activations stand: all of earlier micro-batches, and those on their way
        to be divided.
        """
        return [*kept, *(first if divided or not kept else [])]

    last = on_their_way if divided and not run.embeddings else []
    moments = [
        _moment("loss and start of the backward pass", run, room, [*static, *casts, *ends,
        *so_far(first_gradients(run, layers=0)), *held, hidden, *scoring]),
        _moment("backward pass through one layer", run, room, [*static, *casts, *within,
        *so_far(on_their_way), *held, *layer]),
        _moment("end of the backward pass", run, room, [*static, *within, *full_gradients, *last,
        *layer]),
        _moment("optimizer step", run, room, [*static, *ends, *full_gradients,
        *optimizer_temporaries(run)]),
    ]  # fmt: skip
    if run.stated.get("evaluation") is not False:
        testing = [*static, *within, *evaluation_memory(run)]
        moments.append(_moment("evaluation", run, room, testing))
    nothing_yet = room._replace(flowing=0, unfit=0.0, blocks=())
    if whole_base := base_while_loading(run):
        moments.append(_moment("loading", run, nothing_yet, whole_base))
    if server and run.trainer["server_sleeps"]:
        moments.append(_moment("generating answers", run, nothing_yet, [*static, *server]))
    share = special(run.objective, "written_share")
    # PPO answers the held-out prompts of its evaluations itself, beside the server.
    own = special(run.objective, "answers_at_once") is not None
    served = run.options.get("rollouts") == "vllm" and not own
    if run.objective.generates and not served and (share is None or share(run) > 0):
        writing = [*static, *casts, *within, *rollout_memory(run)]
        moments.append(_moment("generating answers", run, room, writing))
    top = max(moments, key=lambda found: found.need + found.cached)
    peak = top.need + top.cached
    if readable is not None:
        peak = min(peak, readable)
    need = max([found.need for found in moments])
    doubts = doubts_of(run)
    below, above = band(doubts)
    low, high = round(peak * (1 - below)), round(peak * (1 + above))
    sizes = {"static_bytes": _bytes(static), "weights_bytes": _bytes(held_weights)}
    need_low, need_high = need_band(need, **sizes, doubts=doubts)
    warnings = [shape.note] if shape.origin == "size" and shape.note else []
    if not run.trainer.is_known:
        warnings.append(guess_note(run))
    if run.dims.encoder and run.stage.objective != "sft":
        warnings.append("an encoder: estimated as a classifier")
    if cpu:
        warnings.append(ON_PROCESSOR)
    return MemoryEstimate(
        moments=tuple([found.moment for found in moments]),
        low_bytes=low,
        # How much the driver and the context keep is an estimate too: the band ends at the GPU.
        high_bytes=min(high, whole) if whole and not cpu else high,
        need_bytes=need,
        need_low_bytes=need_low,
        need_high_bytes=need_high,
        readable_bytes=readable,
        doubts=doubts,
        warnings=tuple(warnings),
    )


def readable_bytes(run: Run) -> int | None:
    """The most that the counter can show on this device: its memory less what the driver keeps, and
    for a counter of the allocator less the CUDA context too; None if the memory is not known.
    """
    total = run.device.total_bytes
    if total is None:
        return None
    kept = min(DRIVER_BYTES, DRIVER_SHARE * total)
    beside = 0 if _shows_context(run) else _context_bytes(run)
    return max(0, round(total - kept - beside))


class AllocatorState(NamedTuple):
    """What the allocator holds beside a moment's tensors, and how much there is."""

    flowing: int  # bytes that come and go in a step, all phases added up
    unfit: float  # bytes of RAM that were freed and fit nothing that comes later
    blocks: Sequence[Term]  # blocks split and lost, then cached ones
    # What the driver holds beside the allocator, as far as the counter shows it.
    context: Sequence[Term]
    # The most its counter can show, which cached blocks fill and do not exceed.
    readable: int | None


class CountedMoment(NamedTuple):
    """A moment with what of its bytes must be there, and what is cached beside them."""

    moment: Moment  # with all its terms
    need: int  # bytes without the cache
    cached: int  # bytes that a counter shows beyond the need


def _moment(name: str, run: Run, room: AllocatorState, terms: Sequence[Term]) -> CountedMoment:
    extra: list[Term] = []
    cache: list[Term] = []
    readable = room.readable
    if run.device.is_cpu:
        extra += _process_memory(run, room)
    else:
        cache = list(room.blocks[1:])
        extra += [*room.blocks[:1], *room.context]
        if run.counter in HOLDS_CACHE:
            so_far = _bytes(terms) + _bytes(extra)
            size = UNNAMED_NEEDED * so_far
            extra.append(term_of("not accounted for", size, LIBRARIES, src.UNNAMED))
            if run.trainer.is_known:  # guesses take the safer side already
                size = (UNNAMED - UNNAMED_NEEDED) * so_far
                cache.append(term_of(CACHE_TERMS[2], size, OTHER_STREAMS, src.UNNAMED))
    need = _bytes(terms) + _bytes(extra)
    whole = _bytes(cache)
    if readable is not None and whole > readable - need:
        cache = _capped(cache, readable - need)
    found = tuple([term for term in (*terms, *cache, *extra) if term.size_bytes > 0])
    cached = whole if readable is None else min(whole, max(0, readable - need))
    return CountedMoment(Moment(name=name, terms=found), need, cached)


def _process_memory(run: Run, room: AllocatorState) -> Iterator[Term]:
    """What a process that trains on the CPU holds in RAM beside its tensors."""
    because = (
        f"buffers of libraries, and {CPU_KEPT:.0%} of what a step makes and frees"
        f"{', and what fits nothing later' if room.unfit else ''}: malloc returns what lies on top"
        " alone"
    )
    kept = CPU_BUFFER_BYTES + CPU_KEPT * room.flowing + room.unfit
    yield term_of("freed memory not returned", kept, because, src.MALLOC)
    if run.precision == "mixed":
        because = "of bfloat16 products, one for each shape"
        yield term_of("compiled kernels", CPU_KERNEL_BYTES, because, src.MALLOC)
    because = "interpreter, torch and tokenizer in RAM"
    yield term_of("Python and libraries", 0.7 * GIB, because, src.MALLOC)


def _capped(cache: Sequence[Term], room: int) -> list[Term]:
    """Cached blocks as far as there is room: the rest is given back."""
    kept: list[Term] = []
    for term in cache:
        size = min(term.size_bytes, max(0, room))
        if 0 < size < term.size_bytes:
            because = f"{term.because}; the rest is given back on this GPU"
            term = replace(term, size_bytes=size, because=because)
        if size:
            kept.append(term)
            room -= size
    return kept


def _bytes(terms: Iterable[Term]) -> int:
    return sum([term.size_bytes for term in terms])


def _shows_context(run: Run) -> bool:
    return run.counter == "nvidia-smi" or (
        run.counter == "unknown" and not run.trainer["logs_allocator"]
    )


def _loads_all_kernels(run: Run) -> bool:
    """Whether CUDA is older than 12.2, by what is said of it or else by the GPU's age."""
    capability = None if run.device.gpu is None else run.device.gpu.compute_capability
    return capability is not None and capability < (8, 0) and not run.trainer.loads_lazily


def _context_bytes(run: Run) -> int:
    eager = _loads_all_kernels(run)
    return (EAGER_CONTEXT_BYTES if eager else CONTEXT_BYTES) + (NCCL_BYTES if run.gpus > 1 else 0)


def _context(run: Run) -> list[Term]:
    if not _shows_context(run):
        return []
    loaded = ", all loaded at the start before CUDA 12.2" if _loads_all_kernels(run) else ""
    because = f"driver, kernels{loaded}{' and NCCL' if run.gpus > 1 else ''}"
    name = "CUDA context" if run.device.is_cuda else "driver and kernels"
    return [term_of(name, _context_bytes(run), because, src.CONTEXT)]


def _unfit(run: Run, layer: int, loss: int) -> float:
    """Bytes of RAM that a run again of one layer and the loss freed and that serve nobody later."""
    if run.checkpointing == "none":
        return 0.0
    return layer + (CPU_LOSS_KEPT * loss if run.loss in ("parts", "full") else 0.0)


def _blocks_held(run: Run, transient: int) -> list[Term]:
    """What the allocator holds beyond the allocated peak: blocks split and lost, then what it gives
    back when memory is short.

    Args:
        transient: Bytes that come and go in a micro-batch.
    """
    if run.device.is_cpu or not transient or run.counter not in HOLDS_CACHE:
        return []
    expands = run.trainer["expandable_segments"] and run.device.is_cuda
    shares = EXPANDING if expands else FIXED
    differ = 1.0 if len(run.lengths) > 1 else run.ragged
    differ = float(run.trainer["packs_unevenly"]) if run.stage.packing else differ
    again, part = RECORDS * differ, "of what a step makes and frees"
    because = f"split blocks that cannot be returned: {shares.lost:.0%} {part}"
    free = shares.kept - shares.lost
    returned = (
        f"free blocks that fit no other size, {free:.0%} {part}: returned when memory is short"
    )
    anew = (
        f"each batch longer than all before it needs new blocks, {shares.anew:.0%} {part},"
        f" {again:.1f} times before the longest"
    )
    return [
        term_of("fragmentation", shares.lost * transient, because, src.ALLOCATOR),
        term_of(CACHE_TERMS[0], free * transient, returned, src.ALLOCATOR),
        term_of(CACHE_TERMS[1], shares.anew * again * transient, anew, src.ALLOCATOR),
    ]
