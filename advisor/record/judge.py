"""The verdict on a run, from its record alone: did it learn the task, did it lose anything, what to
do next. The numbers that decide are in rules/verdict.yaml.

run.json, terminal, report, README of a result and chat all show this one.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, exp
from pathlib import Path

from advisor.ground.errors import AdviseError
from advisor.ground.extras import extras
from advisor.ground.files import PLAN_FILE, shown_path
from advisor.ground.resources import PACKAGE
from advisor.methods import objective, update
from advisor.plan.entries import Entry, entries
from advisor.plan.read import read_plan
from advisor.record.compared import WORDS, Compared, round_up, usual_rows, what_decides
from advisor.record.evaluation import Evaluation, Metric, Sample
from advisor.record.next_run import longer_setting
from advisor.record.run import DONE, RunRecord, StageRecord
from advisor.record.smaller import key_path
from advisor.record.verdict import (
    BETTER,
    KEPT,
    LOST,
    MIXED,
    NOT_MEASURED,
    UNCLEAR,
    WORSE,
    Finding,
    Limits,
    NextStep,
    Verdict,
    limits,
)

PHRASE_WORDS = 4  # of a phrase that is looked for again
MOST_ROWS = 100_000  # a difference that takes more rows is none


def run_verdict(record: RunRecord, *, run: str, trainings: Sequence[Entry] = ()) -> Verdict | None:
    """The verdict on a run; None while no stage is finished.

    Of several tasks each is judged by its last finished stage, and the next step is that of the
    first task that needs one. Commands that change a setting need the `trainings` of its plan.
    """
    stages = [stage for stage in record.stages if stage.status == DONE]
    last = list({stage.task: stage for stage in stages}.values())
    if not last:
        return None
    found = [_stage_verdict(record, stage, run=run, trainings=trainings) for stage in last]
    if len(found) == 1:
        return found[0]
    names = [str(stage.task) for stage in last]
    urgent = next((one for one in found if not one.is_good), found[0])
    which = names[found.index(urgent)]
    tasks: dict[str, list[str]] = {}
    for name, one in zip(names, found, strict=True):
        tasks.setdefault(one.word or NOT_MEASURED, []).append(name)
    return Verdict(
        ok=all(one.ok for one in found),
        word=next(iter(tasks)) if len(tasks) == 1 else MIXED,
        text="; ".join(f"{word}: {', '.join(group)}" for word, group in tasks.items()),
        task=_together(names, [one.task for one in found]),
        general=_together(names, [one.general for one in found]),
        extras={
            name: _together(names, [one.extras.get(name) for one in found])
            for name in dict.fromkeys(name for one in found for name in one.extras)
        },
        next=replace(urgent.next, text=f"{which}: {urgent.next.text}") if urgent.next else None,
    )


def _together(names: Sequence[str], found: Sequence[Finding | None]) -> Finding:
    """The findings of several tasks as one: tasks by their word."""
    by_word: dict[str, list[str]] = {}
    for name, one in zip(names, found, strict=True):
        by_word.setdefault(one.status if one else NOT_MEASURED, []).append(name)
    said = [f"{word}: {', '.join(group)}" for word, group in by_word.items()]
    if len(by_word) == 1:
        return Finding(status=next(iter(by_word)), text=f"all of {', '.join(names)}")
    return Finding(status=MIXED, text="; ".join(said))


def _stage_verdict(
    record: RunRecord, stage: StageRecord, *, run: str, trainings: Sequence[Entry]
) -> Verdict:
    known = limits()
    compared = what_decides(stage)
    task = task_finding(stage, compared, is_classifier=record.is_classifier(stage))
    general = general_finding(stage.evaluation or Evaluation(), known)
    entry = next((one for one in trainings if one.name == stage.name), None)
    step = NextStepFinder(record=record, stage=stage, entry=entry, run=run, known=known)
    asked = {name: extra.finding(record, stage) for name, extra in extras().items()}
    more: dict[str, Finding] = {name: found for name, found in asked.items() if found is not None}
    lost = LOST in (general.status, *(one.status for one in more.values()))
    return Verdict(
        ok=all(check.ok for check in stage.checks),
        word=_word(task.status, lost=lost),
        text="; ".join(one.text for one in (task, general, *more.values()) if one.text) or None,
        task=task,
        general=general,
        extras=more,
        next=step.after(task, replace(general, status=LOST) if lost else general, compared),
    )


def _word(task: str, *, lost: bool) -> str | None:
    if not lost:
        return None if task == NOT_MEASURED else task
    if task == BETTER:
        return "better at the task, worse in general"
    return "worse in general" if task == NOT_MEASURED else f"{task}, worse in general"


# --------------------------------------------------------------------------- the task


def task_finding(
    stage: StageRecord, compared: Compared | None, *, is_classifier: bool = False
) -> Finding:
    """Whether a stage learned its task, with the numbers before and after and the rows held out."""
    if compared is None and stage.verdict is not None and stage.verdict.word in WORDS:
        return Finding(status=str(stage.verdict.word), text=stage.verdict.text or "")
    if compared is None:
        why = "no rows were held out" if stage.evaluation is not None else "nothing was compared"
        return Finding(status=NOT_MEASURED, text=why)
    metric = compared.metric
    status = str(metric.word) if metric.word in WORDS else NOT_MEASURED
    text = f"{_numbers(compared.name, metric)}{_interval(metric)}"
    if is_classifier:
        text += " against always the most common class"
    if metric.rows:
        text += f", {metric.rows:,} rows held out"
    if status == UNCLEAR:
        text += f"; {_too_few(compared, stage)}"
    also = [
        _numbers(name, one)
        for name, one in (stage.evaluation or Evaluation()).metrics.items()
        if name != compared.name and one.word in (BETTER, WORSE)
    ]
    return Finding(status=status, text="; ".join([text, *also[:1]]))


def _numbers(name: str, metric: Metric) -> str:
    """'rouge l 0.12 -> 0.48'."""
    before = "" if metric.before is None else f"{metric.before:.3g} -> "
    return f"{name.replace('_', ' ')} {before}{metric.after:.3g}"


def _interval(metric: Metric) -> str:
    low, high = metric.interval if metric.interval and len(metric.interval) == 2 else (None, None)
    return "" if low is None or high is None else f" (95 % interval {low:+.2f} to {high:+.2f})"


def _too_few(compared: Compared, stage: StageRecord) -> str:
    """How many rows would tell what these could not."""
    needed = compared.rows_needed()
    if needed is None:
        return f"too few to tell: hold out more, {usual_rows(stage)} tell small differences"
    if needed > MOST_ROWS:
        return "no difference that any number of rows would show"
    return f"a difference as small as this takes about {round_up(needed):,} rows to tell"


# --------------------------------------------------------------------------- everything else


def general_finding(found: Evaluation, known: Limits) -> Finding:
    """Whether a stage lost anything: general loss, answers without an end, repetition."""
    parts, lost = [], False
    if found.general is not None and found.general.before and found.general.after is not None:
        ratio = exp(min(found.general.after - found.general.before, 20.0))
        lost = ratio >= known.general_lost and found.general.word in (WORSE, None)
        rows = f"{found.general.rows:,} " if found.general.rows else ""
        text = (
            f"loss on {rows}fixed general prompts {found.general.before:.2f} ->"
            f" {found.general.after:.2f}"
        )
        if lost:
            how = " (each token half as likely or less)" if ratio >= known.general_halved else ""
            text += f", perplexity {ratio:.2g} times as high{how}"
        parts.append(text)
    answers, cut_off = _answers(found.samples, known)
    parts += answers
    if not parts:
        return Finding(status=NOT_MEASURED)
    return Finding(status=LOST if lost or cut_off else KEPT, text="; ".join(parts))


def _answers(samples: Sequence[Sample], known: Limits) -> tuple[list[str], bool]:
    """(what sample answers show, whether that is a loss)."""
    told = [sample for sample in samples if sample.tuned_stopped is not None]
    if not told:
        return [], False
    ended = sum(bool(sample.tuned_stopped) for sample in told)
    base = [sample.base_stopped for sample in told if sample.base_stopped is not None]
    before = sum(base) if len(base) == len(told) else None
    repeating = sum(
        repeats(sample.tuned or "", known) and not repeats(sample.base or "", known)
        for sample in told
    )
    few = ended <= known.answers_end * len(told)
    beside = f" (base {before})" if before not in (None, ended) else ""
    said = [f"{ended} of {len(told)} sample answers end by themselves{beside}"]
    if repeating:
        said.append(f"{repeating} repeat themselves")
    fewer = few and before is not None and before > ended
    return said, fewer or repeating >= known.answers_end * len(told)


def repeats(answer: str, known: Limits) -> bool:
    """Whether an answer says the same few words again and again."""
    words = answer.lower().split()
    phrases = Counter(
        tuple(words[at : at + PHRASE_WORDS]) for at in range(len(words) - PHRASE_WORDS + 1)
    )
    return bool(phrases) and max(phrases.values()) >= known.repeats


def folder_verdict(folder: Path, record: RunRecord) -> Verdict | None:
    """The verdict on a folder's run; one whose plan cannot be read has fewer commands."""
    trainings: Sequence[Entry] = ()
    with suppress(AdviseError, ValueError, OSError):
        trainings = entries(read_plan(folder / PLAN_FILE))
    return run_verdict(record, run=shown_path(folder), trainings=trainings)


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
        wanted = f", about {round_up(ceil(needed / MOST_HELD)):,} in all" if needed else ""
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
