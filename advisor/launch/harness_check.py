"""Whether the benchmarks of a plan can be asked here: the harness is installed, its tasks are
known, task files can be read, data sets are here or may be downloaded.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, nearest
from advisor.ground.files import text_of
from advisor.ground.hub_cache import hub_cache, hub_home, is_offline
from advisor.ground.install_line import install_line
from advisor.plan.harness_tasks import (
    LOCAL_BUILDERS,
    data_set_of,
    harness_folder,
    harness_version,
    known_tasks,
    similar_tasks,
)
from advisor.plan.model import Plan
from advisor.plan.paths import is_task_file
from advisor.plan.read import resolve_path

EXTRA = "eval"
TESTED = ("0.4.13", "0.4.14")  # from the first version up to the second, as in pyproject.toml
OUTPUTS = ("generate_until", "loglikelihood", "loglikelihood_rolling", "multiple_choice")
# Keys of a task file that are not of the harness's TaskConfig.
FILE_KEYS = ("include", "group", "group_alias", "class", "aggregate_metric_list", "task_list")


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessCheck:
    """What was found out about the benchmarks of a plan."""

    bad: list[Fault] = field(default_factory=list)  # what the plan names and is not there
    lacking: list[Fault] = field(default_factory=list)  # what the machine lacks
    needs: list[str] = field(default_factory=list)  # downloads and code, for a person to know


def check_harness(plan: Plan, plan_path: Path) -> HarnessCheck:
    """The faults of the plan's benchmarks, and what they need."""
    found = HarnessCheck()
    if plan.evaluation is None:
        return found
    found.lacking.extend(_package_faults())
    is_there = not found.lacking
    for number, task in enumerate(plan.evaluation.tasks):
        at = f"evaluation.tasks.{number}"
        if is_task_file(task):
            _check_file(resolve_path(plan_path, task), task, at, found)
        elif is_there:
            _check_name(task, at, found)
    return found


def _package_faults() -> Iterator[Fault]:
    version = harness_version()
    wanted = f"lm-eval>={TESTED[0]},<{TESTED[1]}"
    if version is None or harness_folder() is None:
        yield Fault(
            where="evaluation",
            what="the benchmarks need lm-evaluation-harness, which is not installed",
            allowed=f"wanted: {wanted}; or a plan without `evaluation`",
            hint=install_line(EXTRA),
        )
    elif not _numbers(TESTED[0]) <= _numbers(version) < _numbers(TESTED[1]):
        yield Fault(
            where="evaluation",
            what=f"lm-eval {version} is installed, which was not tested here",
            allowed=f"wanted: {wanted}",
            hint=install_line(EXTRA),
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


# --------------------------------------------------------------------------- names of the harness


def _check_name(task: str, at: str, found: HarnessCheck) -> None:
    files = known_tasks().get(task)
    if files is None:
        near = similar_tasks(task)
        found.bad.append(
            Fault(
                where=at,
                what=f"lm-evaluation-harness has no task '{task}'",
                allowed="a name that `lm-eval ls tasks` lists, or a task file that ends in .yaml",
                hint=f"did you mean {', '.join(near)}?" if near else "",
            )
        )
        return
    named = {data_set_of(file.path) for file in files}
    for data_set in sorted(name for name in named if name is not None):
        _check_data_set(data_set, task, at, found)
    if any(_is_unsafe(file.path) for file in files):
        found.bad.append(_unsafe(task, at))


def _is_unsafe(path: Path) -> bool:
    text = text_of(path, errors="replace") if path.is_file() else ""
    return "\nunsafe_code: true" in f"\n{text}"


def _unsafe(task: str, at: str) -> Fault:
    return Fault(
        where=at,
        what=f"{task} runs code that the model writes, on this machine",
        allowed="benchmarks that read answers",
        hint="run it by yourself in a container: lm-eval run --tasks ... --confirm_run_unsafe_code",
    )


def _check_data_set(data_set: str, task: str, at: str, found: HarnessCheck) -> None:
    """Whether a data set of the hub is in the cache, or may be downloaded."""
    if data_set in LOCAL_BUILDERS or _is_cached(data_set):
        return
    if is_offline() or os.environ.get("HF_DATASETS_OFFLINE", "") not in ("", "0"):
        found.lacking.append(
            Fault(
                where=at,
                what=f"{task} needs the data set {data_set} of the hub, which is not in the cache,"
                " and HF_HUB_OFFLINE is set",
                allowed="a task file with data of this machine works offline",
                hint="download it once with a connection, or unset HF_HUB_OFFLINE",
            )
        )
        return
    found.needs.append(f"benchmark {task}: downloads the data set {data_set} from the hub")


def _is_cached(data_set: str) -> bool:
    """Whether a data set of the hub was downloaded before."""
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or hub_home() / "datasets")
    places = (
        hub_cache() / f"datasets--{data_set.replace('/', '--')}" / "snapshots",
        prepared / data_set.replace("/", "___").lower(),
        prepared / data_set.replace("/", "___"),
    )
    return any(place.is_dir() and any(place.iterdir()) for place in places)


# --------------------------------------------------------------------------- task files


def _check_file(path: Path, task: str, at: str, found: HarnessCheck) -> None:
    if not path.is_file():
        beside = sorted(one.name for one in path.parent.glob("*.y*ml"))
        found.bad.append(
            Fault(
                where=at,
                what=f"there is no task file {path}",
                allowed="a path relative to the plan file, or a name of lm-evaluation-harness",
                hint=nearest(path.name, beside),
            )
        )
        return
    try:
        text = text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        found.bad.append(Fault(where=str(path), what=f"cannot be read as text: {error}"))
        return
    held, lines, fault = _parsed(text, path)
    if fault is not None:
        found.bad.append(fault)
        return
    found.bad.extend(_key_faults(held, lines, path))
    whole = _with_includes(held, path, found)
    if not isinstance(held.get("task") or held.get("group"), str):
        found.bad.append(
            Fault(
                where=str(path),
                what="the task file has no name",
                allowed="task: a name of your own",
                hint="docs/benchmarks.md shows a whole file",
            )
        )
    if whole.get("unsafe_code") is True:
        found.bad.append(_unsafe(task, at))
    output = whole.get("output_type", OUTPUTS[0])
    if output not in OUTPUTS:
        found.bad.append(
            Fault(
                where=f"{path}:{lines.get('output_type', 1)}",
                what=f"output_type is '{output}'",
                allowed=f"one of {', '.join(OUTPUTS)}",
                hint=nearest(output, OUTPUTS),
            )
        )
    found.bad.extend(_data_faults(whole, path, lines))
    data_set = whole.get("dataset_path")
    if isinstance(data_set, str) and not (path.parent / data_set).exists():
        _check_data_set(data_set, task, at, found)
    if "!function" in text:
        found.needs.append(f"benchmark {task}: runs your functions that {path.name} names")


def _parsed(text: str, path: Path) -> tuple[dict[str, Any], dict[str, int], Fault | None]:
    """(keys and values, key -> its line, what keeps it from being read).

    `!function` and other tags stand for themselves: nothing is imported here.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML whose unknown tags are texts."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        held = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return {}, {}, Fault(where=place, what=f"the task file is no valid YAML: {problem}")
    finally:
        loader.dispose()
    if node is None or not isinstance(held, dict):
        what = "the task file is empty" if held is None else "the task file holds no keys"
        fault = Fault(where=str(path), what=what, hint="docs/benchmarks.md shows a whole file")
        return {}, {}, fault
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return {str(key): value for key, value in held.items()}, lines, None


def _with_includes(held: dict[str, Any], path: Path, found: HarnessCheck) -> dict[str, Any]:
    """The keys with those of the files it includes, whose own are weaker."""
    named = held.get("include") or []
    whole: dict[str, Any] = {}
    for name in named if isinstance(named, list) else [named]:
        other = path.parent / str(name)
        if not other.is_file():
            found.bad.append(
                Fault(where=str(path), what=f"include names {other}, which is not there")
            )
            continue
        inner, _, fault = _parsed(text_of(other, errors="replace"), other)
        if fault is not None:
            found.bad.append(fault)
        whole |= inner
    return whole | held


def _key_faults(held: dict[str, Any], lines: dict[str, int], path: Path) -> Iterable[Fault]:
    """Keys that the harness refuses, by the fields of its own class."""
    known = _task_keys()
    for key in held:
        if known and key not in known:
            yield Fault(
                where=f"{path}:{lines.get(key, 1)}",
                what=f"lm-evaluation-harness has no key '{key}' in a task file",
                allowed=f"known: {', '.join(known)}" if not nearest(key, known) else "",
                hint=nearest(key, known),
            )


def _task_keys() -> list[str]:
    """The keys of a task file, read from the harness's source; empty if it is not installed or not
    written as it was.
    """
    folder = harness_folder()
    source = folder / "config" / "task.py" if folder is not None else None
    if source is None or not source.is_file():
        return []
    for node in ast.parse(source.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "TaskConfig":
            fields = [
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            ]
            return [*fields, *FILE_KEYS]
    return []


def _data_faults(whole: dict[str, Any], path: Path, lines: dict[str, int]) -> Iterable[Fault]:
    """Data files that are not there; relative paths start from the task file's folder."""
    options = whole.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, dict) else None
    for name in _texts(files):
        if "://" in name or any(sign in name for sign in "*?["):
            continue
        if not (path.parent / Path(name).expanduser()).exists():
            yield Fault(
                where=f"{path}:{lines.get('dataset_kwargs', 1)}",
                what=f"the data file {name} is not there",
                allowed=f"a path relative to {path.parent}, or an absolute one",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    parts = value.values() if isinstance(value, dict) else value
    for part in parts if isinstance(value, dict | list) else ():
        yield from _texts(part)
