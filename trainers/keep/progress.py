"""What a run shows and records while it trains: its steps as a wait, and metrics.jsonl; and the end
of a run that has gone wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import Wait, board
from trainers.job.job import Job, label
from trainers.job.machine import MemoryMeter, is_main_process, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.held_out_curve import HeldOutCurve
from trainers.keep.trackers import Trackers
from trainers.say.progress import append_line, metric_name, say
from trainers.step import settings

# Entries of the library's own log, which it keeps in memory and writes into each checkpoint. All of
# them are in metrics.jsonl.
KEPT_LOGS = 20
LARGEST_SHARE = 0.05  # of the time that saving may take
SHORT_S = 1.0  # a save that takes less is not put off
SHOWN = 2  # numbers of the objective beside the loss: the loss of GRPO is zero by construction


class RunCallback(TrainerCallback):
    """Writes a line of metrics per logged step, shows the steps, marks checkpoints as complete,
    measures the held-out loss when it is due, decides when to save, and stops a run that was asked
    to stop, whose loss is not finite, or whose held-out loss does not improve any more.

    A line that stands for several steps holds their mean loss, time and speed, and the gradient's
    norm of the last of them.

    Args:
        job: The stage; a dry run writes no lines.
        steps: Optimizer steps of the whole run.
        memory: The meter whose peak is shown.
        store: The stage's checkpoints; None: none is written.
        logged: Names of the trainer's logs to write and show beside the loss.
    """

    def __init__(
        self,
        job: Job,
        *,
        steps: int,
        memory: MemoryMeter,
        store: CheckpointStore | None = None,
        logged: Sequence[str] = (),
    ) -> None:
        self.job, self.shown = job, is_main_process()
        self.label = f"{label(job)} (dry run)" if job.dry_run else label(job)
        self.writes = self.shown and not job.dry_run
        self.steps, self.memory, self.store, self.logged = steps, memory, store, logged
        self.saves: SaveClock | None = None
        if store is not None:
            self.saves = SaveClock(
                settings.save_every(job, steps),
                is_asked=job.stage.save_steps is not None,
                minutes=job.stage.save_minutes,
            )
        self.last_s = self.save_began_s = 0.0
        self.rate: float | None = None  # the last one that was logged
        self.stopped_at: int | None = None  # the step after which it was asked to stop
        self.wait: Wait | None = None  # for the steps
        self.parts: Wait | None = None  # for the micro-batches of one step, or of held-out rows
        self.trainer: Any = None  # set once the trainer is made, which needs its callbacks
        self.curve: HeldOutCurve | None = None  # None: nothing is measured on the way
        self.line: dict[str, Any] | None = None  # of a step whose held-out loss is being measured
        self.trackers: Trackers | None = None  # likewise; None: there are none
        self.held_out_s = self.train_s = 0.0  # of this attempt
        self.earlier_s = 0.0  # the clock of metrics.jsonl at the step that is resumed from
        self.losses: list[float] = []
        self.step_times_s: list[float] = []
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began_s = self.last_s = time.monotonic()
        self.first_step = self.last_step = state.global_step
        if self.saves is not None:
            self.saves.begin()
        if self.shown:
            board.label = self.label
            self.wait = board.open(
                "training", total=self.steps, unit="steps", done=state.global_step
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._open_parts("this step", args.gradient_accumulation_steps)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.parts is not None:
            self.parts()

    def _open_parts(self, what: str, total: int) -> None:
        if self.shown and total > 1:
            self.parts = board.open(what, total=total, unit="micro-batches")

    def _close_parts(self) -> None:
        if self.parts is not None:
            board.close(self.parts)
            self.parts = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and save what is due, and stop if any process was asked to. Log what is measured,
        what is saved, and the last step, whatever the distance between two lines.
        """
        self._close_parts()
        if self.wait is not None:
            self.wait.done = state.global_step
        if self._measures(state.global_step):
            control.should_evaluate = control.should_log = True
        if self.saves is not None:
            self._decide(state.global_step, control, self.saves)
        if (
            control.should_save
            or control.should_training_stop
            or self._is_alone(state.global_step)
            or self._is_alone(state.global_step + 1)
        ):
            control.should_log = True
        self.save_began_s = time.monotonic()

    def _is_alone(self, step: int) -> bool:
        """Whether the step's line must hold its own loss alone: the first, the last, and one whose
        held-out loss is measured, which may be the last. The step before it then has a line, too.
        """
        return step == self.first_step + 1 or step >= self.steps or self._measures(step)

    def _measures(self, step: int) -> bool:
        return self.curve is not None and self.curve.is_due(step)

    def _decide(self, step: int, control: Any, saves: SaveClock) -> None:
        """Save and stop in all processes or in none."""
        is_stopped, is_due = self.job.process.stop.is_agreed(
            is_main_process() and saves.is_due(step)
        )
        if is_stopped and step < self.steps:
            control.should_training_stop = True
            self.stopped_at = step
            if self.shown:
                say(
                    f"{self.label}: stopping after step {step} of {self.steps}: saving a checkpoint"
                )
        # transformers counts its own steps: those of the plan that the checkpoint came from.
        control.should_save = is_due or control.should_training_stop or step >= self.steps

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        del state.log_history[:-KEPT_LOGS]
        if not logs or "loss" not in logs or state.global_step <= self.last_step:
            return
        now, step = time.monotonic(), state.global_step
        done, took_s = step - self.last_step, now - self.last_s
        tokens = self.trainer.take_token_count()
        loss, norm, self.rate = logs["loss"], logs.get("grad_norm"), logs.get("learning_rate")
        self.losses.append(loss)
        self.step_times_s += [took_s / done] * done
        self.tokens += tokens
        # The GPU has done its work, which saving would have waited for.
        self.last_s = self.save_began_s = now
        self.last_step = step
        line = {
            "stage": self.job.stage.name,
            "task": self.job.task,
            "step": step,
            "steps": self.steps,
            "loss": loss,
            "learning_rate": self.rate,
            "grad_norm": norm,
            "tokens_per_s": round(tokens / max(took_s, 1e-9), 1),
            "memory_bytes": self.memory.peak_bytes(),
            **{metric_name(key): logs[key] for key in self.logged if key in logs},
        }
        own = [key for key in self.logged if logs.get(key) is not None][:SHOWN]
        self.shown_numbers = "".join(
            f", {key.split('/')[-1].replace('_', ' ')} {logs[key]:.3f}" for key in own
        )
        lost = None if math.isfinite(loss) else f"the loss became {loss}"
        # With loss scaling (fp16) a step with infinite gradients is skipped and the scale lowered.
        if not (lost or args.fp16 or norm is None or math.isfinite(norm)):
            lost = f"the gradient became {norm}"
        if control.should_evaluate and lost is None:
            self.line = line
            return
        self._finish(line)
        if lost is not None:
            place = f"at step {step}" if done == 1 else f"in steps {step - done + 1} to {step}"
            raise TrainingFailed(
                f"{lost} {place}; nothing was saved from it",
                hint=(
                    "lower the learning_rate (a third of it), check the data for extreme rows, or"
                    " use weights_dtype: float32"
                ),
            )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.parts is None:
            self._open_parts("held-out loss", len(eval_dataloader))
        if self.parts is not None:
            self.parts()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Note the held-out loss; save what became the best, and where the run ends."""
        self._close_parts()
        if self.curve is None or self.line is None:
            return
        took_s = time.monotonic() - self.last_s
        is_best = self.curve.add(state.global_step, metrics["eval_loss"], took_s)
        control.should_training_stop |= self.curve.stopped
        control.should_save |= self.curve.stopped or (is_best and self.curve.keeps_best)
        self.held_out_s += took_s
        self.last_s = self.save_began_s = time.monotonic()  # no part of a step's time
        self._finish(self.line | {"holdout_loss": metrics["eval_loss"]})
        self.line = None

    def _finish(self, line: dict[str, Any]) -> None:
        """Write the line of a step and show it."""
        step = line["step"]
        elapsed_s = time.monotonic() - self.began_s
        line = line | {"elapsed_s": round(self.earlier_s + elapsed_s, 3)}
        if self.writes:
            append_line(self.job.run / "metrics.jsonl", line)
        if self.trackers is not None:
            self.trackers.log(line, after=self.first_step)
        if self.wait is None:
            return
        done = max(step - self.first_step, 1)
        self.wait.at(
            step,
            text=f"loss {line['loss']:.3f}{self._last_held_out()}{self.shown_numbers},"
            f" {line['tokens_per_s']:,.0f} tokens/s",
            left_s=(self.steps - step) * elapsed_s / done,
        )
        if step >= self.steps:
            board.say_now()
        elif "holdout_loss" in line or step == self.first_step + 1:
            board.say_in_log()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_all()  # each process writes its random state into the checkpoint
        if state.is_world_process_zero and self.store is not None:
            rate, epoch = self.rate or 0.0, state.epoch or 0.0
            about = {"steps": self.steps, "learning_rate": rate, "epoch": epoch}
            if self.curve is not None:
                best = self.curve.kept_step if self.curve.keeps_best else None
                about |= {"held_out": self.curve.measured, "best_step": best}
            self.store.complete(state.global_step, about)
        self.last_s = time.monotonic()  # saving is not part of a step's time
        if self.saves is not None:
            self.saves.begin(self.last_s - self.save_began_s)

    def leave_out(self, seconds: float) -> None:
        """What an objective has measured in a step is not part of the step's time."""
        self.held_out_s += seconds
        self.last_s += seconds

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.train_s = time.monotonic() - self.began_s - self.held_out_s
        self.close()

    def close(self) -> None:
        if self.wait is not None:
            board.close(self.wait)
            self.wait = None
        if self.trackers is not None:
            self.trackers.close()

    def _last_held_out(self) -> str:
        if self.curve is None or not self.curve.measured:
            return ""
        last = self.curve.measured[-1]
        at = "" if last.step == self.last_step else f" (step {last.step})"
        return f", held-out {math.nan if last.loss is None else last.loss:.3f}{at}"

    @property
    def all_train_s(self) -> float:
        """Seconds of all steps, of every attempt, without the held-out losses between them."""
        measured_s = self.curve.seconds - self.held_out_s if self.curve is not None else 0.0
        return max(0.0, self.earlier_s - measured_s) + self.train_s

    @property
    def step_s(self) -> float:
        """Median time of a step, without the first, which is slower."""
        times = sorted(self.step_times_s[1:] or self.step_times_s)
        return times[len(times) // 2] if times else 0.0


# --------------------------------------------------------------------------- when to save


@dataclass
class SaveClock:
    """When to save: after so many steps or so many minutes, whichever comes first, but later where
    saving would take more than a small share of the time and the plan does not name the steps.
    """

    every: int  # steps between checkpoints
    is_asked: bool  # the plan names them
    minutes: float | None  # the longest time between checkpoints; None: steps alone count
    now_s: Callable[[], float] = time.monotonic
    took_s: float = 0.0  # the last save
    last_s: float = 0.0  # when training began, or a checkpoint had been written
    is_waiting: bool = False  # a save was due, and is put off

    def begin(self, took_s: float = 0.0) -> None:
        """Training begins, or a checkpoint has just been written, which took so long."""
        self.took_s, self.last_s, self.is_waiting = took_s, self.now_s(), False

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        trained_s = self.now_s() - self.last_s
        is_step = step % self.every == 0
        is_late = self.minutes is not None and trained_s >= self.minutes * 60
        self.is_waiting = self.is_waiting or is_step or is_late
        is_short = self.took_s <= LARGEST_SHARE * (trained_s + self.took_s)
        is_kept = is_step and (self.is_asked or self.took_s < SHORT_S)
        return is_kept or (self.is_waiting and is_short)
