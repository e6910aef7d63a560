"""What to do after a run: the next step of its verdict, and command lines that continue from it,
whole and ready to paste. What they set takes effect: a key that the plan or a task overrides is
named where it counts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping

from msgspec import Struct

from advisor.ground.counting import counted
from advisor.ground.files import PLAN_FILE
from advisor.ground.resources import PACKAGE
from advisor.ground.types import FSDP, REPLAY_LEN
from advisor.methods import objective, update
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.record.run import CARD, RunRecord, StageRecord
from advisor.record.smaller import key_path
from advisor.record.stage import Metric
from advisor.record.verdict import (
    LOST,
    NOT_MEASURED,
    UNCLEAR,
    WORSE,
    NextStep,
    PlainResult,
    VerdictPart,
    limits,
)


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


def longer_words(setting: str) -> str:
    """'from the beginning, with 4 epochs', of such a setting."""
    key, count = setting.rsplit(".", 1)[-1].split("=")
    what = key.removeprefix("max_").removesuffix("s")
    return f"from the beginning, with {counted(float(count), what)}"


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
REPLAY_ROWS, MOST_REPLAY = 500, 0.5  # bundled questions; the largest share that is advised
MOST_HELD = 0.2  # share of the rows that may be held out: as in the advice
USUAL_HELD = 64  # rows that tell small differences, where the objective's file names no number


def usual_rows(stage: StageRecord) -> int:
    """How many held-out rows tell small differences, by the objective's own file."""
    return int(objective(stage.objective).steps.get("held_out") or USUAL_HELD)


def round_up(count: int) -> int:
    """Two figures: an estimate claims no more."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step


def gains_nothing(stage: StageRecord, plain: PlainResult | None) -> bool:
    """Whether more training would change nothing that anybody sees: every row that was counted is
    as it should be, or the loss on held-out rows is next to nothing.
    """
    if plain is not None and plain.of and plain.good == plain.of:
        return True
    curve, found = stage.held_out, stage.evaluation
    last = found.holdout_loss_after if found is not None else None
    last = curve.last_loss if last is None and curve is not None else last
    return last is not None and last < limits()["at_floor"]


class NextStepFinder(Struct, frozen=True, kw_only=True):
    """Looks for the one thing to do after a stage."""

    record: RunRecord
    stage: StageRecord
    entry: Entry | None  # of the plan; None: it cannot be read
    run: str  # the folder, as it can be typed
    limits: Mapping[str, float]
    plain: PlainResult

    def after(self, task: VerdictPart, general: VerdictPart, metric: Metric | None) -> NextStep:
        """The first step that applies."""
        if self.record.max_steps:
            steps = counted(self.record.max_steps, "step")
            text = f"this was a trial of {steps}: train the whole plan"
            whole = shlex.quote(f"{self.run}-whole")
            return _step("run_whole", text, f"advise run {self._plan} --output {whole}")
        if task.status == NOT_MEASURED:
            return self._measure()
        if task.status == WORSE:
            return self._worse()
        if task.status == UNCLEAR:
            return self._unclear(metric)
        if general.status == LOST:
            # A style that every row has is learned as the style of every answer; rows that do not
            # have it show where it ends.
            each = round(1 / self.limits["general_rows"])
            text = f"mix general questions into the data, one for every {each} rows or more"
            command, cure = self._mixed_in()
            return _step("mix_general", f"{text}; {cure}", command)
        return self._better()

    def _mixed_in(self) -> tuple[str | None, str]:
        """(the command that mixes general rows in, or more of them; what it does)."""
        stage = self.entry.stage if self.entry is not None else None
        keys = objective(self.stage.objective).keys
        if stage is None or "replay" not in keys:
            return None, f"some to begin with: {GENERAL}"
        if stage.options.get("replay"):
            share = 2 * float(stage.options.get("replay_share") or keys["replay_share"].default)
            command = self._again("replay_share", f"{share:g}") if share <= MOST_REPLAY else None
            return command, "they are mixed in already: twice their share, or a lower learning_rate"
        shared, made = self.stage.launch, self.record.settings(self.stage)
        divided = shared is not None and shared.strategy == FSDP
        if divided or made.plain_template or objective(self.stage.objective).splits_documents:
            return None, f"some to begin with: {GENERAL} (set `replay` to such a file)"
        command = self._again("replay", f"{{rows: {REPLAY_ROWS}}}")
        if stage.seq_len < REPLAY_LEN and self.entry is not None:
            longer = f"{key_path(self.entry, 'seq_len')}={REPLAY_LEN}"
            command += f" --set {shlex.quote(longer)}"
        return command, "the base answers them itself before it trains (docs/methods.md#forgetting)"

    @property
    def _plan(self) -> str:
        return shlex.quote(f"{self.run}/{PLAN_FILE}")

    def _again(self, key: str, value: str) -> str:
        """The command that trains again with another value of a key of the stage."""
        at = f"stages.{self.stage.plan_stage}.{key}"
        at = key_path(self.entry, key) if self.entry is not None else at
        return f"advise run {self._plan} --set {shlex.quote(f'{at}={value}')}"

    def _other_rate(self, factor: float) -> str | None:
        """The same with so many times the learning rate; None if that is not known."""
        rate = (self.record.settings(self.stage).trl or {}).get("learning_rate")
        if self.entry is not None:
            rate = self.entry.stage.learning_rate
        if not isinstance(rate, int | float) or rate <= 0:
            return None
        return self._again("learning_rate", f"{rate * factor:.1e}")

    def _check_data(self) -> str | None:
        path = self.entry.data.path if self.entry is not None else None
        return f"advise check {shlex.quote(path)}" if path else None

    def _measure(self) -> NextStep:
        if not self.record.judge:
            text = "compare it with its base: train again without --no-judge"
            judged = shlex.quote(f"{self.run}-judged")
            return _step("measure", text, f"advise run {self._plan} --output {judged}")
        command = self._again("holdout", f"{MOST_HELD:g}")
        return _step("measure", "hold out rows to compare on", command)

    def _worse(self) -> NextStep:
        curve, factor = self.stage.held_out, self.limits["rate_factor"]
        if curve is not None and curve.best_step and curve.best_step != curve.last_step:
            text = f"it was best after step {curve.best_step}: keep those weights"
            return _step("train_shorter", text, self._again("keep", "best"))
        text = f"try a learning rate {factor:g} times lower"
        return _step("lower_rate", text, self._other_rate(1 / factor))

    def _unclear(self, metric: Metric | None) -> NextStep:
        if metric is None:
            return _step("look_at_data", "look at its rows", self._check_data())
        held, rows = metric.rows or 0, self.stage.data.rows if self.stage.data else None
        usual, before = usual_rows(self.stage), metric.before or 0.0
        difference = metric.difference
        needed = metric.rows_needed or usual
        is_known = before and difference is not None and held >= usual / 2
        if is_known and abs(difference or 0.0) <= self.limits["no_effect"] * abs(before):
            text = "it did not learn: look at its rows, then try a higher learning rate"
            higher = self._other_rate(self.limits["rate_factor"])
            return _step("look_at_data", text, self._check_data() or higher)
        if rows and held < MOST_HELD * rows and needed <= MOST_HELD * rows:
            share = min(MOST_HELD, max(needed, 2 * held) / rows)
            command = self._again("holdout", f"{share:.2g}")
            return _step("hold_out_more", "hold out more rows", command)
        wanted = f", about {round_up(math.ceil(needed / MOST_HELD)):,} in all" if needed else ""
        return _step("more_data", f"collect more rows{wanted}", self._check_data())

    def _better(self) -> NextStep:
        if (longer := self._unfinished()) and self.entry is not None:
            setting = longer_setting(self.entry)
            command = f"advise run {self._plan} --set {shlex.quote(setting)}"
            text = f"train again {longer_words(setting)}: {longer}"
            return _step("train_longer", text, command)
        wrong = [check.name for check in self.stage.checks if not check.ok]
        run = shlex.quote(self.run)
        chat = f"advise chat {run}" if self.record.writes(self.stage) else None
        if wrong:
            text = f"try it, and mind the warning ({', '.join(wrong[:2])})"
            return _step("try_it", text, chat)
        if chat and update(self.stage.update).merges:
            text = "try some questions of your own, then merge it to serve it"
            return _step("ship", text, f"advise export {run} --to merged")
        return _step("ship", "try some inputs of your own, then use it", chat)

    def _unfinished(self) -> str:
        """Why a good result would be better after more training, or an empty string."""
        stage, curve = self.stage, self.stage.held_out
        if curve is not None and curve.stopped_early:
            return ""  # more steps would not be taken
        samples = stage.evaluation.samples if stage.evaluation is not None else ()
        told = [one.tuned_stopped for one in samples if one.tuned_stopped is not None]
        if told and sum(told) <= self.limits["answers_end"] * len(told):
            return f"only {sum(told)} of {len(told)} answers end by themselves"
        if gains_nothing(stage, self.plain):
            return ""
        if curve is not None and curve.fell is not None:
            still = curve.fell >= self.limits["still_falling"]
            return f"held-out loss still fell by {curve.fell:.0%} at the end" if still else ""
        least = objective(stage.objective).steps.get("least")
        if least and stage.steps and stage.steps < least:
            are = "is" if stage.steps == 1 else "are"
            return f"{counted(stage.steps, 'optimizer step')} {are} few, {least} are usual"
        return ""


def _step(action: str, text: str, command: str | None) -> NextStep:
    return NextStep(action=action, text=text, command=command)
