"""Asks the benchmarks of a plan: of its base before training and of its results after it, each by
a process of its own (trainers/tools/harness.py) while no trainer holds the device.

`benchmarks/NAME/KEY.json` in a run folder holds what the harness answered for one model and one
entry of `evaluation.tasks`. The key is a digest of the benchmark, the limit and the model, so that
what is there need not be asked again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.extras.benchmarks.scores import (
    BASE,
    BenchmarkRecord,
    Score,
    compare,
    files_of,
    is_task_file,
    scores_of,
)
from advisor.ground.errors import AdviseError, Fault, InputError, OutOfMemory, TrainingFailed
from advisor.ground.files import text_of, write_atomically
from advisor.ground.units import format_duration
from advisor.launch.failure_report import KINDS, forget_errors, read_error
from advisor.plan.entries import path_from
from advisor.plan.model import Plan
from advisor.plan.write import digest
from advisor.record.content import file_digest
from advisor.record.run import DONE, RunRecord, last_of_each_task

if TYPE_CHECKING:
    from advisor.launch.stages import StageRunner

FOLDER = "benchmarks"  # in a run folder
TRIAL_LIMIT = 16  # questions of each benchmark in a trial (--max-steps)


def harness_version() -> str | None:
    """The installed version of lm-evaluation-harness, or None."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


def scores(task: str, answer: Mapping[str, Any]) -> list[Score]:
    """The scores in an answer of the harness. Raises InputError if there is none."""
    if found := scores_of(answer["results"]):
        return found
    raise InputError(
        "the benchmark gave no number",
        where=f"evaluation.tasks: {task}",
        hint="its metric_list names no metric that lm-evaluation-harness could compute",
    )


class AskedModels:
    """What the models of a run answered, and what they were not asked yet."""

    def __init__(self, plan: Plan, folder: Path, record: RunRecord) -> None:
        """For the plan as it stands in the run folder, which its paths are relative to."""
        self.folder, self.record = folder, record
        self.evaluation = plan.extra_key("benchmarks", "evaluation")
        limit: int | None = self.evaluation.limit
        is_trial = record.max_steps is not None
        self.limit = min(limit or TRIAL_LIMIT, TRIAL_LIMIT) if is_trial else limit  # None: all
        last = last_of_each_task(record.stages)
        self.results = [stage.name for stage in last if stage.status == DONE]

    def files(self, name: str) -> dict[str, Path]:
        """Entry of `evaluation.tasks` -> where the answers of a model are, or will be."""
        # The run folder belongs to one model, so that its base needs no name of its own.
        model: Any = None
        if name != BASE and (stage := self.record.stage(name)):
            saved = {file: one.sha256 for file, one in (stage.files or {}).items()}
            model = saved or stage.finished_at
        found = {}
        for task in self.evaluation.tasks:
            content: Any = task
            if is_task_file(task):
                listed = files_of(path_from(self.folder, task))
                content = [[one.name, file_digest(one)] for one in listed]
            subject = {"benchmark": content, "limit": self.limit, "model": model}
            found[task] = self.folder / FOLDER / name / f"{digest(subject)}.json"
        return found

    def answers(self, name: str) -> dict[str, dict[str, Any]]:
        """Entry of `evaluation.tasks` -> what the harness wrote, as far as it is there."""
        files = self.files(name).items()
        return {task: json.loads(text_of(path)) for task, path in files if path.is_file()}

    def missing(self, names: Sequence[str]) -> list[dict[str, str]]:
        """What these models were not asked yet, as trainers/tools/harness.py reads it."""
        return [
            {"name": name, "task": task, "to": str(path)}
            for name in names
            for task, path in self.files(name).items()
            if not path.is_file()
        ]

    def compared(self) -> BenchmarkRecord:
        """The finished results beside the base."""
        before = self.answers(BASE)
        after = {name: self.answers(name) for name in self.results}
        everything = [before, *after.values()]
        max_drop = self.evaluation.max_drop
        return BenchmarkRecord(
            tasks=self.evaluation.tasks,
            max_drop=max_drop,
            limit=self.limit,
            chat_template=any(one["chat_template"] for one in before.values()),
            seconds=_seconds(one for found in everything for one in found.values()),
            changes=tuple(
                change
                for name, found in after.items()
                for task, one in found.items()
                for change in compare(
                    scores(task, before[task]), scores(task, one), result=name, max_drop=max_drop
                )
            ),
        )

    def is_unmeasured(self, noted: BenchmarkRecord) -> bool:
        """Whether a result was not asked what the plan wants now, or has another limit."""
        wanted = (self.evaluation.tasks, self.evaluation.max_drop, self.limit)
        is_other = (noted.tasks, noted.max_drop, noted.limit) != wanted
        return is_other or bool(self.missing(self.results))


def _seconds(answers: Iterable[Mapping[str, Any]]) -> float:
    return sum(float(one["seconds"]) for one in answers)


def measure_base(run: StageRunner) -> None:
    """Ask the base what it was not asked yet. Raises what the benchmarks raised."""
    measured = AskedModels(run.run.copy, run.run.folder, run.keeper.record)
    if not _ask(run, measured, [BASE]):
        return
    answers = measured.answers(BASE)
    said = [
        f"{score.benchmark} {score.metric} {score.value:.3g}"
        for task, answer in answers.items()
        for score in scores(task, answer)
    ]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    run.call.options.say(
        f"benchmarks before training: {', '.join(said[:3])}{more}; took"
        f" {format_duration(_seconds(answers.values()))}, and each result takes about as long again"
    )


def measure_results(run: StageRunner) -> BenchmarkRecord:
    """Ask the finished results, and compare them with the base. Raises as `measure_base`."""
    measured = AskedModels(run.run.copy, run.run.folder, run.keeper.record)
    if measured.missing(measured.results):
        for task, answer in measured.answers(BASE).items():
            if answer["version"] != harness_version():
                run.call.options.say(
                    "lm-evaluation-harness has another version now: the base is asked again"
                )
                measured.files(BASE)[task].unlink()
    if measured.results:
        _ask(run, measured, [BASE, *measured.results])
    return measured.compared()


def _ask(run: StageRunner, measured: AskedModels, names: Sequence[str]) -> bool:
    """Ask these models what they were not asked yet; whether there was anything to ask."""
    wanted = measured.missing(names)
    if not wanted:
        return False
    folder = measured.folder / FOLDER
    asked = list(dict.fromkeys(one["name"] for one in wanted))
    on = ", ".join("the base" if name == BASE else name for name in asked)
    told = ", ".join(dict.fromkeys(Path(one["task"]).name for one in wanted))
    untold = "; how long they take is not estimated" if asked == [BASE] else ""
    run.call.options.say(f"benchmarks on {on}: {told}{untold}")
    forget_errors(folder)
    for one in wanted:
        Path(one["to"]).parent.mkdir(parents=True, exist_ok=True)
    request = folder / "request.json"
    write_atomically(request, json.dumps({"limit": measured.limit, "wanted": wanted}))
    ended = run.starter.run_module("trainers.tools.harness", measured.folder, str(request))
    if ended.was_stopped:
        raise KeyboardInterrupt
    if ended.code != 0:
        raise _failure(folder, ended.code, is_trained=asked != [BASE])
    return True


def _failure(folder: Path, code: int, *, is_trained: bool) -> AdviseError:
    beside = "; the results are trained and saved" if is_trained else "; nothing was trained yet"
    told = read_error(folder)
    if told is None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        kind = OutOfMemory if code == -9 else TrainingFailed
        return kind(
            f"the benchmarks could not be run ({how}){beside}",
            where="evaluation.tasks",
            hint="its messages are above; --no-judge trains without them",
        )
    kind_of = KINDS.get(told.exit_code or code, TrainingFailed)
    fault = Fault(what=f"{told.what}{beside}", allowed=told.allowed, hint=told.hint)
    return kind_of(faults=[fault])
