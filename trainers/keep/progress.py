"""What a run shows and records while it trains: its steps as a wait, and metrics.jsonl; and the end
of a run that has gone wrong.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from transformers import TrainerCallback

from advisor.ground.errors import TrainingFailed
from advisor.ground.files import shown_path
from advisor.ground.progress import Wait, board, is_live
from advisor.ground.terminal import mask_secrets, one_line
from advisor.ground.version import __version__
from advisor.plan.entries import path_from
from advisor.plan.model import Origin
from advisor.plan.write import plan_data
from advisor.record.stage import metric_words
from trainers.job.files import make_folder, read_json, write_json
from trainers.job.job import Job, label
from trainers.job.libraries import first_line
from trainers.job.machine import MemoryMeter, is_main_process, process_count, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.checkpoints import random_states, restore_random_states
from trainers.keep.held_out_curve import MOST_TIMES, HeldOutCurve
from trainers.say.progress import append_line, metric_name, say
from trainers.step import settings

# Entries of the library's own log, which it keeps in memory and writes into each checkpoint. All of
# them are in metrics.jsonl.
KEPT_LOGS = 20
LARGEST_SHARE = 0.05  # of the time that saving may take
SHORT_S = 1.0  # a save that takes less is not put off
COLUMNS = 68  # of an answer that is shown on the way, behind what it is called
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
        self.watched: Watched | None = None  # None: nobody is asked on the way
        self.line: dict[str, Any] | None = None  # of a step whose held-out loss is being measured
        self.trackers = Trackers(job) if self.writes else None
        self.held_out_s = self.train_s = 0.0  # of this attempt
        self.earlier_s = 0.0  # the clock of metrics.jsonl at the step that is resumed from
        self.earlier: dict[str, Any] = {}  # what the checkpoint there says of earlier attempts
        self.took_s: dict[str, float] = {}  # what came before the steps, of every attempt
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
        if self._is_between(state.global_step, args):
            control.should_save = False  # transformers counts its own steps
        elif self.saves is not None:
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

    def _is_between(self, step: int, args: Any) -> bool:
        """Whether the next step trains on answers that were written for several (GRPO and RLOO with
        `num_iterations` or `steps_per_generation`): a run that resumes there would write others.
        """
        each = getattr(args, "steps_per_generation", None)  # in micro-batches
        if each is None or step >= self.steps:
            return False
        return bool(step * args.gradient_accumulation_steps % (each * args.num_iterations))

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
            f", {metric_words(key.split('/')[-1])} {logs[key]:.3f}" for key in own
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
        if self.watched is not None and self.watched.is_due(step, self.steps, elapsed_s):
            self._ask(self.watched, step)

    def _ask(self, watched: Watched, step: int) -> None:
        """Show how the question is answered now; after the last step beside the base's answer."""
        assert self.wait is not None
        is_first, states = not watched.last_step, random_states()
        now = watched.ask(step)
        restore_random_states(states)
        self.last_s += watched.last_s  # no part of a step's time
        self.wait.below = watched.lines(**{f"step {step}": now})
        if step >= self.steps:  # what training changed, long before all of it is measured
            say(watched.lines(before=watched.before, now=now))
        elif not is_live(sys.stderr):
            say(self.wait.below if is_first else self.wait.below.splitlines()[-1])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_all()  # each process writes its random state into the checkpoint
        if state.is_world_process_zero and self.store is not None:
            rate, epoch = self.rate or 0.0, state.epoch or 0.0
            about = {"steps": self.steps, "learning_rate": rate, "epoch": epoch}
            about["earlier"] = {"took_s": self.took_s, "tokens": self.all_tokens()}
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
        asked_s = self.watched.took_s if self.watched is not None else 0.0
        self.train_s = time.monotonic() - self.began_s - self.held_out_s - asked_s
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

    def all_tokens(self) -> dict[str, int | None]:
        """The counts of every attempt; of the largest micro-batch the largest."""
        found: dict[str, int | None] = dict(self.trainer.all_tokens())
        for name, count in self.earlier.get("tokens", {}).items():
            now = found.get(name)
            known = [one for one in (now, count) if one is not None]
            both = max if name == "largest_batch_tokens" else sum
            found[name] = both(known) if known else None
        return found

    @property
    def step_s(self) -> float:
        """Median time of a step, without the first, which is slower."""
        times = sorted(self.step_times_s[1:] or self.step_times_s)
        return times[len(times) // 2] if times else 0.0


# --------------------------------------------------------------------------- one answer


@dataclass
class Watched:
    """One held-out question, whose answer is shown as it changes: about ten times a run, in
    LARGEST_SHARE of its time. Weights and random numbers stay as they are.
    """

    question: str
    before: str  # the base's answer
    answer: Callable[[], str]
    took_s: float = 0.0  # all answers of this attempt
    last_s: float = 0.0  # the last one
    last_step: int = 0

    def is_due(self, step: int, steps: int, elapsed_s: float) -> bool:
        """Whether to ask after this step; after the last one in any case that others were."""
        is_next = step - self.last_step >= steps / MOST_TIMES
        has_time = self.took_s + self.last_s <= LARGEST_SHARE * elapsed_s
        return (is_next and has_time) or (step >= steps and self.last_step > 0)

    def ask(self, step: int) -> str:
        """The answer with the weights of now."""
        self.last_step, began_s = step, time.monotonic()
        answer = self.answer()
        self.last_s = time.monotonic() - began_s
        self.took_s += self.last_s
        return answer

    def lines(self, **answers: str) -> str:
        """The question and its answers, by what they are called, a line each."""
        shown = {"asked": self.question, **answers}
        return "\n".join(
            f"  {who:8} {one_line(text, COLUMNS) or '(nothing)'}" for who, text in shown.items()
        )


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
    asked: int | None = None  # the last step that was asked about

    def begin(self, took_s: float = 0.0) -> None:
        """Training begins, or a checkpoint has just been written, which took so long."""
        self.took_s, self.last_s, self.is_waiting = took_s, self.now_s(), False

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        trained_s = self.now_s() - self.last_s
        before, self.asked = step - 1 if self.asked is None else self.asked, step
        is_step = step // self.every > before // self.every
        is_late = self.minutes is not None and trained_s >= self.minutes * 60
        self.is_waiting = self.is_waiting or is_step or is_late
        is_short = self.took_s <= LARGEST_SHARE * (trained_s + self.took_s)
        is_kept = is_step and (self.is_asked or self.took_s < SHORT_S)
        return is_kept or (self.is_waiting and is_short)


# --------------------------------------------------------------------------- trackers
# The plan's trackers get the numbers of metrics.jsonl, too, through accelerate's classes for them.
# Each stage has a run of its own there; files lie in the run folder. A tracker that fails is left
# out from then on: training never fails by it.

START_S, END_S = 60.0, 120.0  # how long wandb may take to begin a run, and to send its end
FOLDER = "trackers"  # of the run folder
# Of a line of metrics.jsonl, what says which line it is; the rest are numbers to track.
ABOUT = ("stage", "task", "step", "steps")
NOT_SHOWN = ("name", "data", "start_from")  # of a stage, among its settings


class Trackers:
    """The trackers of one stage, opened by its first line, so that a process that trains nothing
    opens none.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open: dict[str, Any] | None = None

    def log(self, line: Mapping[str, Any], *, after: int) -> None:
        """Hand on a line of metrics.jsonl, of an attempt that began after a step; 0: anew."""
        if self.open is None:
            self.open = {}
            for name in dict.fromkeys(self.job.plan.extra_key("trackers", "trackers") or ()):
                with self._or_give_up(name):
                    self.open[name] = open_tracker(self.job, name, after)
        numbers = {
            key: float(value)
            for key, value in line.items()
            if key not in ABOUT and isinstance(value, int | float)
        }
        for name, tracker in list(self.open.items()):
            with self._or_give_up(name):
                tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        """End the runs, but not those of a stage that fails: their libraries mark them as failed
        when the process ends.
        """
        failed = sys.exc_info()[0] is not None
        for name, tracker in () if failed else list((self.open or {}).items()):
            with self._or_give_up(name):
                tracker.finish()
        self.open = {}

    @contextmanager
    def _or_give_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever its library raises
            say(
                f"{label(self.job)}: WARNING: {name} gets nothing more of this stage:"
                f" {mask_secrets(first_line(error))}; metrics.jsonl has everything"
            )
            (self.open or {}).pop(name, None)


def open_tracker(job: Job, name: str, after: int) -> Any:
    """The run of a stage in one service. A stage that began anew tells it its settings."""
    if name == "wandb":
        # Before the import, which reads it: its reports about itself.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = make_folder(job.run / FOLDER)
    kind, project = LOGGER_TYPE_TO_CLASS[name], job.plan.name
    options: dict[str, Any] = {}
    if kind.requires_logging_directory:
        options["logging_dir"] = str(folder / name)
    if name == "tensorboard":
        # What a killed attempt wrote behind its checkpoint is hidden: it is trained again.
        project, options["purge_step"] = job.entry.name, after + 1
    elif name == "wandb":
        project = os.environ.get("WANDB_PROJECT") or project
        options |= wandb_options(job, after)
    tracker = kind(project, **options)
    tracker.start()
    if not after:
        tracker.store_init_configuration(stage_settings(job))
        where = shown_path(folder / name) if (folder / name).is_dir() else f"project {project}"
        say(f"{label(job)}: {name} gets the numbers, too: {where}")
    return tracker


def wandb_options(job: Job, after: int) -> dict[str, Any]:
    """Of wandb's run, which a resumed stage goes on in, sent as it goes or kept in the run folder
    (WANDB_MODE=offline).

    Nothing is sent but the numbers and the stage's settings: no code, no output, no packages,
    nothing of the machine.
    """
    import wandb  # type: ignore[import-not-found, unused-ignore]

    kept = job.run / FOLDER / f"{job.entry.name}.json"
    identity = (read_json(kept) or {}).get("wandb") if after else None
    if identity is None:
        identity = secrets.token_hex(4)
        write_json(kept, {"wandb": identity})
    options = wandb.Settings(
        silent=True, console="off", host="", disable_git=True, disable_code=True,
        save_code=False, disable_job_creation=True, x_disable_stats=True, x_disable_meta=True,
        x_disable_machine_info=True, x_save_requirements=False,
        x_transaction_log_flush_interval=1.0, init_timeout=START_S,
        # Else a lost network would hold a GPU until it is back.
        finish_timeout=END_S, finish_timeout_raises=True,
    )  # fmt: skip
    return {
        "group": os.environ.get("WANDB_RUN_GROUP") or job.run.name,
        "name": f"{job.run.name}-{job.entry.name}",
        "id": identity,
        "resume": "allow",
        "dir": str(kept.parent),
        "settings": options,
    }


def stage_settings(job: Job) -> dict[str, Any]:
    """What a tracker may know of the stage: its settings, and the model's name. A plan holds no
    secrets; the data is not named, and of a model in a folder the folder's name alone.
    """
    alone = replace(job.plan, stages=(job.stage,), tasks=(), origin=Origin())
    keys = {**plan_data(alone)["stages"][0], **job.options}
    model = path_from(job.folder, job.plan.model)
    found = {
        "plan": job.plan.name,
        "stage": job.stage.name,
        "task": job.task,
        "model": model.name if model.exists() else job.plan.model,
        "world_size": process_count(),
        "advise": __version__,
        **{key: value for key, value in keys.items() if key not in NOT_SHOWN},
    }
    # Trackers take plain values: what has parts is written as JSON.
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value, default=str)
        for key, value in found.items()
        if value is not None
    }
