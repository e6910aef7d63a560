"""Time to write answers: those a reinforcement step learns from, and samples of a measurement."""

from __future__ import annotations

import math

from advisor.estimate.methods import special
from advisor.estimate.run import Run
from advisor.estimate.time.host import forward_launches_s
from advisor.estimate.time.machine import Machine, weight_bytes
from advisor.estimate.time.work import FORWARD_TILES

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
    answers = run.stage.micro_batch_size * run.stage.grad_accum * run.answers_each * share
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
    a_token = _token_s(
        run,
        machine,
        launch_s * SERVER_LAUNCH_SHARE,
        together,
        share=SERVER_SHARE,
        context=request_tokens + answer_tokens / 2,
    )
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


def looking_s(run: Run, machine: Machine, *, tokens: float, at_once: int) -> tuple[float, float]:
    """(time of a forward pass over one row of so many tokens, time to write one token of `at_once`
    answers), without gradients; zeros where the shape holds no dimensions.
    """
    if not run.is_sized:
        return 0.0, 0.0
    d = run.dims
    launches = forward_launches_s(run, machine, rows=tokens)
    work = tokens * (2 * d.active / machine.flops + FORWARD_TILES * d.vocab * machine.tile_s)
    whole = (
        (work**SMOOTH + launches**SMOOTH) ** (1 / SMOOTH) if machine.overlaps else work + launches
    )
    return whole, _token_s(run, machine, launches, at_once, context=tokens)
