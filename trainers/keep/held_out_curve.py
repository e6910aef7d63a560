"""Held-out loss during training: when and on how many rows it is measured, and what follows from
it: the best step, whose weights `keep: best` takes, and the end of a run without improvement.

transformers' Trainer measures: in micro-batches, under the autocast of the training, each process
its share of the rows. Nothing of the training changes: the weights with and without these
measurements are equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from advisor.ground.errors import InputError
from advisor.methods import methods
from advisor.record.stage import HeldOut
from trainers.evaluation.loss import held_out
from trainers.job.job import Job
from trainers.job.machine import process_count
from trainers.rows.sequences import lengths

LARGEST_SHARE = 0.05  # of the computation of the training, for all measurements together
MOST_TIMES, FEWEST_TIMES = 10, 3  # measurements of a run that may choose for itself
ENOUGH_ROWS = 8  # with fewer than these the run is measured less often
FEWEST_ROWS = 4
MOST_ROWS = 256  # more would only make the same number more exact
SHORT_RUN = "this run or its held-out rows are too few for a curve in 5 % of the time"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often the held-out loss is measured, and on what."""

    every: int  # optimizer steps; the last step of the run is measured, too
    rows: int
    share: float  # of the computation of the training

    def times(self, steps: int) -> int:
        """Measurements in a run of so many steps."""
        return math.ceil(steps / self.every)


def forward_share(job: Job) -> float:
    """The cost of looking at a row against that of training on it.

    A forward pass is one part; the backward pass another for the activations and another for
    weights that train, which most of a base under a module does not; and one if activations are
    computed again (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; the estimator counts alike).
    """
    stage = job.stage
    extra = methods().objective(stage.objective).extra_forwards
    backward = 1 if methods().update(stage.update).is_module else 2
    return (1 + extra) / (1 + backward + stage.gradient_checkpointing + extra)


def schedule(
    rows: Sequence[Any],
    *,
    steps: int,
    trained_tokens: float,
    forward: float,
    wanted: bool,
    micro: int,
    processes: int = 1,
) -> Schedule | None:
    """About ten measurements in `LARGEST_SHARE` of the computation; fewer and smaller ones in a
    short run, and None where not even three of a few rows have room. Padding is left out, since
    rows are measured in the order of their lengths.

    Args:
        rows: The held-out rows; each has `tokens`.
        trained_tokens: Tokens that the whole run trains on, in all processes.
        forward: What `forward_share` returned.
        wanted: The plan asks for the measurements (`keep`, `early_stopping`), so that there are ten
            on at least a few rows at any cost.
        micro: Rows that go through a device at once at most.
    """
    if not rows or (len(rows) < FEWEST_ROWS and not wanted):
        return None
    row_share = forward * sum(row.tokens for row in rows) / len(rows) / max(trained_tokens, 1)

    def plan(times: int, least: int) -> Schedule | None:
        every = math.ceil(steps / times)
        share = math.ceil(steps / every) * row_share  # of one row that is measured every time
        affordable = min(len(rows), MOST_ROWS, int(LARGEST_SHARE / share + 1e-9))
        fewest = even_count(min(len(rows), least), micro, processes)
        count = even_count(affordable, micro, processes)
        if count < fewest and not wanted:
            return None
        count = max(count, fewest)
        return Schedule(every, count, count * share)

    plans = (
        plan(times, ENOUGH_ROWS if times > FEWEST_TIMES else FEWEST_ROWS)
        for times in range(MOST_TIMES, FEWEST_TIMES - 1, -1)
    )
    return next(filter(None, plans), None)


def chosen_rows(rows: Sequence[Any], count: int) -> list[Any]:
    """So many of the rows, spread over all; the shortest first, so that little is padded."""
    return sorted(held_out(rows, limit=count), key=lambda row: row.tokens)


def even_count(rows: int, micro: int, processes: int) -> int:
    """The most of the rows that are full micro-batches of equal size in every process, of more than
    half of `micro`: each loss counts alike, and no row is looked at twice.
    """
    most = min(micro, rows // processes)
    sizes = range(most // 2 + 1, most + 1)
    return max((rows - rows % (size * processes) for size in sizes), default=rows)


def even_batch(rows: int, micro: int) -> int:
    """The largest micro-batch of at most `micro` rows that divides the rows of a process."""
    return next((size for size in range(min(micro, rows), 0, -1) if rows % size == 0), 1)


class HeldOutLoss(NamedTuple):
    """One measurement."""

    step: int
    loss: float | None  # None: not a finite number
    seconds: float


@dataclass(kw_only=True)
class HeldOutCurve:
    """The held-out losses of a stage so far, and what follows from them: everything that a resumed
    run needs to know is in `measured`.
    """

    plan: Schedule
    rows: Sequence[Any]  # that are measured
    steps: int  # of the run
    of_rows: int  # that are held out
    keeps_best: bool = False  # the weights of the best step become the result
    patience: int | None = None  # measurements without improvement, then the run stops; None: never
    measured: list[HeldOutLoss] = field(default_factory=list)

    def is_due(self, step: int) -> bool:
        return step % self.plan.every == 0 or step == self.steps

    def add(self, step: int, loss: float, seconds: float) -> bool:
        """Note a measurement; whether it is the best one so far."""
        self.measured.append(HeldOutLoss(step, loss if math.isfinite(loss) else None, seconds))
        return self.best is self.measured[-1]

    @property
    def best(self) -> HeldOutLoss | None:
        """The first with the lowest loss."""
        finite = [one for one in self.measured if one.loss is not None]
        return min(finite, key=lambda one: one.loss or 0.0, default=None)

    @property
    def waited(self) -> int:
        """Measurements since the best one."""
        best = self.best
        return len(self.measured) - (0 if best is None else self.measured.index(best) + 1)

    @property
    def last_step(self) -> int | None:
        return self.measured[-1].step if self.measured else None

    @property
    def stopped(self) -> bool:
        """Whether the run ends before its last step."""
        is_over = self.patience is not None and self.waited >= self.patience
        return is_over and self.last_step != self.steps

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are the result."""
        return self.best.step if self.keeps_best and self.best is not None else self.last_step

    @property
    def seconds(self) -> float:
        """What all measurements took."""
        return sum(one.seconds for one in self.measured)

    def describe(self) -> str:
        """What is going to be measured."""
        rows = (
            f"{self.plan.rows:,} held-out rows"
            if self.plan.rows == self.of_rows
            else f"{self.plan.rows:,} of {self.of_rows:,} held-out rows"
        )
        every = "step" if self.plan.every == 1 else f"{self.plan.every:,} steps"
        parts = [f"held-out loss every {every} on {rows}, about {self.plan.share:.0%} of the time"]
        if self.keeps_best:
            parts.append("the weights of its lowest value become the result")
        if self.patience is not None:
            end = "" if self.keeps_best else " with its last weights (keep: best would go back)"
            parts.append(
                f"the run stops{end} after {measurements(self.patience)} without improvement; the"
                " learning rate follows the whole plan"
            )
            if self.patience >= self.plan.times(self.steps):
                parts.append(f"this run has only {measurements(self.plan.times(self.steps))}")
        return "; ".join(parts)

    def record(self) -> HeldOut:
        best, last = self.best, self.measured[-1] if self.measured else None
        was, now = [None, None, *(one.loss for one in self.measured)][-2:]
        return HeldOut(
            every=self.plan.every,
            rows=self.plan.rows,
            share=round(self.plan.share, 4),
            seconds=round(self.seconds, 3),
            best_step=best.step if best is not None else None,
            best_loss=best.loss if best is not None else None,
            last_step=self.last_step,
            last_loss=last.loss if last is not None else None,
            fell=round((was - now) / was, 4) if was and now is not None and was > 0 else None,
            kept_step=self.kept_step,
            planned_steps=self.steps,
            stopped_early=self.stopped,
            waited=self.waited,
        )


def measurements(count: int) -> str:
    return f"{count} evaluation{'s' if count != 1 else ''}"


def asks_for_curve(job: Job) -> bool:
    """Whether keys of the stage need the held-out loss."""
    return job.stage.keep == "best" or job.stage.early_stopping is not None


def check_held_out(job: Job, rows: Sequence[Any], *, has_loss: bool) -> None:
    """Raise InputError if the stage asks for a held-out loss that there is none of."""
    if not asks_for_curve(job):
        return
    key = "keep: best" if job.stage.keep == "best" else "early_stopping"
    if not has_loss:
        raise InputError(
            f"{key} needs a loss on held-out rows, and objective {job.stage.objective} has none",
            where=f"stage {job.stage.name}",
            hint=f"remove {key.split(':')[0]}",
        )
    if not rows:
        raise InputError(
            f"{key} needs held-out rows, and no row is held out",
            where=f"stage {job.stage.name}",
            allowed="a holdout above 0, and enough different rows",
            hint=f"raise holdout ({job.stage.holdout:g} here), or remove {key.split(':')[0]}",
        )


def make_curve(
    job: Job, holdout: Sequence[Any], sequences: Sequence[Sequence[Any]], *, steps: int
) -> HeldOutCurve | None:
    """The held-out loss of a stage during training on these sequences (a row in each, or several
    packed ones); None if the run is too short for it.
    """
    stage = job.entry.stage  # as planned: a run that was short of memory goes on with its rows
    mean = int(lengths(sequences).sum(dtype="int64")) / len(sequences)
    plan = schedule(
        holdout,
        steps=steps,
        trained_tokens=steps * stage.effective_batch_size * process_count() * mean,
        forward=forward_share(job),
        wanted=asks_for_curve(job),
        micro=stage.micro_batch_size,
        processes=process_count(),
    )
    if plan is None:
        return None
    return HeldOutCurve(
        plan=plan,
        rows=chosen_rows(holdout, plan.rows),
        steps=steps,
        of_rows=len(holdout),
        keeps_best=stage.keep == "best",
        patience=stage.early_stopping,
    )
