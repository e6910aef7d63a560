"""The verdict on a run, from its record alone: did it learn the task, did it lose anything, what to
do next. The numbers that decide are in rules/verdict.yaml.

run.json, terminal, report, README of a result and chat all show this one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import exp
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.counting import counted
from advisor.ground.errors import AdviseError
from advisor.ground.extras import extras
from advisor.ground.files import PLAN_FILE, shown_path
from advisor.plan.entries import Entry, entries
from advisor.plan.read import read_plan
from advisor.record.next_step import NextStepFinder, round_up, usual_rows
from advisor.record.run import DONE, RunRecord, StageRecord, last_of_each_task
from advisor.record.stage import Evaluation, Metric, SampleAnswer, metric_words
from advisor.record.verdict import (
    BETTER,
    KEPT,
    LOST,
    MIXED,
    NOT_MEASURED,
    UNCLEAR,
    WORSE,
    PlainResult,
    Verdict,
    VerdictPart,
    limits,
)

WORDS = (BETTER, WORSE, UNCLEAR)
HELD_OUT_LOSS = "held-out loss"
PHRASE_WORDS = 4  # of a phrase that is looked for again
MOST_ROWS = 100_000  # a difference that takes more rows is none


def run_verdict(record: RunRecord, *, run: str, trainings: Sequence[Entry] = ()) -> Verdict | None:
    """The verdict on a run; None while no stage is finished.

    Of several tasks each is judged by its last finished stage, and the next step is that of the
    first task that needs one. Commands that change a setting need the `trainings` of its plan.
    """
    last = last_of_each_task(stage for stage in record.stages if stage.status == DONE)
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
        plain=PlainResult(
            text=" ".join(
                f"{name}: {one.plain.text}"
                for name, one in zip(names, found, strict=True)
                if one.plain
            )
        ),
        task=_together(names, [one.task for one in found]),
        general=_together(names, [one.general for one in found]),
        extras={
            name: _together(names, [one.extras.get(name) for one in found])
            for name in dict.fromkeys(name for one in found for name in one.extras)
        },
        next=replace(urgent.next, text=f"{which}: {urgent.next.text}") if urgent.next else None,
    )


def _together(names: Sequence[str], found: Sequence[VerdictPart | None]) -> VerdictPart:
    """The findings of several tasks as one: tasks by their word."""
    by_word: dict[str, list[str]] = {}
    for name, one in zip(names, found, strict=True):
        by_word.setdefault(one.status if one else NOT_MEASURED, []).append(name)
    said = [f"{word}: {', '.join(group)}" for word, group in by_word.items()]
    if len(by_word) == 1:
        return VerdictPart(status=next(iter(by_word)), text=f"all of {', '.join(names)}")
    return VerdictPart(status=MIXED, text="; ".join(said))


def _stage_verdict(
    record: RunRecord, stage: StageRecord, *, run: str, trainings: Sequence[Entry]
) -> Verdict:
    known = limits()
    name, metric = deciding_metric(stage)
    task = task_finding(stage, name, metric, is_classifier=record.is_classifier(stage))
    general = general_finding(stage.evaluation or Evaluation(), known)
    entry = next((one for one in trainings if one.name == stage.name), None)
    plain = plain_result(stage, known, rewrites=record.is_seq2seq(stage))
    step = NextStepFinder(
        record=record, stage=stage, entry=entry, run=run, limits=known, plain=plain
    )
    asked = {name: extra.finding(record, stage) for name, extra in extras().items()}
    more: dict[str, VerdictPart] = {
        name: found for name, found in asked.items() if found is not None
    }
    lost = LOST in (general.status, *(one.status for one in more.values()))
    return Verdict(
        ok=all(check.ok for check in stage.checks),
        word=_word(task.status, lost=lost),
        text="; ".join(one.text for one in (task, general, *more.values()) if one.text) or None,
        plain=plain,
        task=task,
        general=general,
        extras=more,
        next=step.after(task, replace(general, status=LOST) if lost else general, metric),
    )


def _word(task: str, *, lost: bool) -> str | None:
    if not lost:
        return None if task == NOT_MEASURED else task
    if task == BETTER:
        return "better at the task, worse in general"
    return "worse in general" if task == NOT_MEASURED else f"{task}, worse in general"


# --------------------------------------------------------------------------- in one sentence

# A metric that is right or wrong of each row -> what a row is, and what became of the good ones.
COUNTED = {
    "accuracy": ("text", "put into the right class"),
    "pair accuracy": ("pair of answers", "ranked as in your data"),
    "pair_accuracy": ("pair of answers", "ranked as in your data"),
    "json_validity": ("question", "answered with valid JSON"),
    "exact_match": ("question", "answered exactly as in your data"),
}
CODE = re.compile(r"\[[^\]\n]+\]|\w*\d[\w.,-]*\w|\d")  # [CHECK_LINE], T-33337, 12.50
STYLED = ("question", "answered in your style")
REWRITTEN = ("text", "rewritten in your style")
MOVED = ("answer with feedback", "likelier if liked, or rarer if not")
BEFORE = {"accuracy": "; always naming the most common one gets {}"}  # a class has no base


def plain_result(
    stage: StageRecord, known: Mapping[str, float], *, rewrites: bool = False
) -> PlainResult:
    """What came of a stage in one sentence: how many of the rows that it was not trained on are as
    they should be, else what was measured of them.
    """
    found, data = stage.evaluation or Evaluation(), stage.data
    unseen = "" if data is not None and data.holdout_rows == 0 else "unseen "
    share, of = (found.extra.get(key) for key in ("moved_as_judged", "feedback_rows"))
    if isinstance(share, int | float) and isinstance(of, int) and of:
        return _counted(MOVED, unseen, good=round(share * of), before=None, of=of)
    reward = found.metrics.get("reward")
    if reward is not None and reward.after is not None:
        then = "" if reward.before is None else f", before {reward.before:.3g}"
        text = f"Answers to {reward.rows} {unseen}prompts now get a reward of {reward.after:.3g}"
        return PlainResult(text=f"{text} on average{then}.")
    for name, words in COUNTED.items():
        metric = found.metrics.get(name)
        if metric is not None and metric.after is not None and metric.rows:
            before = None if metric.before is None else round(metric.before * metric.rows)
            good = round(metric.after * metric.rows)
            then = BEFORE.get(name, ", before {}")
            return _counted(words, unseen, good=good, before=before, of=metric.rows, then=then)
    if found.sample_metric == "rouge_l" and found.samples:
        rows = [(one, max(known["in_style"], _echo(one))) for one in found.samples]
        earlier = sum((one.score_before or 0) >= at for one, at in rows)
        alike = [one for one, at in rows if (one.score_after or 0) >= at]
        words = REWRITTEN if rewrites else STYLED
        plain = _counted(words, unseen, good=len(alike), before=earlier, of=len(rows))
        other = sum(
            {*CODE.findall(one.expected or "")} != {*CODE.findall(one.tuned or "")} for one in alike
        )
        if other:
            those = f"{other} of these {'have' if other > 1 else 'has'} other ones than the data"
            said = f"Facts and codes are not checked: {those}."
            plain = replace(plain, text=f"{plain.text} {said}")
        return plain
    if found.perplexity_after is not None:
        what = "answers" if found.samples else "texts"
        now, was = (
            f"{value:.2g}" if value < 10 else f"{value:,.0f}"
            for value in (found.perplexity_after, found.perplexity_before or 0.0)
        )
        text = f"In {found.rows or 0:,} {unseen}{what} the next word is now a choice among about"
        then = f", before {was}" if found.perplexity_before else ""
        return PlainResult(text=f"{text} {now}{then}.")
    name, metric = deciding_metric(stage)
    if metric is not None and metric.after is not None:
        then = "" if metric.before is None else f", before {metric.before:.3g}"
        return PlainResult(text=f"The {metric_words(name)} is now {metric.after:.3g}{then}.")
    if (task := task_finding(stage, name, metric)).status != NOT_MEASURED:
        return PlainResult(text=f"Compared with the base it is {task.status}.")
    return PlainResult(text="It is trained; nothing was compared, so whether it learned is open.")


def _echo(sample: SampleAnswer) -> float:
    """The least score of an answer that does more than repeat the question: a little more than the
    question would get; an answer that is the expected one always passes.
    """
    asked, wanted = (
        Counter(re.findall(r"[a-z0-9]+", (text or "").lower()))
        for text in (sample.prompt, sample.expected)
    )
    words = asked.total() + wanted.total()
    return min(2 * (asked & wanted).total() / words + 0.01, 0.999) if words else 0.0


def _counted(
    words: tuple[str, str],
    unseen: str,
    *,
    good: int,
    before: int | None,
    of: int,
    then: str = ", before {}",
) -> PlainResult:
    """'Of 16 unseen questions 15 are now answered in your style, before none.'"""
    what, became = words
    first, *rest = what.split(" ", 1)
    rows = " ".join([first if of == 1 else f"{first}s", *rest])
    now = f"{good} {'are' if good > 1 else 'is'} now {became}" if good else f"none is {became} yet"
    was = "" if before is None or not (good or before) else then.format(before or "none")
    text = f"Of {of:,} {unseen}{rows} {now}{was}."
    return PlainResult(text=text, good=good, before=before, of=of)


# --------------------------------------------------------------------------- the task


def deciding_metric(stage: StageRecord) -> tuple[str, Metric | None]:
    """(name, metric) that decide whether a stage learned its task; None without one."""
    found = stage.evaluation or Evaluation()
    if found.decides in found.metrics:
        return str(found.decides), found.metrics[str(found.decides)]
    if found.holdout_loss_after is not None and found.holdout_loss_before is not None:
        loss = Metric(
            before=found.holdout_loss_before,
            after=found.holdout_loss_after,
            interval=found.holdout_loss_interval,
            rows=found.rows,
            word=stage.verdict.word if stage.verdict else None,
        )
        if loss.word not in WORDS:
            low, high = loss.bounds or (0, 0)
            loss = replace(loss, word=BETTER if high < 0 else WORSE if low > 0 else UNCLEAR)
        return HELD_OUT_LOSS, loss
    named = [(name, one) for name, one in found.metrics.items() if one.after is not None]
    return named[0] if named else ("", None)


def task_finding(
    stage: StageRecord, name: str, metric: Metric | None, *, is_classifier: bool = False
) -> VerdictPart:
    """Whether a stage learned its task, with the numbers before and after and the rows held out."""
    if metric is None and stage.verdict is not None and stage.verdict.word in WORDS:
        return VerdictPart(status=str(stage.verdict.word), text=stage.verdict.text or "")
    if metric is None:
        why = "no rows were held out" if stage.evaluation is not None else "nothing was compared"
        return VerdictPart(status=NOT_MEASURED, text=why)
    status, text = str(metric.word), _numbers(name, metric)
    if metric.bounds is not None:
        low, high = metric.bounds
        text += f" (95 % interval {low:+.2f} to {high:+.2f})"
    if is_classifier:
        text += " against always the most common class"
    if metric.rows:
        text += f", {counted(metric.rows, 'row')} held out"
    if status == UNCLEAR:
        text += f"; {_too_few(metric, usual_rows(stage))}"
    also = [
        _numbers(other, one)
        for other, one in (stage.evaluation or Evaluation()).metrics.items()
        if other != name and one.word in (BETTER, WORSE)
    ]
    status = status if status in WORDS else NOT_MEASURED
    return VerdictPart(status=status, text="; ".join([text, *also[:1]]))


def _numbers(name: str, metric: Metric) -> str:
    """'ROUGE-L 0.12 -> 0.48'."""
    before = "" if metric.before is None else f"{metric.before:.3g} -> "
    return f"{metric_words(name)} {before}{metric.after:.3g}"


def _too_few(metric: Metric, usual: int) -> str:
    """How many rows would tell what these could not."""
    needed = metric.rows_needed
    if needed is None:
        return f"too few to tell: hold out more, {usual} tell small differences"
    if needed > MOST_ROWS:
        return "no difference that any number of rows would show"
    return f"a difference as small as this takes about {round_up(needed):,} rows to tell"


# --------------------------------------------------------------------------- everything else


def general_finding(found: Evaluation, known: Mapping[str, float]) -> VerdictPart:
    """Whether a stage lost anything: general loss, answers without an end, repetition."""
    parts, lost = [], False
    if found.general is not None and found.general.before and found.general.after is not None:
        ratio = exp(min(found.general.after - found.general.before, 20.0))
        lost = ratio >= known["general_lost"] and found.general.word in (WORSE, None)
        rows = f"{found.general.rows:,} " if found.general.rows else ""
        text = (
            f"loss on {rows}fixed general prompts {found.general.before:.2f} ->"
            f" {found.general.after:.2f}"
        )
        if lost:
            how = " (each token half as likely or less)" if ratio >= known["general_halved"] else ""
            text += f", perplexity {ratio:.2g} times as high{how}"
        parts.append(text)
    answers, cut_off = _answers(found.samples, known)
    parts += answers
    if not parts:
        return VerdictPart(status=NOT_MEASURED)
    return VerdictPart(status=LOST if lost or cut_off else KEPT, text="; ".join(parts))


def _answers(samples: Sequence[SampleAnswer], known: Mapping[str, float]) -> tuple[list[str], bool]:
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
    few = ended <= known["answers_end"] * len(told)
    beside = f" (base {before})" if before not in (None, ended) else ""
    are, end = ("s", "end by themselves") if len(told) > 1 else ("", "ends by itself")
    said = [f"{ended} of {len(told)} sample answer{are} {end}{beside}"]
    if repeating:
        said.append(f"{repeating} repeat{'' if repeating > 1 else 's'} the same words")
    fewer = few and before is not None and before > ended
    return said, fewer or repeating >= known["answers_end"] * len(told)


def repeats(answer: str, known: Mapping[str, float]) -> bool:
    """Whether an answer says the same few words again and again."""
    words = answer.lower().split()
    phrases = Counter(
        tuple(words[at : at + PHRASE_WORDS]) for at in range(len(words) - PHRASE_WORDS + 1)
    )
    return bool(phrases) and max(phrases.values()) >= known["repeats"]


def folder_verdict(folder: Path, record: RunRecord) -> Verdict | None:
    """The verdict on a folder's run; one whose plan cannot be read has fewer commands."""
    trainings: Sequence[Entry] = ()
    with suppress(AdviseError, ValueError, OSError):
        trainings = entries(read_plan(folder / PLAN_FILE))
    return run_verdict(record, run=shown_path(folder), trainings=trainings)
