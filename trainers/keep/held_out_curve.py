"""Held-out loss during training: when and on how many rows it is measured, the best step so far and
its weights, and when a run without improvement stops.

Every process measures its share of the rows and all of them add up the sums, so that all come to
the same number and stop at the same step. Nothing of the training changes: no random number is
drawn, and the weights with and without these measurements are equal to the bit.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.files import DISK, ELSEWHERE, TEMPORARY, cannot_write
from advisor.ground.progress import track
from advisor.methods import methods
from advisor.record.stage import HeldOut
from trainers.evaluation.loss import held_out
from trainers.job.files import make_folder
from trainers.job.job import Job
from trainers.job.machine import process_count
from trainers.job.random_states import random_states, restore_random_states
from trainers.job.types import Model, Trainer
from trainers.keep.checkpoint_store import disk_refused
from trainers.rows.sequences import lengths
from trainers.step.out_of_memory import in_halves
from trainers.step.sharding import is_sharded, put_whole, whole_parameters

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
    batch: int,
    wanted: bool,
) -> Schedule | None:
    """About ten measurements in `LARGEST_SHARE` of the computation; fewer and smaller ones in a
    short run, and None where not even three of a few rows have room.

    Args:
        rows: The held-out rows; each has `tokens`.
        steps: Optimizer steps of the run.
        trained_tokens: Tokens that the whole run trains on, in all processes.
        forward: What `forward_share` returned.
        batch: Rows that go through a device at once, padded to the longest.
        wanted: The plan asks for the measurements (`keep`, `early_stopping`), so that there are ten
            on at least a few rows at any cost.
    """
    if not rows or (len(rows) < FEWEST_ROWS and not wanted):
        return None

    def share(count: int, every: int) -> float:
        width = padded_tokens(held_out(rows, limit=count), batch)
        return math.ceil(steps / every) * width * forward / max(trained_tokens, 1)

    def affordable(every: int) -> int:
        mean = sum(row.tokens for row in rows) / len(rows)
        most = LARGEST_SHARE * trained_tokens / (forward * mean * math.ceil(steps / every))
        count = min(len(rows), MOST_ROWS, int(most))
        while count and share(count, every) > LARGEST_SHARE:
            count -= 1
        return count

    if wanted:
        every = math.ceil(steps / MOST_TIMES)
        count = max(affordable(every), min(len(rows), ENOUGH_ROWS))
        return Schedule(every, count, share(count, every))
    for times in range(MOST_TIMES, FEWEST_TIMES - 1, -1):
        every = math.ceil(steps / times)
        count = affordable(every)
        enough = ENOUGH_ROWS if times > FEWEST_TIMES else FEWEST_ROWS
        if count >= min(enough, len(rows)):
            return Schedule(every, count, share(count, every))
    return None


def micro_batches(rows: Sequence[Any], size: int) -> list[list[Any]]:
    """At most `size` rows in each, of similar length, and about as many in each: an objective that
    compares the rows of a micro-batch needs more than one.
    """
    ordered = sorted(rows, key=lambda row: row.tokens)
    count = math.ceil(len(ordered) / size)
    starts = [place * len(ordered) // count for place in range(count + 1)] if count else []
    return [ordered[start:end] for start, end in pairwise(starts)]


def padded_tokens(rows: Sequence[Any], size: int) -> int:
    """Tokens of the rows in micro-batches, with the padding."""
    return sum(len(group) * max(row.tokens for row in group) for group in micro_batches(rows, size))


class HeldOutCurve:
    """Measures the held-out loss of one stage while it trains.

    Args:
        trainer: The trainer, whose model is measured.
        plan: How often, and on what.
        batches: The micro-batches of all processes, as `loss` takes them; of those of another
            process, None.
        loss: (the sum of the losses of a micro-batch, how many were added up).
        steps: Optimizer steps of the run.
        of_rows: How many rows are held out.
        folder: For the weights of the best step.
        keeps_best: Whether these become the result.
        patience: Measurements without improvement after which the run stops; None: never.
        writes: Whether this process writes files.
        groups: The rows of each micro-batch.
        inputs: Some rows as `loss` takes them, for a micro-batch that does not fit into memory;
            None: that is an error.
        beside: Micro-batches that this process computes without counting them, as long as others
            have one: each forward pass of a divided model needs all processes.
    """

    def __init__(
        self,
        trainer: Trainer,
        plan: Schedule,
        batches: Sequence[Any],
        loss: Callable[[Trainer, Any], tuple[float, float]],
        *,
        steps: int,
        of_rows: int,
        folder: Path,
        keeps_best: bool = False,
        patience: int | None = None,
        writes: bool = True,
        groups: Sequence[Sequence[Any]] = (),
        inputs: Callable[[Trainer, Sequence[Any]], Any] | None = None,
        beside: Sequence[Any] = (),
    ) -> None:
        self.groups, self.inputs, self.beside = groups, inputs, beside
        self.trainer, self.plan, self.batches, self.loss = trainer, plan, batches, loss
        self.steps, self.of_rows, self.folder = steps, of_rows, folder
        self.keeps_best, self.patience, self.writes = keeps_best, patience, writes
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.last_step: int | None = None
        self.last_loss = math.nan
        self.before_last = math.nan  # the loss of the evaluation before
        self.waited = 0  # measurements since the best one
        self.stopped = False
        self.seconds = 0.0
        self._safe_steps: set[int] = set()  # the best steps of the checkpoints there are

    # ---------------------------------------------------------------- measuring

    def is_due(self, step: int) -> bool:
        """Whether the loss is measured after this step."""
        return step % self.plan.every == 0 or step == self.steps

    def measure(self, step: int) -> float:
        """The mean loss after a step, the same in every process; notes the best one, and whether
        the run should stop.
        """
        began = time.monotonic()
        states = random_states()
        sums = [
            (0.0, 0.0) if batch is None else self._sums(place, batch)
            for place, batch in enumerate(
                track(self.batches, "held-out loss", unit="micro-batches")
            )
        ]
        for batch in self.beside:
            self.loss(self.trainer, batch)
        restore_random_states(states)
        totals = add_up_processes(self.trainer, sums)
        loss = sum(total for total, _ in totals) / max(sum(count for _, count in totals), 1e-9)
        self.before_last = self.last_loss
        self.last_step, self.last_loss = step, loss
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.waited = step, loss, 0
            if self.keeps_best:
                weights = whole_parameters(trained_parameters(self.trainer.model))
                if self.writes:
                    self._save_best(step, weights)
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience and step < self.steps:
            self.stopped = True
        self.seconds += time.monotonic() - began
        return loss

    def _sums(self, place: int, batch: Any) -> tuple[float, float]:
        """The sums of a micro-batch, in halves if it does not fit into memory."""
        if self.inputs is None:
            return self.loss(self.trainer, batch)
        group, inputs = self.groups[place], self.inputs

        def measure(rows: Sequence[Any]) -> tuple[float, float]:
            return self.loss(self.trainer, batch if rows is group else inputs(self.trainer, rows))

        found = in_halves(group, measure)
        return sum(total for total, _ in found), sum(count for _, count in found)

    # ---------------------------------------------------------------- resuming

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to know of it."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss if self.best_step is not None else None,
            "last_step": self.last_step,
            "last_loss": self.last_loss if math.isfinite(self.last_loss) else None,
            "before_last": self.before_last if math.isfinite(self.before_last) else None,
            "waited": self.waited,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }

    def resume(self, state: dict[str, Any] | None) -> None:
        """Continue from the state that a checkpoint kept; None: from the beginning.

        Raises TrainingFailed if the weights of its best step are gone.
        """
        state = state or {}
        self.best_step, self.last_step = state.get("best_step"), state.get("last_step")
        if self.best_step is not None:
            self.best_loss = state["best_loss"]
        if state.get("last_loss") is not None:
            self.last_loss = state["last_loss"]
        if state.get("before_last") is not None:
            self.before_last = state["before_last"]
        self.waited, self.stopped = state.get("waited", 0), bool(state.get("stopped"))
        self.seconds = state.get("seconds", 0.0)
        if not self.keeps_best:
            return
        if self.best_step is not None and not self._file(self.best_step).is_file():
            raise TrainingFailed(
                "the weights of the best step are gone, so this run cannot be resumed",
                where=str(self._file(self.best_step)),
                hint="remove the folder checkpoints beside it, to train the stage again",
            )

    def keep_for(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Remove the weights of steps that no run will ask for any more.

        Args:
            records: Of all checkpoints that a run may resume from.
        """
        found = ((record.get("held_out") or {}).get("best_step") for record in records)
        self._safe_steps = {step for step in found if step is not None}
        if self.keeps_best and self.writes:
            self._remove_except(self.best_step, *self._safe_steps)

    def files(self) -> list[str]:
        """The files beside the checkpoints that a resumed run needs."""
        needs = self.keeps_best and self.best_step is not None
        return [self._file(self.best_step).name] if needs and self.best_step is not None else []

    # ---------------------------------------------------------------- the weights of the best step

    def _file(self, step: int) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _remove_except(self, *steps: int | None) -> None:
        kept = {self._file(step) for step in steps if step is not None}
        for path in self.folder.glob("best-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _save_best(self, step: int, weights: Mapping[str, Any]) -> None:
        """Write what is trained. A run that is killed later resumes from a checkpoint whose best
        step may be an earlier one, so that one's weights stay, too.

        Raises MachineNotReady if the disk does not take it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        make_folder(self.folder)
        path = self._file(step)
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        try:
            save_file({name: one.contiguous() for name, one in weights.items()}, temporary)
            DISK.sync(temporary)
            DISK.rename(temporary, path)
            DISK.sync(self.folder)
        except OSError as error:
            DISK.discard(temporary)
            raise cannot_write(path, error, way_out=ELSEWHERE) from error
        except SafetensorError as error:  # a full disk, in the words of its library
            DISK.discard(temporary)
            raise disk_refused(path, error) from error
        self._remove_except(step, *self._safe_steps)

    def load_best(self, model: Model) -> None:
        """Put the weights of the best step back into the model."""
        from safetensors.torch import load_file

        if not self.keeps_best or self.best_step in (None, self.last_step):
            return
        assert self.best_step is not None
        kept = load_file(self._file(self.best_step))
        for name, parameter in trained_parameters(model):
            put_whole(parameter, kept[name])

    # ---------------------------------------------------------------- in words

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are the result."""
        best = self.keeps_best and self.best_step is not None
        return self.best_step if best else self.last_step

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
        """For result.json."""
        return HeldOut(
            every=self.plan.every,
            rows=self.plan.rows,
            share=round(self.plan.share, 4),
            seconds=round(self.seconds, 3),
            best_step=self.best_step,
            best_loss=self.best_loss if self.best_step is not None else None,
            last_step=self.last_step,
            last_loss=self.last_loss if math.isfinite(self.last_loss) else None,
            fell=self._fell(),
            kept_step=self.kept_step,
            planned_steps=self.steps,
            stopped_early=self.stopped,
            waited=self.waited,
        )

    def _fell(self) -> float | None:
        """By which share the loss fell from the last evaluation but one to the last."""
        before, last = self.before_last, self.last_loss
        if not (math.isfinite(before) and math.isfinite(last)) or before <= 0:
            return None
        return round((before - last) / before, 4)


def measurements(count: int) -> str:
    """'1 evaluation', '3 evaluations'."""
    return f"{count} evaluation{'s' if count != 1 else ''}"


def trained_parameters(model: Model) -> list[tuple[str, Any]]:
    """The parameters that are trained, by name."""
    return [item for item in model.named_parameters() if item[1].requires_grad]


def add_up_processes(
    trainer: Trainer, sums: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """The sums of every micro-batch, of whichever process measured it.

    Each is a number in one process and zero in the others, so that adding them up rounds nothing.
    """
    if trainer.accelerator.num_processes == 1:
        return list(sums)
    import torch

    table = torch.tensor(list(sums), dtype=torch.float64, device=trainer.args.device)
    torch.distributed.all_reduce(table)
    return [(total, count) for total, count in table.tolist()]


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
    job: Job,
    trainer: Trainer,
    holdout: Sequence[Any],
    sequences: Sequence[Sequence[Any]],
    *,
    steps: int,
    inputs: Callable[[Trainer, Sequence[Any]], Any],
    loss: Callable[[Trainer, Any], tuple[float, float]],
    writes: bool,
) -> HeldOutCurve | None:
    """The held-out loss of a stage during training; None if the run is too short for it.

    Args:
        job: The stage.
        trainer: Its trainer, before the first step.
        holdout: The held-out rows.
        sequences: What is trained on: rows, or several packed ones in each.
        steps: Optimizer steps of the run.
        inputs: A micro-batch of rows as `loss` takes it.
        loss: (the sum of the losses of a micro-batch, how many were added up).
        writes: Whether this process writes files.
    """
    stage, world = job.stage, process_count()
    mean = int(lengths(sequences).sum(dtype="int64")) / len(sequences)
    plan = schedule(
        holdout,
        steps=steps,
        trained_tokens=steps * stage.effective_batch_size * world * mean,
        forward=forward_share(job),
        batch=stage.micro_batch_size,
        wanted=asks_for_curve(job),
    )
    if plan is None:
        return None
    states = random_states()
    groups = micro_batches(held_out(holdout, limit=plan.rows), stage.micro_batch_size)
    own = trainer.args.process_index
    batches = [
        inputs(trainer, group) if place % world == own else None
        for place, group in enumerate(groups)
    ]
    beside = []
    if is_sharded(job) and own >= len(groups) % world > 0:  # the last round has too few
        beside = [inputs(trainer, groups[0])]
    restore_random_states(states)
    return HeldOutCurve(
        trainer,
        plan,
        batches,
        loss,
        steps=steps,
        of_rows=len(holdout),
        folder=job.checkpoints,
        keeps_best=stage.keep == "best",
        patience=stage.early_stopping,
        writes=writes,
        groups=groups,
        beside=beside,
        # What the reference model says was measured before the training, and cannot be any more.
        inputs=None if getattr(trainer, "precompute_ref_logps", False) else inputs,
    )
