"""Asks the benchmarks of a plan: of its base before training and of its results after it, each by
a process of its own (trainers/evaluation/harness.py) while no trainer holds the device.

`benchmarks/NAME/KEY.json` in a run folder holds what the harness answered for one model and one
entry of `evaluation.tasks`. The key is a digest of the benchmark, the limit and the model, so that
what is there need not be asked again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.extras.benchmarks.scores import (
    BASE,
    BenchmarkRecord,
    Score,
    compare,
    scores_of,
)
from advisor.ground.content import file_digest
from advisor.ground.errors import AdviseError, Fault, InputError, OutOfMemory, TrainingFailed
from advisor.ground.files import text_of, write_atomically
from advisor.ground.units import format_duration
from advisor.launch.failure_report import KINDS, forget_errors, read_error
from advisor.plan.model import Plan
from advisor.plan.paths import path_from
from advisor.plan.record import DONE, RunRecord, StageRecord, last_of_each_task
from advisor.plan.write import digest

if TYPE_CHECKING:
    from advisor.launch.prepare import PlanRun
    from advisor.launch.stages import StageRunner

FOLDER = "benchmarks"  # in a run folder
TRIAL_LIMIT = 16  # questions of each benchmark in a trial (--max-steps)
TASK_FILES = (".yaml", ".yml")  # of a benchmark that is a file; anything else is a name
# A file that a benchmark's file names: a data file, an include, a module with functions.
NAMED = re.compile(r"[\w./~+@-]+\.(?:jsonl?|csv|tsv|parquet|txt|arrow|ya?ml|py)\b")
FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")


def is_task_file(task: str) -> bool:
    """Whether an entry of `evaluation.tasks` is the path of a file."""
    return task.endswith(TASK_FILES)


def files_of(path: Path, seen: frozenset[Path] = frozenset()) -> list[Path]:
    """The file of a benchmark and the files that it names, those of its includes too, as far as
    they are there.
    """
    if path in seen or not path.is_file():
        return []
    found = [path]
    if path.suffix not in TASK_FILES:
        return found
    text = text_of(path, errors="replace")
    modules = (f"{one.replace('.', '/')}.py" for one in FUNCTION.findall(text))
    for name in dict.fromkeys([*NAMED.findall(text), *modules]):
        found += files_of(path.parent / Path(name).expanduser(), seen | {path})
    return list(dict.fromkeys(found))


def harness_version() -> str | None:
    """The installed version of lm-evaluation-harness, or None."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model answered in one entry of the plan."""

    task: str
    path: Path

    @property
    def is_there(self) -> bool:
        return self.path.is_file()

    def read(self) -> dict[str, Any]:
        """What trainers/evaluation/harness.py wrote."""
        return dict(json.loads(text_of(self.path)))

    def scores(self) -> list[Score]:
        """The scores by the first metric of each benchmark. Raises InputError if there is none."""
        if found := scores_of(self.read()["results"]):
            return found
        raise InputError(
            "the benchmark gave no number",
            where=f"evaluation.tasks: {self.task}",
            hint="its metric_list names no metric that lm-evaluation-harness could compute",
        )


def limit_of(plan: Plan, max_steps: int | None) -> int | None:
    """Questions of each benchmark; None: all."""
    limit: int | None = plan.extra_key("benchmarks", "evaluation").limit
    return limit if max_steps is None else min(limit or TRIAL_LIMIT, TRIAL_LIMIT)


def scores_paths(plan: Plan, run: Path, record: RunRecord, name: str) -> dict[str, Scores]:
    """Entry of `evaluation.tasks` -> where the scores of a model are, or will be.

    Args:
        plan: As it stands in the run folder.
        run: The run folder, which the plan's paths are relative to.
        name: `base`, or a stage.
    """
    # The run folder belongs to one model, so that its base needs no name of its own.
    stage = record.stage(name) if name != BASE else None
    files = {file: saved.sha256 for file, saved in (stage.files or {}).items()} if stage else {}
    model = files or (stage.finished_at if stage else None)
    found = {}
    for task in plan.extra_key("benchmarks", "evaluation").tasks:
        content: Any = task
        if is_task_file(task):
            listed = files_of(path_from(run, task))
            content = [[one.name, file_digest(one)] for one in listed]
        subject = {"benchmark": content, "limit": limit_of(plan, record.max_steps), "model": model}
        found[task] = Scores(task, run / FOLDER / name / f"{digest(subject)}.json")
    return found


def measured_stages(record: RunRecord) -> list[StageRecord]:
    """The stages whose results are measured: the last of each task, if it is finished."""
    return [stage for stage in last_of_each_task(record.stages) if stage.status == DONE]


# --------------------------------------------------------------------------- around a training


def measure_base(run: StageRunner) -> None:
    """Ask the base what it was not asked yet, so that a benchmark that cannot be run ends the
    command before anything is trained. Raises what the benchmarks raised, KeyboardInterrupt.
    """
    if not _ask(run, [BASE]):
        return
    found = scores_paths(run.run.copy, run.run.folder, run.keeper.record, BASE).values()
    said = [
        f"{score.benchmark} {score.metric} {score.value:.3g}"
        for one in found
        for score in one.scores()
    ]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    run.say(
        f"benchmarks before training: {', '.join(said[:3])}{more}; took"
        f" {format_duration(_seconds(found))}, and each result takes about as long again"
    )


def measure_results(run: StageRunner) -> BenchmarkRecord:
    """Ask the finished results, and compare them with the base. Raises as `measure_base`."""
    plan, folder, record = run.run.copy, run.run.folder, run.keeper.record
    names = [stage.name for stage in measured_stages(record)]
    before = scores_paths(plan, folder, record, BASE)
    missing = [
        one
        for name in names
        for one in scores_paths(plan, folder, record, name).values()
        if not one.is_there
    ]
    if missing:
        for one in before.values():
            if one.is_there and one.read()["version"] != harness_version():
                run.say("lm-evaluation-harness has another version now: the base is asked again")
                one.path.unlink()
    _ask(run, [BASE, *names] if names else [])
    after = {name: scores_paths(plan, folder, record, name) for name in names}
    evaluation = plan.extra_key("benchmarks", "evaluation")
    everything = [*before.values(), *(one for found in after.values() for one in found.values())]
    return BenchmarkRecord(
        tasks=evaluation.tasks,
        max_drop=evaluation.max_drop,
        limit=limit_of(plan, record.max_steps),
        chat_template=any(one.read()["chat_template"] for one in before.values() if one.is_there),
        seconds=_seconds(everything),
        changes=tuple(
            change
            for name, found in after.items()
            for task, one in found.items()
            for change in compare(
                before[task].scores(), one.scores(), result=name, max_drop=evaluation.max_drop
            )
        ),
    )


def is_unmeasured(run: PlanRun, record: RunRecord, noted: BenchmarkRecord) -> bool:
    """Whether a finished result was not asked what the plan wants now, or is compared by another
    limit.
    """
    evaluation = run.copy.extra_key("benchmarks", "evaluation")
    names = [stage.name for stage in measured_stages(record)]
    return (
        (noted.tasks, noted.max_drop) != (evaluation.tasks, evaluation.max_drop)
        or noted.limit != limit_of(run.copy, record.max_steps)
        or any(
            not one.is_there
            for name in names
            for one in scores_paths(run.copy, run.folder, record, name).values()
        )
    )


def _seconds(found: Sequence[Scores] | Any) -> float:
    return sum(float(one.read()["seconds"]) for one in found if one.is_there)


def _ask(run: StageRunner, names: Sequence[str]) -> bool:
    """Ask these models what they were not asked yet; whether there was anything to ask."""
    plan, folder, record = run.run.copy, run.run.folder, run.keeper.record
    wanted = [
        {"name": name, "task": task, "to": str(one.path)}
        for name in names
        for task, one in scores_paths(plan, folder, record, name).items()
        if not one.is_there
    ]
    if not wanted:
        return False
    asked = list(dict.fromkeys(one["name"] for one in wanted))
    on = ", ".join("the base" if name == BASE else name for name in asked)
    told = ", ".join(dict.fromkeys(Path(one["task"]).name for one in wanted))
    untold = "; how long they take is not estimated" if asked == [BASE] else ""
    run.say(f"benchmarks on {on}: {told}{untold}")
    forget_errors(folder / FOLDER)
    for one in wanted:
        Path(one["to"]).parent.mkdir(parents=True, exist_ok=True)
    request = folder / FOLDER / "request.json"
    limit = limit_of(plan, record.max_steps)
    write_atomically(request, json.dumps({"limit": limit, "wanted": wanted}))
    ended = run.starter.run_module("trainers.evaluation.harness", run.run.folder, str(request))
    if ended.was_stopped:
        raise KeyboardInterrupt
    if ended.code != 0:
        raise _failure(folder / FOLDER, ended.code, is_trained=asked != [BASE])
    return True


def _failure(folder: Path, code: int, *, is_trained: bool) -> AdviseError:
    """Why the benchmarks ended without scores."""
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
