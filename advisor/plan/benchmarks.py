"""Which benchmarks a plan asks for, what their files hold, and whether their scores in a run folder
are still those of the same benchmark and the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from advisor.ground.content import file_digest
from advisor.ground.files import text_of
from advisor.plan.benchmark_record import BASE, FOLDER, ModelScores
from advisor.plan.harness_tasks import LOCAL_BUILDERS, data_set_of
from advisor.plan.model import Plan
from advisor.plan.paths import TASK_FILES, is_task_file, path_from
from advisor.plan.record import DONE, RunRecord, StageRecord, last_of_each_task
from advisor.plan.record_files import try_read_part
from advisor.plan.write import digest

TRIAL_LIMIT = 16  # questions of each benchmark in a trial (--max-steps)
# A file that a benchmark's file names: a data file, an include, a module with functions.
NAMED = re.compile(r"[\w./~+@-]+\.(?:jsonl?|csv|tsv|parquet|txt|arrow|ya?ml|py)\b")
FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")


def shown_task(task: str) -> str:
    """An entry as messages call it: a file by its name."""
    return Path(task).name if is_task_file(task) else task


def limit_of(plan: Plan, max_steps: int | None) -> int | None:
    """Questions of each benchmark; None: all."""
    assert plan.evaluation is not None
    limit = plan.evaluation.limit
    return limit if max_steps is None else min(limit or TRIAL_LIMIT, TRIAL_LIMIT)


def scores_path(run: Path, name: str) -> Path:
    """The file for the scores of `base`, or of a stage's result."""
    return run / FOLDER / f"{name}.json"


def read_scores(run: Path, name: str) -> ModelScores:
    """The scores of a model, as far as there are any."""
    return try_read_part(ModelScores, scores_path(run, name)) or ModelScores()


def measured_stages(record: RunRecord) -> list[StageRecord]:
    """The stages whose results are measured: the last of each task, if it is finished."""
    return [stage for stage in last_of_each_task(record.stages) if stage.status == DONE]


def task_content(folder: Path, task: str) -> str:
    """A digest of what stands behind an entry: its name; of a file, what it and the files beside it
    that it names hold. Empty if the file is not there.

    Args:
        folder: What the entry is relative to.
    """
    if not is_task_file(task):
        return task
    held: dict[str, str] = {}
    path = path_from(folder, task)
    for file in files_of(path):
        name = (
            file.relative_to(path.parent).as_posix()
            if file.is_relative_to(path.parent)
            else file.name
        )
        held[name if file != path else ""] = file_digest(file, sample=False).sha256
    return digest(held) if held else ""


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
    named = [
        *NAMED.findall(text),
        *(f"{one.replace('.', '/')}.py" for one in FUNCTION.findall(text)),
    ]
    for name in dict.fromkeys(named):
        found += files_of(path.parent / Path(name).expanduser(), seen | {path})
    return list(dict.fromkeys(found))


def needs_no_hub(plan: Plan, folder: Path) -> bool:
    """Whether model and benchmarks of a plan are all on this machine, so that nobody has to be
    asked over the network.

    Args:
        folder: What the plan's paths are relative to.
    """
    if plan.evaluation is None or not path_from(folder, plan.model).is_dir():
        return False
    files = [path_from(folder, task) for task in plan.evaluation.tasks if is_task_file(task)]
    named = [(file, data_set_of(file)) for file in files]
    return len(files) == len(plan.evaluation.tasks) and all(
        data in LOCAL_BUILDERS or (data is not None and (file.parent / data).exists())
        for file, data in named
    )


def scores_key(
    plan: Plan, folder: Path, record: RunRecord, name: str, task: str, *, limit: int | None
) -> str:
    """What scores belong to: the benchmark, its limit, and the model. Empty if the file of the
    benchmark is not there, so that nobody can tell.

    Args:
        folder: What the plan's paths are relative to.
        name: `base`, or a stage.
    """
    content = task_content(folder, task)
    if not content:
        return ""
    # The run folder belongs to one model, so that its base needs no name of its own.
    stage = record.stage(name) if name != BASE else None
    model: Any = None
    if stage is not None:
        files = {file: saved.sha256 for file, saved in (stage.files or {}).items()}
        model = files or stage.finished_at
    return digest({"benchmark": content, "limit": limit, "model": model})


def missing_tasks(plan: Plan, folder: Path, run: Path, record: RunRecord, name: str) -> list[str]:
    """The entries of `evaluation.tasks` that a model was not asked yet, or in another form.

    Args:
        folder: What the plan's paths are relative to.
        run: The run folder.
        name: `base`, or a stage.
    """
    if plan.evaluation is None:
        return []
    there, limit = read_scores(run, name).tasks, limit_of(plan, record.max_steps)
    return [
        task
        for task in plan.evaluation.tasks
        if (found := there.get(task)) is None
        or scores_key(plan, folder, record, name, task, limit=limit) not in ("", found.key)
    ]


def forget_others(scores: Mapping[str, Any], tasks: Iterable[str]) -> dict[str, Any]:
    """The scores of the plan's own entries, in its order."""
    return {task: scores[task] for task in tasks if task in scores}
