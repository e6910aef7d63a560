"""What to do after a run: the next step of its verdict, and command lines that continue from it,
whole and ready to paste. What they set takes effect: a key that the plan or a task overrides is
named where it counts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from advisor.ground.files import PLAN_FILE
from advisor.ground.resources import PACKAGE
from advisor.methods import objective, update
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.record.run import RunRecord, StageRecord
from advisor.record.smaller import key_path
from advisor.record.stage import Evaluation, Metric
from advisor.record.verdict import (
    BETTER,
    LOST,
    NOT_MEASURED,
    UNCLEAR,
    WORSE,
    Finding,
    Limits,
    NextStep,
)

WORDS = (BETTER, WORSE, UNCLEAR)
HELD_OUT_LOSS = "held-out loss"
USUAL_HELD = 64  # rows that tell small differences, where the objective's file names no number


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What decides on one trained stage."""

    name: str
    metric: Metric

    @property
    def difference(self) -> float | None:
        """After less before."""
        before, after = self.metric.before, self.metric.after
        return None if before is None or after is None else after - before

    @property
    def half_width(self) -> float | None:
        """Half of the interval of the difference."""
        found = self.metric.interval
        if found is None or len(found) != 2 or found[0] is None or found[1] is None:
            return None
        return (found[1] - found[0]) / 2

    def rows_needed(self) -> int | None:
        """About how many held-out rows would tell a difference of the size that was seen: an
        interval narrows with the root of the rows. None where that cannot be said.
        """
        half, difference, rows = self.half_width, self.difference, self.metric.rows
        if not half or not difference or not rows:
            return None
        return math.ceil(rows * (half / abs(difference)) ** 2)


def what_decides(stage: StageRecord) -> Compared | None:
    """The comparison that decides whether a stage learned its task; None without one."""
    found = stage.evaluation
    if found is None:
        return None
    if found.decides in found.metrics:
        return Compared(name=str(found.decides), metric=found.metrics[str(found.decides)])
    if found.holdout_loss_after is not None and found.holdout_loss_before is not None:
        loss = Metric(
            before=found.holdout_loss_before,
            after=found.holdout_loss_after,
            interval=found.holdout_loss_interval,
            rows=found.rows,
            word=_word_of_loss(found, stage.verdict.word if stage.verdict else None),
        )
        return Compared(name=HELD_OUT_LOSS, metric=loss)
    named = [(name, one) for name, one in found.metrics.items() if one.after is not None]
    return Compared(name=named[0][0], metric=named[0][1]) if named else None


def _word_of_loss(found: Evaluation, said: str | None) -> str:
    if said in WORDS:
        return str(said)
    interval = found.holdout_loss_interval
    low, high = interval if interval is not None and len(interval) == 2 else (None, None)
    if low is None or high is None or low <= 0 <= high:
        return UNCLEAR
    return BETTER if high < 0 else WORSE


def usual_rows(stage: StageRecord) -> int:
    """How many held-out rows tell small differences, by the objective's own file."""
    stated: int | None = objective(stage.objective).steps.get("held_out")
    return stated or USUAL_HELD


def round_up(count: int) -> int:
    """Two figures: an estimate claims no more."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step


CARD = "README.md"


def resume_command(
    folder: str, *, only: str | None = None, max_steps: int | None = None, judge: bool = True
) -> str:
    """'advise run runs/shop-1b2c --only legal': the run folder holds the plan with its changes."""
    words = ["advise", "run", f"./{folder}" if folder.startswith("-") else folder]
    words += ["--only", only] if only is not None else []
    words += ["--max-steps", str(max_steps)] if max_steps is not None else []
    return shlex.join([*words, *([] if judge else ["--no-judge"])])


def upload_command(repository: str, folder: str, files: Iterable[str]) -> str:
    """The command that uploads a result's files and card; checkpoints and samples stay."""
    only = [f"--include={name}" for name in (*files, CARD)]
    return shlex.join(["hf", "upload", repository, folder, ".", "--private", *only])


def longer_setting(entry: Entry) -> str:
    """'stages.sft.epochs=4': twice the training of a stage, by the key that decides on it."""
    stage = entry.stage
    if stage.max_steps is not None:
        return f"{key_path(entry, 'max_steps')}={2 * stage.max_steps}"
    return f"{key_path(entry, 'epochs')}={2 * stage.epochs:g}"


TRIAL_ROWS = 50
LEAST_STEPS = 3  # fewer show no direction of the loss


def trial_steps(plan: Plan) -> int:
    """How many optimizer steps of each stage read about `TRIAL_ROWS` rows, for --max-steps.

    One number for all stages: that of the stage with the most rows a step, since a trial is to end
    in minutes.
    """
    rows = [entry.stage.effective_batch_size * plan.launch.world_size for entry in entries(plan)]
    return max(LEAST_STEPS, math.ceil(TRIAL_ROWS / max(rows)))


GENERAL = PACKAGE / "demo" / "general.jsonl"  # rows to begin with, written for this project
MOST_HELD = 0.2  # share of the rows that may be held out: as in the advice


@dataclass(frozen=True, kw_only=True, slots=True)
class NextStepFinder:
    """Where the next step is looked for."""

    record: RunRecord
    stage: StageRecord
    entry: Entry | None
    run: str
    known: Limits

    @property
    def is_alone(self) -> bool:
        """Whether the plan trains one stage on one file."""
        return len(self.record.stages) == 1

    def after(self, task: Finding, general: Finding, compared: Compared | None) -> NextStep:
        """The one thing to do next; the first that applies."""
        if self.record.max_steps:
            return self._say(
                "run_whole",
                f"this was a trial of {self.record.max_steps} steps: train the whole plan",
                f"advise run {self._plan} --output {shlex.quote(f'{self.run}-whole')}",
            )
        if task.status == NOT_MEASURED:
            return self._measure()
        if task.status == WORSE:
            return self._worse()
        if task.status == UNCLEAR:
            return self._unclear(compared)
        if general.status == LOST:
            return self._lost()
        return self._better()

    @property
    def _plan(self) -> str:
        return shlex.quote(f"{self.run}/{PLAN_FILE}")

    def _say(self, action: str, text: str, command: str | None = None) -> NextStep:
        return NextStep(action=action, text=text, command=command)

    def _again(self, *settings: str) -> str:
        words = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
        return f"advise run {self._plan} {words}"

    def _key(self, key: str) -> str:
        if self.entry is not None:
            return key_path(self.entry, key)
        return f"stages.{self.stage.plan_stage}.{key}"

    def _rate(self) -> float | None:
        stated = (self.record.settings(self.stage).trl or {}).get("learning_rate")
        if self.entry is not None:
            stated = self.entry.stage.learning_rate
        return float(stated) if isinstance(stated, int | float) and stated > 0 else None

    def _other_rate(self, factor: float) -> str | None:
        rate = self._rate()
        return None if rate is None else f"{self._key('learning_rate')}={rate * factor:.1e}"

    def _check_data(self) -> str | None:
        path = self.entry.data.path if self.entry is not None else None
        return f"advise check {shlex.quote(str(path))}" if path else None

    def _measure(self) -> NextStep:
        if not self.record.judge:
            text = "compare it with its base: train again without --no-judge"
            return self._say("measure", text, f"advise run {self._plan} --output {self.run}-judged")
        share = f"{self._key('holdout')}={MOST_HELD:g}"
        return self._say("measure", "hold out rows to compare on", self._again(share))

    def _worse(self) -> NextStep:
        curve = self.stage.held_out
        if curve is not None and curve.best_step and curve.best_step != curve.last_step:
            return self._say(
                "train_shorter",
                f"it was best after step {curve.best_step}: keep those weights",
                self._again(f"{self._key('keep')}=best"),
            )
        lower = self._other_rate(1 / self.known.rate_factor)
        text = f"try a learning rate {self.known.rate_factor:g} times lower"
        return self._say("lower_rate", text, self._again(lower) if lower else None)

    def _unclear(self, compared: Compared | None) -> NextStep:
        if compared is None:
            return self._say("look_at_data", "look at its rows", self._check_data())
        held, rows = compared.metric.rows or 0, self.stage.data.rows if self.stage.data else None
        needed = compared.rows_needed() or usual_rows(self.stage)
        before, difference = compared.metric.before, compared.difference
        if before and difference is not None:
            small = abs(difference) <= self.known.no_effect * abs(before)
            if small and held >= usual_rows(self.stage) / 2:
                higher = self._other_rate(self.known.rate_factor)
                text = "it did not learn: look at its rows, then try a higher learning rate"
                command = self._check_data() or (self._again(higher) if higher else None)
                return self._say("look_at_data", text, command)
        if rows and held < MOST_HELD * rows and needed <= MOST_HELD * rows:
            share = min(MOST_HELD, max(needed, 2 * held) / rows)
            setting = f"{self._key('holdout')}={share:.2g}"
            return self._say("hold_out_more", "hold out more rows", self._again(setting))
        wanted = f", about {round_up(math.ceil(needed / MOST_HELD)):,} in all" if needed else ""
        return self._say("more_data", f"collect more rows{wanted}", self._check_data())

    def _lost(self) -> NextStep:
        """A style that every row has is learned as the style of every answer; rows that do not
        have it show where it ends.
        """
        each = round(1 / self.known.general_rows)
        text = f"mix general questions into the data, one for every {each} rows or more"
        return self._say("mix_general", text, self._mixing())

    def _mixing(self) -> str | None:
        """The command that trains on the data and our general rows, where they have one form."""
        data = self.entry.data if self.entry is not None else None
        if data is None or data.path is None or data.format != "messages":
            return None
        path = str(data.path)
        if not path.endswith(".jsonl") or not self.is_alone:
            return None
        ours = shlex.quote(str(GENERAL))
        return (
            f"cat {shlex.quote(path)} {ours} > mixed.jsonl && advise run {self._plan}"
            ' --set data.path="$PWD/mixed.jsonl"'
        )

    def _better(self) -> NextStep:
        longer = self._unfinished()
        if longer and self.entry is not None:
            command = self._again(longer_setting(self.entry))
            return self._say("train_longer", f"train longer: {longer}", command)
        wrong = [check.name for check in self.stage.checks if not check.ok]
        if wrong:
            text = f"try it, and mind the warning ({', '.join(wrong[:2])})"
            return self._say("try_it", text, self._chat())
        if self._chat() and update(self.stage.update).merges:
            return self._say(
                "ship",
                "try some questions of your own, then merge it to serve it",
                f"advise export {shlex.quote(self.run)} --to merged",
            )
        return self._say("ship", "try some inputs of your own, then use it", self._chat())

    def _unfinished(self) -> str:
        """Why a good result would be better after more training, or an empty string."""
        stage, curve = self.stage, self.stage.held_out
        if curve is not None and curve.stopped_early:
            return ""  # more steps would not be taken
        found = stage.evaluation or Evaluation()
        told = [one for one in found.samples if one.tuned_stopped is not None]
        ended = sum(bool(one.tuned_stopped) for one in told)
        if told and ended <= self.known.answers_end * len(told):
            return f"only {ended} of {len(told)} answers end by themselves"
        if curve is not None and curve.fell is not None:
            still = curve.fell >= self.known.still_falling
            return f"held-out loss still fell by {curve.fell:.0%} at the end" if still else ""
        least = objective(stage.objective).steps.get("least")
        if least and stage.steps and stage.steps < least:
            return f"{stage.steps} optimizer steps are few, {least} are usual"
        return ""

    def _chat(self) -> str | None:
        writes = self.record.writes(self.stage)
        return f"advise chat {shlex.quote(self.run)}" if writes else None
