"""The updates of a PPO stage: their prompts, what is recorded and shown, when to save, and when to
stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import board, track, waiting
from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DRY_RUN, StageMeasurement
from advisor.record.stage import Measured
from trainers.job.files import write_json
from trainers.job.job import Job, label
from trainers.job.machine import MemoryMeter, is_main_process
from trainers.keep.checkpoint_store import CheckpointStore, SaveClock
from trainers.keep.resuming import save_clock
from trainers.keep.trackers import Trackers
from trainers.ppo.build import process_rank
from trainers.ppo.guards import CONSTANT, FIRST, findings, not_finite, reward_hacked
from trainers.ppo.heldout import HeldOutEvaluator
from trainers.ppo.saving import save_checkpoint
from trainers.ppo.steps import prompts_of_update, rate_share, set_rates
from trainers.ppo.update import PPO
from trainers.rewards.watch import Watch, stage_lines
from trainers.rows import Prepared
from trainers.rows.conversation import Prompt
from trainers.say.metrics_file import append_line
from trainers.say.progress import say
from trainers.step import settings

EVALUATIONS = 4  # how often held-out prompts are answered during a run
DRY_STEPS = 2


@dataclass
class PPORun:
    """The updates of a stage, and the record of them."""

    job: Job
    ppo: PPO
    data: Prepared[Prompt]
    memory: MemoryMeter
    shown: bool
    store: CheckpointStore | None = None  # None: a dry run, which writes none
    evaluator: HeldOutEvaluator | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)  # finding -> when, what, hint
    step_times_s: list[float] = field(default_factory=list)
    tokens: int = 0
    train_s: float = 0.0  # of this attempt
    earlier_s: float = 0.0  # the clock of metrics.jsonl at the update that is resumed from
    watch: Watch = field(default_factory=Watch)
    trackers: Trackers | None = None
    first: int = 0  # the update that this attempt began with
    stopped_at: int | None = None  # the update after which it was asked to stop

    @property
    def metrics(self) -> Path:
        """The file for a line of each update."""
        return self.job.run / "metrics.jsonl"

    @property
    def size(self) -> int:
        """Prompts per update and process."""
        return self.job.stage.effective_batch_size

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return settings.total_steps(self.job, len(self.data.train), processes=settings.world_size())

    def run_updates(self, first: int) -> None:
        """Run every update from `first` on, or until the process is asked to stop.

        Raises TrainingFailed if a number is not finite, or a guard stops a run that is no trial.
        """
        import torch

        job, steps, world = self.job, self.steps, settings.world_size()
        look_every = max(1, math.ceil(steps / (EVALUATIONS + 1)))
        began = time.monotonic()
        self.earlier_s = self.lines[-1].get("elapsed_s", 0.0) if self.lines else 0.0
        saves = save_clock(job, steps)
        write_every = settings.lines_every(steps)
        board.label = label(job)
        self.first = first
        with (
            closing(Trackers(job)) as self.trackers,
            job.process.stop.finishing_steps(),
            waiting("training", total=steps, unit="updates", done=first) as updates,
        ):
            for step in range(first, steps):
                started = time.monotonic()
                share = rate_share(
                    step, steps, warmup=job.stage.warmup, scheduler=job.stage.scheduler
                )
                set_rates(self.ppo.optimizer, share)
                self.ppo.done = step
                prompts = prompts_of_update(
                    step,
                    self.data.train,
                    size=self.size,
                    seed=job.stage.seed,
                    rank=process_rank(),
                    world=world,
                )
                if world > 1:  # every process draws numbers of its own
                    torch.manual_seed(job.stage.seed + step * world + process_rank())
                found = self.ppo.update(prompts)
                seconds = time.monotonic() - started
                line = self.line(
                    step + 1,
                    found,
                    job.stage.learning_rate * share,
                    seconds,
                    self.earlier_s + time.monotonic() - began,
                )
                is_looked = (step + 1) % look_every == 0 and step + 1 < steps
                if is_looked and self.evaluator is not None:
                    wins, losses = self.evaluator.evaluate_midway()
                    line["holdout_wins"], line["holdout_losses"] = wins, losses
                is_stopped, is_due = job.process.stop.is_agreed(
                    is_main_process() and saves.is_due(step + 1)
                )
                is_saved = is_stopped or is_due or step + 1 == steps
                is_written = is_saved or "holdout_wins" in line or step % write_every == 0
                self.record(line, is_written=is_written or step < FIRST)
                left_s = (steps - step - 1) * (time.monotonic() - began) / (step + 1 - first)
                updates.at(step + 1, text=update_line(line), left_s=left_s)
                if step + 1 == steps:
                    board.say_now()
                elif step == first or "holdout_wins" in line:
                    board.say_in_log()
                self.guard(line)
                if is_saved:
                    if is_stopped and self.shown:
                        say(f"{label(job)}: stopping after update {step + 1} of {steps}")
                    self.save(step + 1, saves)
                self.train_s = time.monotonic() - began
                if is_stopped and step + 1 < steps:
                    self.stopped_at = step + 1
                    return

    def save(self, step: int, saves: SaveClock) -> None:
        """Write a checkpoint after so many updates."""
        if self.store is None:
            return
        began_s = time.monotonic()
        epoch = step * self.size * settings.world_size() / len(self.data.train)
        with waiting("saving a checkpoint"):
            save_checkpoint(self.store, self.ppo, step=step, steps=self.steps, epoch=epoch)
        saves.saved(time.monotonic() - began_s)

    def line(
        self, step: int, found: Mapping[str, float], rate: float, seconds: float, elapsed_s: float
    ) -> dict[str, Any]:
        """The line of an update in metrics.jsonl."""
        tokens = int(found["tokens"]) * settings.world_size()
        self.tokens += tokens
        self.step_times_s.append(seconds)
        about = {
            "stage": self.job.stage.name,
            "task": self.job.task,
            "step": step,
            "steps": self.steps,
            "learning_rate": rate,
        }
        rest = {key: value for key, value in found.items() if key not in ("tokens", "loss")}
        costs = {
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            "elapsed_s": round(elapsed_s, 3),
            "memory_bytes": self.memory.peak_bytes(),
        }
        return {**about, "loss": found["loss"], **rest, **costs}

    def record(self, line: Mapping[str, Any], *, is_written: bool = True) -> None:
        """Keep the line as long as the guards look at it, and append it to metrics.jsonl."""
        self.lines.append(dict(line))
        del self.lines[FIRST:-CONSTANT]
        if self.shown and is_written:
            append_line(self.metrics, line)
            if self.trackers is not None:
                self.trackers.log(line, after=self.first)

    def written_lines(self) -> list[dict[str, Any]]:
        """The lines of this stage that an earlier process wrote."""
        return stage_lines(self.metrics, stage=self.job.stage.name, task=self.job.task)

    def guard(self, line: Mapping[str, Any]) -> None:
        """Report what is wrong, once each; raise TrainingFailed if it stops the run."""
        job = self.job
        bad = not_finite(line, scaled=self.ppo.scaler is not None)
        if bad is not None:
            raise TrainingFailed(
                f"{bad} at update {line['step']}; nothing was saved from it",
                hint="lower the learning_rate (a third of it), or use weights_dtype: float32",
            )
        found = findings(
            self.lines,
            kl_limit=job.options["kl_limit"],
            response_tokens=job.options["response_tokens"],
        )
        if "holdout_wins" in line:
            start = [old["reward"] for old in self.lines[:FIRST]]
            found += [
                finding
                for finding in [
                    reward_hacked(
                        sum(start) / len(start),
                        line["reward"],
                        line["holdout_wins"],
                        line["holdout_losses"],
                    )
                ]
                if finding
            ]
        if self.shown:
            for text in self.watch.see({**line, "cut": 1 - line["ended"]}):
                say(f"{label(job)}: WARNING: {text}")
        for finding in found:
            if finding.stops and job.max_steps is None:
                raise TrainingFailed(f"{finding.what} (update {line['step']})", hint=finding.hint)
            if finding.name not in self.warnings and self.shown:
                say(f"{label(job)}: WARNING: {finding.what}: {finding.hint}")
            self.warnings.setdefault(
                finding.name, f"update {line['step']}: {finding.what}: {finding.hint}"
            )

    def measured(self) -> Measured:
        """What the run cost, for result.json."""
        times = sorted(self.step_times_s[1:] or self.step_times_s)
        return Measured(
            peak_bytes=self.memory.peak_bytes(),
            counter=self.memory.counter,
            reserved_bytes=self.memory.reserved_bytes(),
            step_s=times[len(times) // 2] if times else None,
            tokens_per_s=self.tokens / self.train_s if self.train_s else None,
            train_s=self.earlier_s + self.train_s,
        )

    def measure(self, versions: Mapping[str, str]) -> None:
        """Measure two updates on the longest prompts with answers of full length, and write
        dry_run.json.
        """
        job, limit = self.job, self.job.options["response_tokens"]
        # As many as are ever generated at once.
        longest = sorted(self.data.train, key=lambda row: -row.tokens)[: self.size]
        rows = self.ppo.local.rows_at_once(
            [longest[0].prompt_ids] * self.size, self.ppo.settings.response_tokens
        )
        longest = [longest[place % len(longest)] for place in range(rows)]
        set_rates(self.ppo.optimizer, 1.0)
        times, losses = [], []
        for _ in track(range(DRY_STEPS), "longest answers", unit="updates"):
            began = time.monotonic()
            found = self.ppo.update(longest, shortest=limit)
            times.append((time.monotonic() - began) * self.size / rows)
            losses.append(found["loss"])
            self.tokens += int(found["tokens"])
        self.train_s = sum(times) * rows / self.size
        if not self.shown:
            return
        step_s = times[-1]
        peak_bytes = self.memory.peak_bytes()
        record = StageMeasurement(
            measured=Measured(
                peak_bytes=peak_bytes,
                training_peak_bytes=peak_bytes,
                counter=self.memory.counter,
                reserved_bytes=self.memory.reserved_bytes(),
                baseline_bytes=self.memory.baseline_bytes,
                step_s=step_s,
                step_times_s=tuple(times),
                micro_batches=-(-rows // job.stage.micro_batch_size),
                tokens_per_s=self.tokens / self.train_s,
            ),
            steps=self.steps,
            longest_batch_duration_s=step_s * self.steps,
            batch_tokens=sum(row.tokens + limit for row in longest[: job.stage.micro_batch_size]),
            losses=tuple(losses),
            data=self.data.counts(),
            versions=versions,
        )
        write_json(job.output / DRY_RUN, record.to_dict())
        kind = (
            "allocated on the GPU"
            if self.memory.on_gpu
            else "growth of resident memory from before the model was loaded"
        )
        peak = f"peak {format_gib(peak_bytes)} ({kind})"
        say(
            f"{job.stage.name}: {peak}, {step_s:.2f} s per update with the longest answers,"
            f" {self.steps:,} updates: at most {format_duration(step_s * self.steps)}"
        )


def update_line(line: Mapping[str, Any]) -> str:
    """The numbers of an update in one line."""
    parts = [
        f"reward {line['reward']:.3f}",
        f"KL {line['kl']:.3f}",
        f"entropy {line['entropy']:.2f}",
        f"clipped {line['clip_fraction']:.0%}",
        f"explained {line['explained_variance']:.2f}",
        f"{line['response_tokens']:.0f} tokens, {line['ended']:.0%} end",
        f"{line['tokens_per_s']:,.0f} tokens/s",
    ]
    return ", ".join(parts)
