"""The whole time of a stage by its parts: loading, measuring the base, training, and saving,
checking and measuring the result. Arithmetic only.

All but the training is rough: what a disk reaches and how long answers become is not known
beforehand. Three runs of SmolLM2-135M on two cores that other programs used, too, took 1.1 to 2.4
times the loading, where the training took 2.4 to 5.3 times its own estimate. One of sixteen answers
written together took, in seconds of a core, 0.9 times the measuring before and 1.0 times what comes
after. No idle machine and no GPU was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

from msgspec import Struct

from advisor.estimate.padding import REPLAY_KEPT, REPLAY_TOKENS, with_replay
from advisor.estimate.run import Run
from advisor.estimate.time import Machine, inference_s, weights_bytes
from advisor.estimate.types import TimeEstimate, WholeTime

# Libraries, rows and a model of 0.27 GB took 9.5, 19 and 20 s on two busy cores; an idle machine is
# taken to be a little faster than the first.
START_S = 8.0
# Assumed, of a model folder: between a SATA SSD (its link ends at 0.6 GB/s) and an NVMe one
# (several GB/s by data sheets).
DISK_BYTES_PER_S = 1e9
# Measured: SmolLM2's tokenizer with its chat template, rows of 230 tokens, one core.
TOKENISED_PER_S = 5e5
DOWNLOAD_BYTES_PER_S = 30e6  # assumed: a line of 250 Mbit/s
# Held-out loss and checkpoints while it trains: about ten of each, in 5 % of the time each
# (trainers/keep/held_out_curve.py and checkpoint_store.py; a test compares the numbers).
TIMES_MEASURED, MOST_ROWS, LARGEST_SHARE = 10, 256, 0.05
MOST_STEPS_UNSAVED = 500
WITH_MOMENTS = 3  # a checkpoint holds what trains, and two moments of it
HELD_BY = ("catalogue", "hub", "suggested")  # where a model comes from that may be to download
# What the trainers measure (trainers/evaluation; a test compares the numbers).
HELD_OUT_ROWS, SAMPLES, GENERAL = 64, 16, 24
TRIAL_ROWS, TRIAL_SAMPLES, TRIAL_GENERAL = 8, 2, 4  # where max_steps stops the stage
PROMPTS, TRIAL_PROMPTS = 32, 4  # of a stage that learns from its own answers
LONGEST_SAMPLE, GENERATION_S, FEWEST_TOGETHER = 128, 45.0, 4
GENERAL_TOKENS = 60  # assumed: a general prompt with its answer and a chat template
REPLAY_BLOCK, REPLAY_LIMIT = 32, 128  # the base's answers to general prompts
PROBES = 4  # forward passes that compare the saved result with the trained one and the base
# Passes over what is saved: written, read for its SHA-256, and loaded again.
SAVED_PASSES = 3
ANSWER_SHARE = 0.5  # assumed: of a row, where only its whole length is known
# Assumed, against the mean answer: the limit for a sample (half as much again as the longest
# expected one), and the longest of those that are written together.
LIMIT_RATIO, LONGEST_OF_BATCH = 2.0, 1.3


class EvaluationRows(Struct, frozen=True, kw_only=True):
    """What a stage is measured on.

    `rows` are held out; `row_tokens` and `answer_tokens` are means. `answer_tokens` is None where
    it is not known.
    """

    rows: float
    row_tokens: float
    answer_tokens: float | None = None
    trial: bool = False
    judge: bool = True
    all_rows: float = 0.0  # that are turned into tokens; 0: not known, and left out


def time_by_parts(
    run: Run, machine: Machine, evaluated: EvaluationRows, time: TimeEstimate
) -> WholeTime:
    """Seconds of each part, in the order they come, of a run whose steps take this time."""
    train_s = time.duration_s
    assert train_s is not None
    read, saved = weights_bytes(run)
    reading_s = read / DISK_BYTES_PER_S + (
        read / machine.host_bytes_per_s if machine.overlaps else 0.0
    )
    pass_s, _ = inference_s(run, machine, tokens=evaluated.row_tokens, at_once=1)
    before_s = after_s = 0.0
    if evaluated.judge:
        before_s = _measuring_s(run, machine, evaluated, tuned=False)
        after_s = _measuring_s(run, machine, evaluated, tuned=True)
    # The check of a module loads its base once more; that of a whole model loads what was saved.
    again_s = reading_s if run.is_module else 0.0
    return WholeTime(
        load_s=START_S + reading_s,
        before_s=before_s + pass_s,
        prepare_s=evaluated.all_rows * evaluated.row_tokens / TOKENISED_PER_S
        + _replay_s(run, machine, evaluated, reading_s),
        train_s=train_s,
        train_low_s=time.low_s / time.step_s * train_s,
        train_high_s=time.high_s / time.step_s * train_s,
        evaluate_s=_evaluating_s(run, evaluated, pass_s, train_s),
        save_s=_checkpoints_s(saved, train_s, time.steps),
        download_s=read / DOWNLOAD_BYTES_PER_S if run.model.origin in HELD_BY else 0.0,
        after_s=after_s + again_s + SAVED_PASSES * saved / DISK_BYTES_PER_S + PROBES * pass_s,
    )


def _replay_s(run: Run, machine: Machine, evaluated: EvaluationRows, reading_s: float) -> float:
    """The base's own answers to general prompts, which it is loaded for: as many blocks as the
    share of the rows asks for. None of them is taken to be there from an earlier run.
    """
    source, rows = run.options.get("replay"), evaluated.all_rows - evaluated.rows
    if not isinstance(source, dict) or rows <= 0:
        return 0.0
    tokens = rows * evaluated.row_tokens
    wanted = (with_replay(run.stage, tokens, rows, passes=1)[1] - rows) / REPLAY_KEPT
    _, token_s = inference_s(run, machine, tokens=REPLAY_TOKENS, at_once=REPLAY_BLOCK)
    length = min(REPLAY_LIMIT, run.stage.seq_len // 2)
    blocks = math.ceil(min(wanted, float(source["rows"])) / REPLAY_BLOCK)
    return reading_s + blocks * length * token_s


def _evaluating_s(run: Run, evaluated: EvaluationRows, pass_s: float, train_s: float) -> float:
    """The held-out loss, about ten times a run; not where answers are scored."""
    what = run.objective
    if what.generates or run.stated.get("evaluation") is False:
        return 0.0
    rows = min(evaluated.rows, MOST_ROWS) * what.sequences_per_row
    return min(TIMES_MEASURED * rows * pass_s, LARGEST_SHARE * train_s)


def _checkpoints_s(saved_bytes: float, train_s: float, steps: int | None) -> float:
    """Checkpoints: ten of a run, or one each 500 steps."""
    if steps is None:
        return 0.0
    count = max(min(TIMES_MEASURED, steps), steps / MOST_STEPS_UNSAVED)
    return min(count * WITH_MOMENTS * saved_bytes / DISK_BYTES_PER_S, LARGEST_SHARE * train_s)


def total_time(times: Sequence[WholeTime | None]) -> WholeTime | None:
    """The times of stages that follow each other; None where one is not known."""
    known = [one for one in times if one is not None]
    return reduce(add, known) if known and len(known) == len(times) else None


def _measuring_s(run: Run, machine: Machine, evaluated: EvaluationRows, *, tuned: bool) -> float:
    """One measurement: a forward pass for each held-out row and general prompt, one at a time, and
    sample answers, some together. A base that an earlier run has measured is not looked for.

    A base writes up to the limit; after `GENERATION_S` no further answers are begun. A tuned model
    writes the same answers to their end, about as long as those of the data.
    """
    what = run.objective
    row_s, _ = inference_s(run, machine, tokens=evaluated.row_tokens, at_once=1)
    rows = min(evaluated.rows, TRIAL_ROWS if evaluated.trial else HELD_OUT_ROWS)
    if what.scores:  # before the training there is usually no score
        return rows * what.sequences_per_row * row_s if tuned else 0.0
    general_s, _ = inference_s(run, machine, tokens=GENERAL_TOKENS, at_once=1)
    general = (TRIAL_GENERAL if evaluated.trial else GENERAL) * general_s
    if what.splits_documents:
        return rows * row_s + general
    answer = evaluated.answer_tokens or ANSWER_SHARE * evaluated.row_tokens
    # Of a pair both sides are compared, and the chosen one has a loss besides.
    losses = 0.0 if what.generates else rows * (1 + 2 * what.pairs) * row_s
    count = TRIAL_SAMPLES if evaluated.trial else SAMPLES
    limit = min(float(LONGEST_SAMPLE), LIMIT_RATIO * answer + 8)
    length = min(limit, LONGEST_OF_BATCH * answer) if tuned else limit
    if what.generates:
        count = min(TRIAL_PROMPTS if evaluated.trial else PROMPTS, round(evaluated.rows))
        length = float(run.options.get("response_tokens") or answer)
    # On a GPU as many together as have the tokens of a micro-batch, on the host all.
    budget = run.stage.micro_batch_size * run.stage.seq_len
    fitting = max(FEWEST_TOGETHER, int(budget // (evaluated.row_tokens + limit)))
    at_once = max(1, min(count, fitting) if machine.overlaps else count)
    _, token_s = inference_s(run, machine, tokens=evaluated.row_tokens, at_once=at_once)
    batch_s = length * token_s
    writing = -(-count // at_once) * batch_s
    if not tuned:
        writing = min(writing, GENERATION_S + batch_s)
    return losses + general + writing
