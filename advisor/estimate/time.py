"""Duration of an optimizer step and of a run: compute, memory traffic, launches, optimizer and
communication. Arithmetic only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from advisor.estimate.dims import Dims, corrects_experts, dims_of
from advisor.estimate.frameworks import framework_of
from advisor.estimate.methods import special
from advisor.estimate.optimizer_states import entry_of, orthogonal_flop
from advisor.estimate.resolved_run import (
    DTYPE_BYTES,
    answers_at_once,
    answers_each,
    resolve,
    trainable_params,
)
from advisor.estimate.types import RunSpec, TimeEstimate
from advisor.ground.types import GpuSpec, ModelShape
from advisor.methods import objective, update
from advisor.methods.rewards import models_that_score

# Share of the best measured matmul that a tuned loop reaches, on a card of A100 class (published
# median MFU 0.6 there, 0.42 on H100) ...
MATMUL_SHARE = 0.72
# ... and how that share falls as cards get faster: from those two medians over their peaks of 312
# and 989 TFLOP/s.
REFERENCE_FLOPS, SLOWDOWN = 312e12, 0.22
# of the peak, where nobody measured the card (A100 0.86, H100 0.80 in ml-engineering's MAMF table)
BEST_MATMUL_SHARE = 0.82
ATTENTION_SHARE = 0.6  # flash attention's backward pass against a plain matmul on the same card
# Kernel launches of one layer in an eager loop, per pass: about 30 kernels at 10 us, and three more
# per adapted matrix with PEFT's Python.
LAUNCH_S, LAUNCH_ADAPTER_S = 0.35e-3, 0.09e-3
COMPILED_LAUNCH_SHARE = 0.4
SMOOTH = 3.0  # compute and launches overlap: a soft maximum
ELEMENTWISE_PASSES = 3  # each kept activation is written once and read twice
BANDWIDTH_SHARE = 0.8  # of the data sheet, what streaming kernels reach
NVLINK_BYTES_PER_S, PCIE_BYTES_PER_S = 180e9, 14e9  # one direction, achieved
# A LoRA step of SmolLM2-135M, 4 x 128 tokens, took 2 to 3 s on two cores (4 N FLOP per token):
# float32, per core.
CPU_FLOPS_PER_CORE = 5e10
# There nothing overlaps: a forward and backward pass of its 30 layers with LoRA took 0.16 s
# (float32) to 0.22 s (autocast) before the first token.
CPU_LAUNCHES = 2.2  # of what a card's launches take
# Logits in tiles without Triton (TRL's chunked loss): 2 ms a token of 49,152 words, forward and
# backward, most of it for pages of fresh memory.
CPU_TILE_S = 4e-8  # for each logit
# Bytes a weight that our AdamW over bfloat16 weights moves, by its operations (counted, not
# measured on a GPU): 15 in float32 that read and write, and the conversions.
CHUNK_TRAFFIC = 200
CPU_MIXED_GAIN = 1.4  # with instructions for bfloat16: 1.3 to 1.5 measured on such steps
CPU_BYTES_PER_S = 15e9
FORWARD_TILES = 0.35  # a forward pass's share of what tiles take in both
DECODE_SHARE = 0.3  # of the bandwidth, what `generate` reaches without a serving engine
# What a vLLM server reaches of it, how much of the launches its CUDA graphs leave, and the answers
# that it works on together. Assumed, from the design of vLLM: no run of ours has measured them.
SERVER_SHARE, SERVER_LAUNCH_SHARE, SERVER_TOGETHER = 0.7, 0.1, 256
TOGETHER = 512  # answers that a GPU holds in one call, mostly
SENT_BYTES_PER_S = 2e9  # weights for a server, written and read once
PADDED_LENGTH = 1.25  # rows of mixed lengths padded to the longest of their micro-batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What time depends on."""

    flops: float  # that a training loop reaches, per device
    bytes_per_s: float
    link_bytes_per_s: float
    launch_share: float
    note: str
    overlaps: bool = True  # launches run ahead of compute
    tile_s: float = 0.0  # for each logit of a loss in tiles, beside what its matrix product takes
    # under precision: mixed against pure; the rates of cards are those of 16-bit formats already
    mixed_gain: float = 1.0


def machine_of(
    gpu: GpuSpec | None,
    *,
    cpu_cores: int | None = None,
    cpu_bf16: bool = False,
    interconnect: str | None = None,
) -> Machine | None:
    """Achieved rates of a card, or of the CPU where cores are given instead; None where the card's
    rates are not known.
    """
    if gpu is None:
        if not cpu_cores:
            return None
        return Machine(
            flops=CPU_FLOPS_PER_CORE * cpu_cores,
            bytes_per_s=CPU_BYTES_PER_S,
            link_bytes_per_s=CPU_BYTES_PER_S,
            launch_share=CPU_LAUNCHES,
            overlaps=False,
            tile_s=CPU_TILE_S,
            note=f"{cpu_cores} CPU cores",
            mixed_gain=CPU_MIXED_GAIN if cpu_bf16 else 1.0,
        )
    if gpu.bf16_flops is None or gpu.bandwidth_bytes_per_s is None:
        return None
    best = gpu.achieved_flops or BEST_MATMUL_SHARE * gpu.bf16_flops
    flops = (
        best * MATMUL_SHARE * (REFERENCE_FLOPS / gpu.bf16_flops) ** SLOWDOWN
        if gpu.bf16_flops > REFERENCE_FLOPS
        else best * MATMUL_SHARE
    )
    text = f"{interconnect or ''} {gpu.id} {gpu.name}".lower()
    link = (
        NVLINK_BYTES_PER_S
        if any(word in text for word in ("sxm", "nvlink", "nvl", "hgx", "gb200", "b200"))
        and interconnect != "pcie"
        else PCIE_BYTES_PER_S
    )
    return Machine(
        flops=flops,
        bytes_per_s=gpu.bandwidth_bytes_per_s * BANDWIDTH_SHARE,
        link_bytes_per_s=link,
        launch_share=1.0,
        note=gpu.name,
    )


def time_estimate(
    spec: RunSpec,
    shape: ModelShape,
    machine: Machine,
    *,
    tokens_total: int | None = None,
    rows_total: int | None = None,
    padded_length: float | None = None,
) -> TimeEstimate | None:
    """Time of one optimizer step, and of the run where its tokens are known; None where the shape
    holds no dimensions.

    `tokens_total` counts real tokens of all epochs, `rows_total` the rows they stand in (of all
    epochs); of a pair both sequences count, each cut at seq_len. Padding is added where rows are
    not packed: to `padded_length`, the tokens of a sequence of a micro-batch on average
    (`advisor.estimate.padding`), or as usual where that is not known.
    """
    d = dims_of(shape)
    if d is None:
        return None
    sequences = objective(spec.objective).sequences_per_row
    length, padding = float(spec.seq_len), 1.0
    if tokens_total and rows_total and not spec.packing:
        mean = min(float(spec.seq_len), tokens_total / rows_total / sequences)
        usual = mean * (PADDED_LENGTH if spec.micro_batch_size > 1 else 1.0)
        length = min(float(spec.seq_len), max(mean, padded_length or usual))
        padding = max(1.0, length / mean)
    passed = spec.grad_accum * answers_each(
        spec
    )  # micro-batches of a step: each answer to a request is a row of its own
    tokens = spec.micro_batch_size * sequences * length
    passes = (
        4 if spec.gradient_checkpointing else 3
    )  # forward, backward as two, and the forward pass run again
    reached = machine.flops * (machine.mixed_gain if spec.precision == "mixed" else 1.0)
    compute = tokens * _flops(spec, d, length) / reached
    traffic = (tokens * _traffic(spec, d) + _written_out(spec, d)) / machine.bytes_per_s
    forward_launches = _forward_launches_s(spec, d, machine)
    launches = passes * forward_launches
    launches *= COMPILED_LAUNCH_SHARE if spec.compile else 1.0
    linear_experts = framework_of(spec.framework).linear_experts
    dequantise = 0.0
    if spec.quantization:  # every pass reads half a byte and writes and reads two for each weight
        dequantise = (
            (passes - 1 if spec.gradient_checkpointing else 2)
            * (d.linear_params + (d.routed_params if linear_experts else 0))
            * 4.5
            / machine.bytes_per_s
        )
    work = compute + traffic + _tiles_s(spec, d, machine, length)
    micro = (
        (work**SMOOTH + launches**SMOOTH) ** (1 / SMOOTH) if machine.overlaps else work + launches
    ) + dequantise
    gather = _gather_s(spec, d, machine)
    micro = max(micro, gather) + 0.15 * min(micro, gather)
    generate = _generate_s(spec, d, machine, forward_launches, length)
    step = passed * micro + _optimizer_s(spec, d, machine) + _reduce_s(spec, d, machine) + generate
    served = replace(spec, options={**spec.options, "rollouts": "vllm"})
    faster = _generate_s(served, d, machine, forward_launches, length)
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
        ("compute", compute),
        ("memory traffic", traffic),
        ("launches", launches),
        ("dequantisation", dequantise),
        ("communication", gather),
    )
    largest = max(parts, key=lambda part: part[1])[0]
    return TimeEstimate(
        step_s=step,
        steps=steps,
        tokens_per_s_per_gpu=per_device / step,
        because=f"mostly {largest} on {machine.note}, {reached / 1e12:.3g} TFLOP/s reached",
        generate_s=generate,
        served_s=faster,
    )


def _forward_launches_s(spec: RunSpec, d: Dims, machine: Machine) -> float:
    """Time to start all kernels of one forward pass."""
    layers_with_module = special(update(spec.update), "adapted")
    adapted = len(layers_with_module(d, spec)) if layers_with_module else 0
    a_layer = LAUNCH_S + LAUNCH_ADAPTER_S * adapted * (2 if spec.quantization else 1)
    return d.layers * a_layer * machine.launch_share


def _flops(spec: RunSpec, d: Dims, length: float) -> float:
    """FLOP per token: 2 per weight forward, 2 backward for activations, 2 for weights that train, 2
    when run again; attention beside.
    """
    weights = (
        d.active - (d.embedding_params - d.head_params) - d.other_params
        if not d.encoder
        else d.linear_params
    )
    factor = 4.0 if update(spec.update).is_module else 6.0
    if spec.gradient_checkpointing:
        factor += 2.0
    what = objective(spec.objective)
    own = special(what, "flop_factor")
    if own:
        factor = own(spec, factor)
    elif what.generates:
        # Answers are read once more by the reference where moving away has a price, and by the
        # reward model.
        factor += 2.0 * (bool(spec.options.get("beta")) + models_that_score(spec.options))
    factor += 2.0 * what.extra_forwards
    other_models = special(what, "beside_flops")
    beside = other_models(spec, weights) if other_models else 0.0
    # 4 q s forward and 8 backward; a causal kernel skips half.
    attention = (
        (12.0 + (4.0 if spec.gradient_checkpointing else 0.0)) * d.layers * d.q_size * length
    )
    attention *= 1.0 if spec.attention == "eager" else 0.5 / ATTENTION_SHARE
    corrected = 0.0
    if corrects_experts(d, spec):  # experts whose sum with the correction gets a gradient
        corrected = 2.0 * d.routed_layers * d.used_experts * 3 * d.hidden * d.expert_width
    return factor * weights + attention + corrected + beside


def _traffic(spec: RunSpec, d: Dims) -> float:
    """Bytes per token that elementwise kernels, norms and the loss move."""
    layer = 24 * d.hidden + 4 * (d.q_size + d.kv_size) + 8 * d.width
    again = 1.3 if spec.gradient_checkpointing else 1.0
    logits = 0 if d.encoder else 16 * d.vocab
    return ELEMENTWISE_PASSES * again * d.layers * layer + logits


def _written_out(spec: RunSpec, d: Dims) -> float:
    """Bytes per micro-batch that move because a module computes weights anew: each forward pass
    reads the old and writes and reads the new ones, the backward pass their gradient.
    """
    own = special(update(spec.update), "written_out")
    if own is None:
        return 0.0
    size = own(d, spec) * d.routed_layers * DTYPE_BYTES.get(spec.weights_dtype, 2)
    return float(size * (3 * (2 if spec.gradient_checkpointing else 1) + 2))


def _tiles_s(spec: RunSpec, d: Dims, machine: Machine, length: float) -> float:
    """Time per micro-batch for logits in tiles, where a machine is slow at them: of both sequences
    of a pair, of a written answer alone.
    """
    what = objective(spec.objective)
    if what.logits != "tiles" or spec.loss not in (None, "chunked"):
        return 0.0
    scored = (
        min(length, float(spec.options.get("response_tokens") or length))
        if what.generates
        else length
    )
    times = 1 + FORWARD_TILES * what.extra_forwards
    return (
        times * spec.micro_batch_size * what.sequences_per_row * scored * d.vocab * machine.tile_s
    )


def _gather_s(spec: RunSpec, d: Dims, machine: Machine) -> float:
    """Time per micro-batch to gather sharded weights for every pass over them."""
    if spec.gpus < 2 or spec.sharding not in ("fsdp", "zero3"):
        return 0.0
    size = _weight_bytes(spec, d, routed=d.routed_params, width=2)
    passes = 3 if spec.gradient_checkpointing else 2
    return passes * size * (spec.gpus - 1) / spec.gpus / machine.link_bytes_per_s


def _weight_bytes(spec: RunSpec, d: Dims, *, routed: float, width: int) -> float:
    """Bytes of the weights with so many parameters of routed experts, which a 4-bit base leaves in
    16 bit unless the stack has them as linear layers.
    """
    if spec.quantization != "nf4":
        return (d.params - d.routed_params + routed) * width
    of_experts = 0.55 if framework_of(spec.framework).linear_experts else width
    return (d.params - d.routed_params) * 0.55 + routed * of_experts


def _reduce_s(spec: RunSpec, d: Dims, machine: Machine) -> float:
    """Time per optimizer step to add up gradients; half of it hides behind the backward pass."""
    if spec.gpus < 2:
        return 0.0
    size = trainable_params(d, spec) * 2
    return 0.5 * 2 * size * (spec.gpus - 1) / spec.gpus / machine.link_bytes_per_s


def _optimizer_s(spec: RunSpec, d: Dims, machine: Machine) -> float:
    """Time of one optimizer step: weights, gradients and both moments are read, all but the
    gradients written; under Muon every device makes all matrices orthogonal.
    """
    trainable = trainable_params(d, spec)
    width = DTYPE_BYTES.get(spec.weights_dtype, 2) if not update(spec.update).is_module else 4
    share = max(1, spec.gpus) if spec.sharding in ("fsdp", "zero2", "zero3") else 1
    name = spec.optimizer or "adamw_fused"
    entry = entry_of(name)
    moved = 7 * width * (1 if "fused" in name else 2)
    if entry.width is not None and entry.width < 2:  # weights, gradients and narrow moments
        moved = 3 * width + 4
    if entry.holds == "chunks":
        moved = CHUNK_TRAFFIC
    speed = machine.bytes_per_s if "cpu" not in name else CPU_BYTES_PER_S * 4
    seconds = trainable * moved / share / speed
    if entry.keeps == "momentum of matrices":  # asked first: every candidate comes here
        seconds += orthogonal_flop(resolve(spec, d)) / machine.flops
    return seconds


def _generate_s(
    spec: RunSpec, d: Dims, machine: Machine, token_launch_s: float, length: float
) -> float:
    """Time to write the answers a reinforcement step learns from.

    The requests are read at once; then for every token the weights are read, once for all answers
    that are written together.
    """
    what = objective(spec.objective)
    own_share = special(what, "written_share")
    share = own_share(spec) if own_share else 1.0
    if not what.generates or not share:
        return 0.0
    answer_tokens = int(spec.options.get("response_tokens") or spec.seq_len // 2)
    request_tokens = max(0.0, length - answer_tokens)
    answers = spec.micro_batch_size * spec.grad_accum * answers_each(spec) * share
    if spec.options.get("rollouts") == "vllm":
        return _served_s(spec, d, machine, token_launch_s, answers, request_tokens)
    together = answers_at_once(spec)
    if spec.framework is None and share == 1.0:  # ours take all of a step, if memory holds them
        together = max(together, min(int(answers), TOGETHER))
    a_token = _token_s(spec, d, machine, token_launch_s, together)
    times = answers / together if share < 1.0 else math.ceil(answers / together)
    return answers * request_tokens * 2 * d.active / machine.flops + times * answer_tokens * a_token


def _served_s(
    spec: RunSpec, d: Dims, machine: Machine, launch_s: float, answers: float, request_tokens: float
) -> float:
    """Time of a step's answers from a vLLM server on a device of the same kind: requests are read
    once for all of their answers, and the policy is sent before.
    """
    answer_tokens = int(spec.options.get("response_tokens") or spec.seq_len // 2)
    together = int(max(1.0, min(answers, SERVER_TOGETHER)))
    a_token = _token_s(
        spec, d, machine, launch_s * SERVER_LAUNCH_SHARE, together, share=SERVER_SHARE
    )
    a_token = max(a_token, together * 2 * d.active / machine.flops)
    requests = answers / answers_each(spec) * request_tokens * 2 * d.active / machine.flops
    sent = trainable_params(d, spec) * 2 * 2 / SENT_BYTES_PER_S
    return requests + answers / together * answer_tokens * a_token + sent


def _token_s(
    spec: RunSpec,
    d: Dims,
    machine: Machine,
    launch_s: float,
    together: int,
    share: float = DECODE_SHARE,
) -> float:
    """Time to write one token of so many answers: the weights are read once for all of them, at
    this share of the bandwidth.
    """
    # Each answer uses experts of its own: together they read most of them.
    read = 1 - (1 - d.used_experts / d.experts) ** together if d.experts > 1 else 0.0
    width = DTYPE_BYTES.get(spec.weights_dtype, 2)
    held = _weight_bytes(spec, d, routed=d.routed_params * read, width=width)
    weights_s = held / (machine.bytes_per_s * share)
    return float((weights_s**SMOOTH + launch_s**SMOOTH) ** (1 / SMOOTH))


def looking_s(
    spec: RunSpec, shape: ModelShape, machine: Machine, *, tokens: float, at_once: int
) -> tuple[float, float]:
    """(time of a forward pass over one row of so many tokens, time to write one token of `at_once`
    answers), without gradients; zeros where the shape holds no dimensions.
    """
    d = dims_of(shape)
    if d is None:
        return 0.0, 0.0
    launches = _forward_launches_s(spec, d, machine)
    work = tokens * (2 * d.active / machine.flops + FORWARD_TILES * d.vocab * machine.tile_s)
    whole = (
        (work**SMOOTH + launches**SMOOTH) ** (1 / SMOOTH) if machine.overlaps else work + launches
    )
    return whole, _token_s(spec, d, machine, launches, at_once)


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
