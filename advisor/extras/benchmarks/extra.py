"""Benchmarks of lm-evaluation-harness before and after training (docs/results.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.extras.benchmarks.scores import (
    BenchmarkChange,
    BenchmarkRecord,
    files_of,
    is_task_file,
)
from advisor.extras.protocol import Checked, Extra
from advisor.ground.errors import AdviseError, Fault, TooMuchLost, did_you_mean
from advisor.ground.files import shown_path, text_of
from advisor.ground.resources import install_line
from advisor.ground.shape import Integer, ListOf, Number, Text
from advisor.plan.checks import Report
from advisor.plan.entries import path_from
from advisor.plan.keys import key_specs
from advisor.record.run import RunRecord, StageRecord
from advisor.record.verdict import KEPT, LOST, VerdictPart

if TYPE_CHECKING:
    from advisor.launch.call import Call
    from advisor.launch.prepare import PlanRun
    from advisor.launch.record_keeper import Ending
    from advisor.launch.stages import StageRunner
    from advisor.render.blocks import Section

MOST_SHOWN = 2  # in the verdict
COLUMNS = (
    *("result", "benchmark", "metric", "questions", "before", "after"),
    *("difference", "standard error", "loss"),
)


class Benchmarks(Struct, frozen=True, kw_only=True):
    """Benchmarks of lm-evaluation-harness, which a run asks its base and its results."""

    tasks: Annotated[
        tuple[str, ...],
        ListOf(of=Text(such_as="arc_easy, or my_task.yaml"), least=1),
        "names of the harness, or task files relative to the plan file",
    ]
    max_drop: Annotated[
        float | None,
        Number(min=0, max=1),
        "the loss that is allowed: 0.02 is two points of a score between 0 and 1, of any other"
        " score 2 %; more ends the command with exit code 6; default: any",
    ] = None
    limit: Annotated[int | None, Integer(min=1), "questions of each; default: all"] = None


class BenchmarkKeys(Struct, frozen=True, kw_only=True):
    """Its keys of a plan."""

    evaluation: Annotated[
        Benchmarks | None, "benchmarks before and after training, beside the run's own evaluation"
    ] = None


class BenchmarksExtra(Extra):
    """The key `evaluation`."""

    NAME = "benchmarks"
    HELP = "asks lm-evaluation-harness before and after training"
    KEYS = BenchmarkKeys
    INSTALLS = "eval"
    UNTIMED = "the benchmarks of `evaluation`"
    BESIDE_STAGES = True

    def check_plan(self, data: Mapping[str, Any], report: Report) -> None:
        evaluation, stages = data.get("evaluation"), data.get("stages")
        if not isinstance(evaluation, dict):
            return
        last = stages[-1] if isinstance(stages, list) and stages else {}
        if isinstance(last, dict) and (why := _cannot_be_asked(last)):
            report(
                ("evaluation",),
                f"lm-evaluation-harness cannot ask this result: {why}",
                "a last stage that writes on, such as sft or dpo",
                "remove evaluation: the run compares such a result by its own measures",
                key=True,
            )

    def with_paths(self, keys: BenchmarkKeys, moved: Callable[[str], str]) -> BenchmarkKeys:
        if keys.evaluation is None:
            return keys
        tasks = (moved(task) if is_task_file(task) else task for task in keys.evaluation.tasks)
        return replace(keys, evaluation=replace(keys.evaluation, tasks=tuple(tasks)))

    def files_with(self, path: Path) -> Sequence[Path]:
        return files_of(path) if is_task_file(path.name) else ()

    def network(self, keys: BenchmarkKeys) -> str | None:
        tasks = keys.evaluation.tasks if keys.evaluation else ()
        if all(map(is_task_file, tasks)):
            return None
        return "the harness downloads the questions of its benchmarks"

    def check(self, call: Call) -> Checked:
        from advisor.extras.benchmarks.measure import harness_version

        evaluation = call.run.plan.extra_key("benchmarks", "evaluation")
        if evaluation is None or not call.options.judge:
            return Checked()
        bad, needs = [], []
        for number, task in enumerate(evaluation.tasks):
            path = path_from(call.run.path.parent, task)
            if not is_task_file(task):
                needs.append(f"benchmark {task}: its questions come from the hub")
            elif not path.is_file():
                beside = sorted(one.name for one in path.parent.glob("*.y*ml"))
                bad.append(
                    Fault(
                        where=f"evaluation.tasks.{number}",
                        what=f"there is no task file {path}",
                        allowed="a path relative to the plan file, or a name of the harness",
                        hint=did_you_mean(path.name, beside),
                    )
                )
            elif "!function" in text_of(path, errors="replace"):
                needs.append(f"benchmark {task}: runs your functions that {path.name} names")
        lacking = []
        if harness_version() is None:
            what = "the benchmarks need lm-evaluation-harness, which is not installed"
            hint = install_line(self.INSTALLS)
            allowed = "a plan without `evaluation` trains without them"
            lacking.append(Fault(where="evaluation", what=what, allowed=allowed, hint=hint))
        return Checked(bad=bad, lacking=lacking, needs=needs)

    def before(self, run: StageRunner) -> None:
        if (
            run.call.options.judge
            and run.run.plan.extra_key("benchmarks", "evaluation") is not None
        ):
            from advisor.extras.benchmarks.measure import measure_base

            run.keeper.note_extra(self.NAME, None)  # it was of other results
            measure_base(run)

    def after(self, run: StageRunner) -> Mapping[str, Any] | None:
        if not run.call.options.judge or run.run.plan.extra_key("benchmarks", "evaluation") is None:
            return None
        from advisor.extras.benchmarks.measure import measure_results

        return measure_results(run).to_dict()

    def misses(self, run: PlanRun, record: RunRecord) -> bool:
        if not record.judge or run.copy.extra_key("benchmarks", "evaluation") is None:
            return False
        from advisor.extras.benchmarks.measure import AskedModels

        noted = noted_of(record)
        return noted is None or AskedModels(run.copy, run.folder, record).is_unmeasured(noted)

    def finished(self, ending: Ending) -> AdviseError | None:
        record = ending.keeper.record
        found = noted_of(record)
        exceeding = [change for change in found.changes if change.exceeds] if found else []
        if found is None or not exceeding or record.max_steps:
            return None  # a trial asks few questions after few steps
        return TooMuchLost(
            faults=[
                Fault(
                    where=f"stage {one.result}",
                    what=f"benchmark {one.benchmark} lost {one.loss_words} after training, more"
                    f" than max_drop {found.max_drop:g}: {one.metric} {one.numbers()}",
                    allowed="a loss of this size is often chance: ask more questions to be sure"
                    if one.is_noise
                    else "",
                    hint="the result is trained and saved:"
                    f" {shown_path(ending.run.folder / 'stages' / one.result)}",
                )
                for one in exceeding
            ]
        )

    def finding(self, record: RunRecord, stage: StageRecord) -> VerdictPart | None:
        found = noted_of(record)
        changes = [one for one in found.changes if one.result == stage.name] if found else []
        if found is None or not changes:
            return None
        worst = sorted(changes, key=lambda one: one.loss, reverse=True)
        lost = [one for one in worst if one.is_lost]
        shown = (lost or worst)[:MOST_SHOWN]
        said = [f"{one.benchmark} {one.metric} {one.numbers()}" for one in shown]
        if lost and found.max_drop is not None:
            said[-1] += f", more than max_drop {found.max_drop:g}"
            if all(one.is_noise for one in lost):
                said[-1] += ", though chance alone may be the reason"
        if len(changes) > len(shown):
            said.append(f"{len(changes) - len(shown)} more in the report")
        return VerdictPart(status=LOST if lost else KEPT, text="; ".join(said))

    def block(self, record: RunRecord) -> Sequence[Section]:
        from advisor.render.blocks import Paragraph, Section, tabled

        found = noted_of(record)
        if found is None or not found.changes:
            return ()
        columns = COLUMNS if found.max_drop is not None else COLUMNS[:-1]
        notes = (Paragraph(text=line, tone="quiet") for line in _notes(found))
        blocks = (*tabled(columns, map(_cells, found.changes)), *notes)
        return (Section(title="Benchmarks (lm-evaluation-harness)", blocks=blocks),)


def _cannot_be_asked(last: Mapping[str, Any]) -> str:
    """Why the harness cannot ask the result of a stage; empty if it can."""
    objective = key_specs().objectives.get(str(last.get("objective")))
    if objective is not None and objective.scores:
        return f"objective {objective.id} trains a reward model, which scores texts"
    return {
        "classes": "the last stage trains a classifier, which sorts texts",
        "seq2seq": "the last stage trains an encoder-decoder model, which was not tested with it",
    }.get(str(last.get("head")), "")


def noted_of(record: RunRecord) -> BenchmarkRecord | None:
    """What run.json holds; runs of before have it under `benchmarks`."""
    noted = (record.extras or {}).get("benchmarks") or record.extra.get("benchmarks")
    return BenchmarkRecord.from_dict(noted, at="run.json") if noted else None


def _cells(one: BenchmarkChange) -> list[str]:
    def with_error(value: float, error: float | None) -> str:
        return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.4g}"

    error = "" if one.difference_stderr is None else f"{one.difference_stderr:.4g}"
    cells = [
        one.result,
        one.benchmark,
        f"{one.metric}{'' if one.higher_is_better else ' (lower is better)'}",
        "" if one.rows is None else f"{one.rows:,}",
        with_error(one.before, one.before_stderr),
        with_error(one.after, one.after_stderr),
        f"{one.difference:+.4g}",
        f"{error}{' (paired)' if one.paired else ''}",
    ]
    if one.exceeds is None:
        return cells
    word = "too much" if one.exceeds else "none" if one.loss <= 0 else "allowed"
    return [*cells, f"{one.loss_words}: {word}" if one.loss > 0 else word]


def _notes(found: BenchmarkRecord) -> list[str]:
    allowed = "any loss is allowed" if found.max_drop is None else f"max_drop: {found.max_drop:g}"
    asked = "all questions" if found.limit is None else f"the first {found.limit:,} questions"
    through = "through" if found.chat_template else "without"
    notes = [
        f"Asked of the base before training and of the result: {asked} of each, {through} the"
        f" chat template; {allowed}. ± is one standard error."
    ]
    noise = [one.benchmark for one in found.changes if one.is_lost and one.is_noise]
    if noise:
        notes.append(
            f"A loss like that of {', '.join(noise)} is often chance: the difference is"
            " within two standard errors. More questions tell."
        )
    return notes


EXTRA = BenchmarksExtra()
