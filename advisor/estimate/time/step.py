"""One optimizer step, and the run made of such steps."""

from __future__ import annotations

import math
from dataclasses import replace

from advisor.estimate.frameworks import framework_of
from advisor.estimate.memory.optimizer_states import entry_of, orthogonal_flop
from advisor.estimate.model.dims import Dims, dims_of
from advisor.estimate.padding import row_tokens
from advisor.estimate.resolved_run import DTYPE_BYTES, answers_each, resolve, trainable_params
from advisor.estimate.time.generation import SMOOTH, generate_s
from advisor.estimate.time.host import COMPILED_SHARE, forward_launches_s, sharding_s
from advisor.estimate.time.machine import (
    CPU_BYTES_PER_S,
    HIDDEN,
    Machine,
    gather_s,
    offloaded_s,
    reduce_s,
    sharding_of,
)
from advisor.estimate.time.work import (
    NARROW_DTYPES,
    attended_tokens,
    dequantisation_bytes,
    flops_per_token,
    passes_of,
    sends_all_to_all,
    tiles_s,
    traffic_bytes,
    weights_read_bytes,
    written_out_bytes,
)
from advisor.estimate.types import RunSpec, TimeEstimate
from advisor.ground.types import ModelShape
from advisor.methods import objective, update

# Factors by which nine in ten steps were shorter and longer than estimated, the 90 % quantile of
# the sources' own (tests/data_cases/throughput.yaml; docs/accuracy-time.md prints how many of each
# source lie inside). They are wider, as squares of logarithms add up, by ...
SHORTER, LONGER = 1.35, 1.45
WIDER = {
    "link": 1.3,  # ... what is not known of the links between several GPUs,
    "lengths": 1.5,  # the rows' lengths,
    "cores": 1.6,  # what else runs on a CPU: three runs beside others took 2.4 to 5.3 times as long
    "answers": 1.5,  # and how answers are written, of which no published speed was compared.
}


def band_of(spec: RunSpec, machine: Machine, *, known_lengths: bool) -> tuple[float, float]:
    """(factor by which a step may be shorter, longer)."""
    unknown = [
        name
        for name, is_so in (
            ("link", spec.gpus > 1 and bool(machine.link_guess)),
            ("lengths", not known_lengths),
            ("cores", not machine.overlaps),
            ("answers", "response_tokens" in spec.options),
        )
        if is_so
    ]
    return _wider(SHORTER, unknown), _wider(LONGER, unknown)


def _wider(factor: float, unknown: list[str]) -> float:
    if not unknown:
        return factor
    squares = math.log(factor) ** 2 + sum(math.log(WIDER[name]) ** 2 for name in unknown)
    return math.exp(math.sqrt(squares))


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


PADDED_LENGTH = 1.25  # rows of mixed lengths padded to the longest of their micro-batch
# Assumed of rows that are known to differ and no more: those of PEFT's method comparison fill 0.27
# of the cap (210 of 768 tokens), those of a published run on short dialogues 0.54 (69 of 128). A
# cap of many thousand tokens makes no instruction longer: rows of single questions have one to some
# hundred tokens, dialogues a thousand and more.
MIXED_SHARE, USUAL_ROW_TOKENS = 0.5, 400


def time_estimate(
    spec: RunSpec,
    shape: ModelShape,
    machine: Machine,
    *,
    tokens_total: int | None = None,
    rows_total: int | None = None,
    padded_length: float | None = None,
    unpacked: bool = False,
) -> TimeEstimate | None:
    """Time of one optimizer step, and of the run where its tokens are known; None where the shape
    holds no dimensions.

    `tokens_total` counts real tokens of all epochs, `rows_total` the rows they stand in (of all
    epochs); of a pair both sequences count, each cut at seq_len. Padding is added where rows are
    not packed: to `padded_length`, the tokens of a sequence of a micro-batch on average
    (`advisor.estimate.padding`), or as usual where that is not known. Where a spec says that rows
    are not packed (`unpacked`) and nothing tells their lengths, they are taken to have half of the
    cap on average, and no more than 400 tokens.
    """
    d = dims_of(shape)
    if d is None:
        return None
    sequences = objective(spec.objective).sequences_per_row
    length, padding = _lengths(
        spec, sequences, tokens_total, rows_total, padded_length, unpacked=unpacked
    )
    passed = spec.grad_accum * answers_each(
        spec
    )  # micro-batches of a step: each answer to a request is a row of its own
    tokens = spec.micro_batch_size * sequences * length
    by_transformers = spec.framework is None or framework_of(spec).accelerate
    all_experts = d.experts > 1 and sends_all_to_all(
        shape.id, shape.architecture, by_transformers=by_transformers
    )
    sharding = sharding_of(spec, d, machine)
    passes = passes_of(spec)
    reached = machine.flops * (machine.mixed_gain if spec.precision == "mixed" else 1.0)
    if spec.weights_dtype == "float32" and spec.precision == "pure":
        reached *= machine.float32_share
    rows_alone = tokens_total / rows_total / sequences if tokens_total and rows_total else None
    attended = attended_tokens(spec, length, rows_alone)
    compute = tokens * flops_per_token(spec, d, attended, machine, all_experts) / reached
    traffic = tokens * traffic_bytes(spec, d, machine, length) + written_out_bytes(spec, d)
    if machine.overlaps:
        traffic += weights_read_bytes(spec, d, tokens, all_experts=all_experts)
    traffic /= machine.bytes_per_s
    dequantise = dequantisation_bytes(spec, d) / machine.bytes_per_s
    forward_launches = forward_launches_s(spec, d, machine, rows=tokens)
    launches = passes * forward_launches * (COMPILED_SHARE if spec.compile else 1.0)
    fetches = sharding_s(spec, d, sharding or spec.sharding, passes=passes - 1)
    tiles = tiles_s(spec, d, machine, length)
    work = compute + traffic + tiles + dequantise
    host = launches + fetches
    micro = (work**SMOOTH + host**SMOOTH) ** (1 / SMOOTH) if machine.overlaps else work + host
    gather = gather_s(spec, d, machine, sharding, passes=passes - 1)
    gather += offloaded_s(spec, d, machine, tokens)
    micro = max(micro, gather) + (1 - HIDDEN) * min(micro, gather)
    generate = generate_s(spec, d, machine, forward_launches, length)
    optimizer = optimizer_s(spec, d, machine, sharding)
    reduce = reduce_s(spec, d, machine, sharding)
    step = passed * micro + optimizer + reduce + generate
    faster = 0.0
    if generate:
        served = replace(spec, options={**spec.options, "rollouts": "vllm"})
        faster = generate_s(served, d, machine, forward_launches, length)
    per_device = passed * tokens / padding
    steps = None
    if tokens_total:
        per_step = spec.micro_batch_size * spec.grad_accum * max(1, spec.gpus)
        steps = (
            math.ceil(rows_total / per_step)
            if rows_total and not spec.packing
            else math.ceil(tokens_total / (per_step * sequences * spec.seq_len))
        )
    parts = (
        ("compute", passed * (compute + tiles)),
        ("memory traffic", passed * traffic),
        ("launches", passed * launches),
        ("fetching shards in Python", passed * fetches),
        ("dequantisation", passed * dequantise),
        ("communication", passed * gather + reduce),
        ("optimizer", optimizer),
        ("writing answers", generate),
    )
    largest = max(parts, key=lambda part: part[1])[0]
    over = f", GPUs connected by {machine.link_words}" if spec.gpus > 1 else ""
    low, high = band_of(spec, machine, known_lengths=not (unpacked and padding > 1))
    return TimeEstimate(
        step_s=step,
        steps=steps,
        tokens_per_s_per_gpu=per_device / step,
        because=f"mostly {largest} on {machine.note}, {reached / 1e12:.3g} TFLOP/s reached{over}",
        generate_s=generate,
        served_s=faster,
        warnings=_guesses(spec, machine, sharding, known_lengths=not (unpacked and padding > 1)),
        parts=tuple(part for part in parts if part[1] > 0),
        low_s=step / low,
        high_s=step * high,
    )


def _guesses(
    spec: RunSpec, machine: Machine, sharding: str | None, *, known_lengths: bool
) -> tuple[str, ...]:
    """What was taken to be so because nothing says it."""
    found = []
    if spec.gpus > 1 and machine.link_guess and (machine.on_network or spec.sharding != "ddp"):
        found.append(
            f"time: how the GPUs are connected is not known; {machine.link_guess}"
            f" ({machine.link_s(1.0, spec.gpus) ** -1 / 1e9:.3g} GB/s)"
        )
    if sharding != spec.sharding:
        found.append(
            f"time: no sharding is named and a copy does not fit one GPU, so {sharding} is assumed"
        )
    if not known_lengths:
        found.append(
            f"time: rows are not packed and their lengths are not known, so they are taken to be"
            f" {_usual_row(spec):g} tokens on average; give lengths, or tokens_total with"
            " rows_total"
        )
    if spec.compute_dtype in NARROW_DTYPES and machine.narrow_gain is None:
        found.append(
            f"time: {spec.compute_dtype} products need units that {machine.note} does not have, or"
            " that are not in the catalogue: counted as 16 bit"
        )
    elif spec.compute_dtype == "nvfp4":
        found.append("time: the rate of nvfp4 products is not known: counted as fp8")
    return tuple(found)


def _lengths(
    spec: RunSpec,
    sequences: int,
    tokens_total: int | None,
    rows_total: int | None,
    padded_length: float | None,
    *,
    unpacked: bool,
) -> tuple[float, float]:
    """(tokens of a sequence of a micro-batch, how many times the real ones they are)."""
    cap = float(spec.seq_len)
    if spec.packing:
        return cap, 1.0
    if tokens_total and rows_total:
        mean = min(cap, tokens_total / rows_total / sequences)
    elif spec.lengths:
        mean, padded_length = row_tokens(spec.lengths, spec.seq_len, spec.micro_batch_size)
    elif unpacked:
        mean = _usual_row(spec)
    else:
        return cap, 1.0
    usual = mean * (PADDED_LENGTH if spec.micro_batch_size > 1 else 1.0)
    length = min(cap, max(mean, padded_length or usual))
    return length, max(1.0, length / mean)


def _usual_row(spec: RunSpec) -> float:
    """Tokens of a row where nothing tells them."""
    return min(MIXED_SHARE * spec.seq_len, float(USUAL_ROW_TOKENS))


def weights_bytes(spec: RunSpec, shape: ModelShape) -> tuple[float, float]:
    """(bytes of the base as it stands on disk, in 16 bit or the dtype of training; bytes of what
    the stage saves: the module in float32, or the model in the dtype of training).
    """
    d = dims_of(shape)
    width = DTYPE_BYTES.get(spec.weights_dtype, 2)
    saved = (
        0.0
        if d is None
        else trainable_params(d, spec) * 4
        if update(spec.update).is_module
        else shape.params * width
    )
    return float(shape.params * width), float(saved)
