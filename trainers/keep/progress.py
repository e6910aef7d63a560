"""What a run shows and records while it trains: its steps as a wait, and metrics.jsonl; and the end
of a run that has gone wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import Wait, board
from trainers.job.job import Job, label
from trainers.job.machine import MemoryMeter, is_main_process, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore, SaveClock
from trainers.keep.held_out_curve import HeldOutCurve
from trainers.keep.resuming import save_clock
from trainers.keep.trackers import Trackers
from trainers.say.metrics_file import append_line, metric_name
from trainers.say.progress import say

# Entries of the library's own log, which it keeps in memory and writes into each checkpoint. All of
# them are in metrics.jsonl.
KEPT_LOGS = 20
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
        self.job, self.shown, self.stop = job, is_main_process(), job.process.stop
        self.label = f"{label(job)} (dry run)" if job.dry_run else label(job)
        self.writes = self.shown and not job.dry_run
        self.steps, self.memory, self.store = steps, memory, store
        self.logged = logged
        self.saves = None if store is None else save_clock(job, steps)  # when one is due
        self.last_s = self.save_began_s = 0.0
        self.stopped_at: int | None = None  # the step after which it was asked to stop
        self.wait: Wait | None = None  # for the steps
        self.parts: Wait | None = None  # for the micro-batches of one step
        self.trainer: Any = None  # set once the trainer is made, which needs its callbacks
        self.curve: HeldOutCurve | None = None  # likewise; None: nothing is measured on the way
        self.trackers: Trackers | None = None  # likewise; None: there are none
        self.held_out: dict[int, float] = {}  # step -> held-out loss
        self.held_out_s = 0.0
        self.losses: list[float] = []
        self.step_times_s: list[float] = []
        self.tokens = 0
        self.train_s = 0.0  # of this attempt
        self.earlier_s = 0.0  # the clock of metrics.jsonl at the step that is resumed from

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
        if self.shown and args.gradient_accumulation_steps > 1:
            total = args.gradient_accumulation_steps
            self.parts = board.open("this step", total=total, unit="micro-batches")

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.parts is not None:
            self.parts()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and save what is due, and stop if any process was asked to. Log what was
        measured, what is saved, and the last step, whatever the distance between two lines.
        """
        if self.parts is not None:
            board.close(self.parts)
            self.parts = None
        if self.wait is not None:
            self.wait.done = state.global_step
        if self.curve is not None and self.curve.is_due(state.global_step):
            began_s = time.monotonic()
            self.held_out[state.global_step] = self.curve.measure(state.global_step)
            control.should_log = True  # so that the step has a line in metrics.jsonl
            if self.curve.stopped:
                control.should_training_stop = True
            took_s = time.monotonic() - began_s
            self.held_out_s += took_s
            self.last_s += took_s  # measuring is not part of a step's time
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
        is_measured = self.curve is not None and self.curve.is_due(step)
        return step == self.first_step + 1 or step >= self.steps or is_measured

    def _decide(self, step: int, control: Any, saves: SaveClock) -> None:
        """Save and stop in all processes or in none."""
        is_stopped, is_due = self.stop.is_agreed(is_main_process() and saves.is_due(step))
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
        now = time.monotonic()
        done = state.global_step - self.last_step
        step_s = (now - self.last_s) / done
        tokens = self.trainer.take_token_count()
        loss, norm, rate = logs["loss"], logs.get("grad_norm"), logs.get("learning_rate")
        self.losses.append(loss)
        self.step_times_s.extend([step_s] * done)
        self.tokens += tokens
        per_s = tokens / max(now - self.last_s, 1e-9)
        self.last_s, self.last_step = now, state.global_step
        self.save_began_s = now  # the GPU has done its work, which saving would have waited for
        memory = self.memory.peak_bytes()
        held_out = self.held_out.get(state.global_step)
        self._write(
            {
                "stage": self.job.stage.name,
                "task": self.job.task,
                "step": state.global_step,
                "steps": self.steps,
                "loss": loss,
                **({"holdout_loss": held_out} if held_out is not None else {}),
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens_per_s": round(per_s, 1),
                "elapsed_s": round(self.earlier_s + now - self.began_s, 3),
                "memory_bytes": memory,
                **{metric_name(key): logs[key] for key in self.logged if key in logs},
            }
        )
        left_s = (
            (self.steps - state.global_step)
            * (now - self.began_s)
            / max(state.global_step - self.first_step, 1)
        )
        if self.wait is not None:
            own = "".join(
                f", {key.split('/')[-1].replace('_', ' ')} {logs[key]:.3f}"
                for key in [key for key in self.logged if logs.get(key) is not None][:SHOWN]
            )
            self.wait.at(
                state.global_step,
                text=f"loss {loss:.3f}{self._last_held_out()}{own}, {per_s:,.0f} tokens/s",
                left_s=left_s,
            )
            if state.global_step >= self.steps:
                board.say_now()
            elif held_out is not None or state.global_step == self.first_step + 1:
                board.say_in_log()
        # With loss scaling (fp16) a step with infinite gradients is skipped and the scale lowered,
        # so only the loss counts.
        if not math.isfinite(loss) or (
            norm is not None and not math.isfinite(norm) and not args.fp16
        ):
            what = (
                f"the loss became {loss}"
                if not math.isfinite(loss)
                else f"the gradient became {norm}"
            )
            place = (
                f"at step {state.global_step}"
                if done == 1
                else f"in steps {state.global_step - done + 1} to {state.global_step}"
            )
            raise TrainingFailed(
                f"{what} {place}; nothing was saved from it",
                hint=(
                    "lower the learning_rate (a third of it), check the data for extreme rows, or"
                    " use weights_dtype: float32"
                ),
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_all()  # each process writes its random state into the checkpoint
        if state.is_world_process_zero and self.store is not None:
            rate = next(
                (
                    entry["learning_rate"]
                    for entry in reversed(state.log_history)
                    if "learning_rate" in entry
                ),
                0.0,
            )
            about = {
                "steps": self.steps,
                "learning_rate": rate,
                "epoch": state.epoch or 0.0,
                **({"held_out": self.curve.state()} if self.curve is not None else {}),
            }
            beside = self.curve.files() if self.curve is not None else []
            self.store.complete(state.global_step, about, beside=beside)
            if self.curve is not None:
                self.curve.keep_for(self.store.records())
        self.last_s = time.monotonic()  # saving is not part of a step's time
        if self.saves is not None:
            self.saves.saved(self.last_s - self.save_began_s)

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
        if not self.held_out:
            return ""
        step, loss = max(self.held_out.items())
        at = "" if step == self.last_step else f" (step {step})"
        return f", held-out {loss:.3f}{at}"

    def _write(self, line: dict[str, Any]) -> None:
        if self.writes:
            append_line(self.job.run / "metrics.jsonl", line)
        if self.trackers is not None:
            self.trackers.log(line, after=self.first_step)

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
