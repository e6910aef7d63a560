"""One optimizer step, and the run made of such steps."""

from __future__ import annotations

import math

from msgspec.structs import replace

from advisor.estimate.memory.optimizer_states import entry_of, orthogonal_flop
from advisor.estimate.methods import special
from advisor.estimate.padding import row_tokens
from advisor.estimate.run import Run
from advisor.estimate.time.machine import (
    COMPILED_SHARE,
    CPU_BYTES_PER_S,
    HIDDEN,
    Machine,
    forward_launches_s,
    offloaded_s,
    weight_bytes,
)
from advisor.estimate.time.work import (
    BLACKWELL,
    FORWARD_TILES,
    NARROW_DTYPES,
    attended_tokens,
    dequantisation_bytes,
    flops_per_token,
    passes_of,
    tiles_s,
    traffic_bytes,
    weights_read_bytes,
    written_out_bytes,
)
from advisor.estimate.types import TimeEstimate

# Factors by which nine in ten steps were shorter and longer than estimated, the 90 % quantile of
# the sources' own (tests/data_cases/throughput.yaml; docs/estimates.md prints how many of each
# source lie inside). They are wider, as squares of logarithms add up, by ...
SHORTER, LONGER = 1.35, 1.45
WIDER = {
    "link": 1.3,  # ... what is not known of the links between several GPUs,
    "lengths": 1.5,  # the rows' lengths,
    "cores": 1.6,  # what else runs on a CPU: three runs beside others took 2.4 to 5.3 times as long
    "card": 1.5,  # a card whose published speeds differ twice as much (B200 to GB300),
    "experts": 1.9,  # how mixtures share and multiply their experts,
    "answers": 1.5,  # and how answers are written, of which no published speed was compared.
}


def band_of(run: Run, machine: Machine, *, known_lengths: bool) -> tuple[float, float]:
    """(factor by which a step may be shorter, longer)."""
    unknown = [
        name
        for name, is_so in (
            ("link", run.gpus > 1 and bool(machine.link_guess)),
            ("lengths", not known_lengths),
            ("cores", not machine.overlaps),
            ("card", machine.generation == BLACKWELL),
            ("experts", run.gpus > 1 and run.dims.experts > 1),
            ("answers", "response_tokens" in run.options),
        )
        if is_so
    ]
    return _wider(SHORTER, unknown), _wider(LONGER, unknown)


def _wider(factor: float, unknown: list[str]) -> float:
    return math.exp(math.hypot(math.log(factor), *(math.log(WIDER[name]) for name in unknown)))


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


def optimizer_s(run: Run, machine: Machine, sharding: str | None) -> float:
    """Weights, gradients and both moments are read, all but the gradients written; under Muon every
    device makes all matrices orthogonal.

    With no optimizer named it is a fused AdamW; of another framework PyTorch's usual one, which
    works over lists.
    """
    trainable = run.trainable
    width = run.stated_bytes if not run.is_module else 4
    share = run.gpus if sharding in ("fsdp", "zero2", "zero3") else 1
    usual = "optimizer" in run.left_open and not run.is_ours
    name = "adamw" if usual else run.stage.optimizer
    entry = entry_of(name)
    # Others round at random in one kernel: torchao's is compiled, Halo's is Triton's.
    is_one = "fused" in name or (entry.holds == "chunks" and not run.is_ours)
    moved: float = (FUSED if is_one else LISTS) * width
    if entry.width is not None and entry.width < 2:  # weights, gradients and narrow moments
        moved = 3 * width + 4
    if entry.holds == "chunks" and run.is_ours:
        moved = CHUNK_TRAFFIC
    moved += CLIPPED * width
    if run.master:  # beside 16 bit: read, written, and copied back
        moved += 10
    seconds = trainable * moved / share / machine.bytes_per_s
    if "cpu" in name or run.device.offloads:
        # One kernel over float32 (deepspeed, csrc/adam/cpu_adam.cpp; FSDP offload: torch's own).
        on_host = trainable * ON_HOST / share / (CPU_BYTES_PER_S * CPU_CHANNELS)
        crossings = 2
        if (sharding or "").startswith("zero"):
            # The sum so far comes to be added to, and goes (deepspeed, stage3.py, partition_grads).
            crossings += 2 * (run.stage.grad_accum - 1)
        crossed = trainable * crossings * width / share / machine.host_bytes_per_s
        seconds = on_host + crossed
    if entry.keeps == "momentum of matrices":  # asked first: every candidate comes here
        seconds += orthogonal_flop(run) / machine.flops
    return seconds


PADDED_LENGTH = 1.25  # rows of mixed lengths padded to the longest of their micro-batch
# Assumed of rows that are known to differ and no more: those of PEFT's method comparison fill 0.27
# of the cap (210 of 768 tokens), those of a published run on short dialogues 0.54 (69 of 128). A
# cap of many thousand tokens makes no instruction longer: rows of single questions have one to some
# hundred tokens, dialogues a thousand and more.
MIXED_SHARE, USUAL_ROW_TOKENS = 0.5, 400


def time_estimate(run: Run, machine: Machine) -> TimeEstimate | None:
    """Time of one optimizer step, and of the run if its tokens are known; None if the model's
    dimensions are not known.

    Padding is added if rows are not packed: to the padded length, or as usual if that is not known.
    If a description says that rows are not packed and nothing tells their lengths, they are taken
    to have half of the cap on average, and no more than 400 tokens.
    """
    if not run.is_sized:
        return None
    d, stage, rows = run.dims, run.stage, run.rows
    sequences = run.sequences // stage.micro_batch_size  # of a row
    length, padding = _lengths(run)
    # Micro-batches of a step: each answer to a request is a row of its own.
    passed = stage.grad_accum * run.answers_a_row
    tokens = run.sequences * length
    by_transformers = run.is_ours or run.trainer["accelerate"]
    all_experts = False
    if d.experts > 1:
        from advisor.estimate.time.mixtures import sends_all_to_all

        named = run.model.id, run.model.architecture
        all_experts = sends_all_to_all(*named, by_transformers=by_transformers)
    passes = passes_of(run)
    sharding, copied, fetches, gather, reduce = None, 0.0, 0.0, 0.0, 0.0
    if run.gpus > 1 or run.device.sharding is not None:
        from advisor.estimate.time.division import divide

        sharding, copied, fetches, gather, reduce = divide(run, machine, passes - 1, tokens)
    reached = machine.flops * (machine.mixed_gain if run.precision == "mixed" else 1.0)
    if stage.weights_dtype == "float32" and run.precision == "pure":
        reached *= machine.float32_share
    rows_alone = None
    if rows.tokens_total and rows.rows_total:
        rows_alone = rows.tokens_total / rows.rows_total / sequences
    attended = attended_tokens(run, length, rows_alone)
    flops = flops_per_token(run, attended, machine, tokens=tokens, all_experts=all_experts)
    compute = tokens * flops / reached
    traffic = tokens * traffic_bytes(run, machine, length) + written_out_bytes(run)
    if machine.overlaps:
        traffic += weights_read_bytes(run, tokens, all_experts=all_experts)
    traffic = (traffic + copied) / machine.bytes_per_s
    dequantise = dequantisation_bytes(run) / machine.bytes_per_s
    forward_launches = forward_launches_s(run, machine, rows=tokens)
    launches = passes * forward_launches * (COMPILED_SHARE if stage.compile else 1.0)
    tiles = tiles_s(run, machine, length)
    work = compute + traffic + tiles + dequantise
    host = launches + fetches
    micro = (work**SMOOTH + host**SMOOTH) ** (1 / SMOOTH) if machine.overlaps else work + host
    gather += offloaded_s(run, machine, tokens)
    micro = max(micro, gather) + (1 - HIDDEN) * min(micro, gather)
    generate = generate_s(run, machine, forward_launches, length)
    optimizer = optimizer_s(run, machine, sharding or run.device.sharding)
    step = passed * micro + optimizer + reduce + generate
    faster = 0.0
    if generate:
        served_stage = replace(stage, options={**run.options, "rollouts": "vllm"})
        faster = generate_s(replace(run, stage=served_stage), machine, forward_launches, length)
    per_device = passed * tokens / padding
    steps = None
    if rows.tokens_total:
        per_step = stage.effective_batch_size * run.gpus
        steps = math.ceil(rows.tokens_total / (per_step * sequences * stage.seq_len))
        if rows.rows_total and not stage.packing:
            steps = math.ceil(rows.rows_total / per_step)
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
    over = f", GPUs connected by {machine.link_words}" if run.gpus > 1 else ""
    known_lengths = not (rows.differ and padding > 1)
    low, high = band_of(run, machine, known_lengths=known_lengths)
    return TimeEstimate(
        step_s=step, steps=steps, tokens_per_s_per_gpu=per_device / step,
        because=f"mostly {largest} on {machine.note}, {reached / 1e12:.3g} TFLOP/s reached{over}",
        generate_s=generate, served_s=faster,
        warnings=_guesses(run, machine, sharding, known_lengths=known_lengths),
        parts=tuple(part for part in parts if part[1] > 0),
        low_s=step / low, high_s=step * high,
    )  # fmt: skip


def _guesses(
    run: Run, machine: Machine, sharding: str | None, *, known_lengths: bool
) -> tuple[str, ...]:
    found = []
    if run.gpus > 1 and machine.link_guess and (machine.on_network or run.device.sharding != "ddp"):
        found.append(
            f"time: how the GPUs are connected is not known; {machine.link_guess}"
            f" ({machine.link_s(1.0, run.gpus) ** -1 / 1e9:.3g} GB/s)"
        )
    if sharding != run.device.sharding:
        found.append(
            f"time: no sharding is named and a copy does not fit one GPU, so {sharding} is assumed"
        )
    if not known_lengths:
        found.append(
            f"time: rows are not packed and their lengths are not known, so they are taken to be"
            f" {_usual_row(run):g} tokens on average; give lengths, or tokens_total with"
            " rows_total"
        )
    if run.compute_dtype in NARROW_DTYPES and machine.narrow_gain is None:
        found.append(
            f"time: {run.compute_dtype} products need units that {machine.note} does not have, or"
            " that are not in the catalogue: counted as 16 bit"
        )
    elif run.compute_dtype == "nvfp4":
        found.append("time: the rate of nvfp4 products is not known: counted as fp8")
    return tuple(found)


def _lengths(run: Run) -> tuple[float, float]:
    """(tokens of a sequence of a micro-batch, how many times the real ones they are)."""
    stage, rows = run.stage, run.rows
    cap = float(stage.seq_len)
    if stage.packing:
        return cap, 1.0
    padded_length = run.padded_length
    if rows.tokens_total and rows.rows_total:
        mean = min(cap, rows.tokens_total / rows.rows_total / run.objective.sequences_per_row)
    elif run.lengths:
        mean, padded_length = row_tokens(run.lengths, stage.seq_len, stage.micro_batch_size)
    elif rows.differ:
        mean = _usual_row(run)
    else:
        return cap, 1.0
    usual = mean * (PADDED_LENGTH if stage.micro_batch_size > 1 else 1.0)
    length = min(cap, max(mean, padded_length or usual))
    return length, max(1.0, length / mean)


def _usual_row(run: Run) -> float:
    return min(MIXED_SHARE * run.stage.seq_len, float(USUAL_ROW_TOKENS))


def weights_bytes(run: Run) -> tuple[float, float]:
    """(bytes of the base as it stands on disk, in 16 bit or the dtype of training; bytes of what
    the stage saves: the module in float32, or the model in the dtype of training).
    """
    base = run.model.params * run.stated_bytes
    saved = run.trainable * 4 if run.is_module and run.is_sized else base
    return float(base), float(saved if run.is_sized else 0.0)


SMOOTH = 3.0  # work and launches overlap: a soft maximum
DECODE_SHARE = 0.3  # of the bandwidth, what `generate` reaches without a serving engine
# What a vLLM server reaches of it, how much of the launches its CUDA graphs leave, and the answers
# that it works on together. Assumed, from the design of vLLM: no run of ours has measured them.
SERVER_SHARE, SERVER_LAUNCH_SHARE, SERVER_TOGETHER = 0.7, 0.1, 256
TOGETHER = 512  # answers that a GPU holds in one call, mostly
SENT_BYTES_PER_S = 2e9  # weights for a server, written and read once


def generate_s(run: Run, machine: Machine, token_launch_s: float, length: float) -> float:
    """Time to write the answers a reinforcement step learns from.

    The requests are read at once; then for every token the weights are read, once for all answers
    that are written together.
    """
    d = run.dims
    what = run.objective
    own_share = special(what, "written_share")
    share = own_share(run) if own_share else 1.0
    if not what.generates or not share:
        return 0.0
    answer_tokens = int(run.options.get("response_tokens") or run.stage.seq_len // 2)
    request_tokens = max(0.0, length - answer_tokens)
    answers = run.stage.micro_batch_size * run.stage.grad_accum * run.answers_a_row * share
    if run.options.get("rollouts") == "vllm":
        return _served_s(run, machine, token_launch_s, answers, request_tokens)
    together = run.answers_at_once
    if run.is_ours and share == 1.0:  # ours take all of a step, if memory holds them
        together = max(together, min(int(answers), TOGETHER))
    context = request_tokens + answer_tokens / 2
    a_token = _token_s(run, machine, token_launch_s, together, context=context)
    times = answers / together if share < 1.0 else math.ceil(answers / together)
    return answers * request_tokens * 2 * d.active / machine.flops + times * answer_tokens * a_token


def _served_s(
    run: Run, machine: Machine, launch_s: float, answers: float, request_tokens: float
) -> float:
    """Time of a step's answers from a vLLM server on a device of the same kind: requests are read
    once for all of their answers, and the policy is sent before.
    """
    d = run.dims
    answer_tokens = int(run.options.get("response_tokens") or run.stage.seq_len // 2)
    together = int(max(1.0, min(answers, SERVER_TOGETHER)))
    context = request_tokens + answer_tokens / 2
    launch_s *= SERVER_LAUNCH_SHARE
    a_token = _token_s(run, machine, launch_s, together, share=SERVER_SHARE, context=context)
    a_token = max(a_token, together * 2 * d.active / machine.flops)
    requests = answers / run.answers_each * request_tokens * 2 * d.active / machine.flops
    sent = run.trainable * 2 * 2 / SENT_BYTES_PER_S
    return requests + answers / together * answer_tokens * a_token + sent


def _token_s(
    run: Run,
    machine: Machine,
    launch_s: float,
    together: int,
    share: float = DECODE_SHARE,
    context: float = 0.0,
) -> float:
    """Time to write one token of so many answers: the weights are read once for all of them, at
    this share of the bandwidth, and the keys and values of `context` tokens for each.
    """
    d = run.dims
    # Each answer uses experts of its own: together they read most of them.
    read = 1 - (1 - d.used_experts / d.experts) ** together if d.experts > 1 else 0.0
    width = run.stated_bytes
    held = weight_bytes(run, routed=d.routed_params * read, width=width)
    # `generate` joins each token to its cache: all of it is read and written (transformers,
    # cache_utils.DynamicLayer.update), and read by attention. A server adds to pages.
    times = 1 if share == SERVER_SHARE else 3
    cache = together * d.cached(context) * width * times
    weights_s = held / (machine.bytes_per_s * share) + cache / machine.bytes_per_s
    return float((weights_s**SMOOTH + launch_s**SMOOTH) ** (1 / SMOOTH))


def inference_s(run: Run, machine: Machine, *, tokens: float, at_once: int) -> tuple[float, float]:
    """(time of a forward pass over one row of so many tokens, time to write one token of `at_once`
    answers), without gradients; zeros where the shape holds no dimensions.
    """
    if not run.is_sized:
        return 0.0, 0.0
    d = run.dims
    launches = forward_launches_s(run, machine, rows=tokens)
    work = tokens * (2 * d.active / machine.flops + FORWARD_TILES * d.vocab * machine.tile_s)
    whole = work + launches
    if machine.overlaps:
        whole = (work**SMOOTH + launches**SMOOTH) ** (1 / SMOOTH)
    return whole, _token_s(run, machine, launches, at_once, context=tokens)
