"""What a plan trains in order: its stages, or every stage of every task; and its paths."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.extras import extras
from advisor.ground.files import bytes_of
from advisor.ground.shape import Keys, ListOf, OneOf, Shape
from advisor.methods.keys import FunctionText, PathText
from advisor.methods.rewards import reward_parts
from advisor.model_files.folder import ADAPTER_CONFIG
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, PlanData, Stage, Task


class Entry(Struct, frozen=True, kw_only=True):
    """One training: a stage, or a stage of one task if the plan has tasks."""

    name: str  # also its folder under stages/: "sft", or "sft-legal" for a task
    stage: Stage  # with the task's overrides applied
    task: Task | None
    data: PlanData
    starts_from: str | None  # name of the entry whose result it continues from
    start_folder: str | None  # or a folder, as written in the plan; both None: the plan's model
    # Names of the entries whose reward models score this one's answers.
    scored_by: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the entries that have to be trained before this one."""
        starts_from = () if self.starts_from is None else (self.starts_from,)
        return tuple(dict.fromkeys((*starts_from, *self.scored_by)))


def entries(plan: Plan) -> list[Entry]:
    """The trainings of a plan in the order they are run: task by task, each through all stages."""
    return [
        _entry(plan, index, task)
        for task in plan.tasks or (None,)
        for index in range(len(plan.stages))
    ]


def start_folder_of(entry: Entry, *, run: Path, folder: Path) -> Path | None:
    """The folder that a training continues from, `folder` being the plan's; None: the model."""
    if entry.starts_from is not None:
        return run / "stages" / entry.starts_from
    return None if entry.start_folder is None else path_from(folder, entry.start_folder)


def whole_model(plan: Plan, start: Path | None, *, run: Path, folder: Path) -> Path | None:
    """The folder of the whole model that a start is, or that its module belongs to; None: the
    plan's model.

    A module of this run is followed through the plan: what its configuration names is the place
    where the project was then. The module of another run belongs to what it names, if that is here.
    """
    if start is None or not (start / ADAPTER_CONFIG).is_file():
        return start
    for entry in entries(plan):
        if run / "stages" / entry.name == start:
            before = start_folder_of(entry, run=run, folder=folder)
            return whole_model(plan, before, run=run, folder=folder)
    named = json.loads(bytes_of(start / ADAPTER_CONFIG)).get("base_model_name_or_path")
    return Path(named) if named and Path(named).is_dir() else None


def _entry(plan: Plan, index: int, task: Task | None) -> Entry:
    stage, suffix = plan.stages[index], f"-{task.name}" if task else ""
    earlier = [one.name for one in plan.stages[:index]]
    # From a reward model, which scores and does not write, no other stage goes on.
    goes_on = [one.name for one in plan.stages[:index] if _scores(stage) or not _scores(one)]
    start = stage.start_from or (goes_on[-1] if goes_on else None)
    own = PlanData(path=stage.data) if stage.data is not None else plan.data
    data = task.data if task else own
    if data is None:
        raise ValueError(f"stage {stage.name} has no data; read.py refuses such plans")
    return Entry(
        name=stage.name + suffix,
        stage=with_overrides(stage, task) if task else stage,
        task=task,
        data=data,
        starts_from=f"{start}{suffix}" if start in earlier else None,
        start_folder=None if start in earlier else start,
        scored_by=tuple(f"{name}{suffix}" for name in _scorers(plan, index)),
    )


def _scorers(plan: Plan, index: int) -> list[str]:
    """The stages whose reward models score a stage's own answers; none if something else does."""
    stage = plan.stages[index]
    if not key_specs().objectives[stage.objective].needs_reward:
        return []
    there = [earlier.name for earlier in plan.stages[:index] if _scores(earlier)]
    parts = reward_parts(stage.options)
    if not parts:
        return there[-1:]
    return [one.value for one in parts if one.source == "reward_model" and one.value in there]


def _scores(stage: Stage) -> bool:
    return key_specs().objectives[stage.objective].scores


def with_overrides(stage: Stage, task: Task) -> Stage:
    """The stage as a task trains it. An override goes to every stage that reads its key."""
    fields, given = Stage.__struct_fields__, task.overrides
    allowed = key_specs().allowed(stage.objective, stage.update)
    common = {key: value for key, value in given.items() if key in fields}
    own = {key: value for key, value in given.items() if key in allowed}
    return replace(stage, **common, options={**stage.options, **own}) if given else stage


# --------------------------------------------------------------------------- paths


def path_from(folder: Path, text: str) -> Path:
    """What a path means that starts from a folder; `~` is the home folder.

    Args:
        folder: Without links and `..`, so that `..` in the text is its parent.
    """
    path = Path(os.path.expanduser(text))  # which leaves the name of nobody's home as it is
    while path.parts[:1] == ("..",):
        folder, path = folder.parent, Path(*path.parts[1:])
    return folder / path


def with_paths(plan: Plan, moved: Callable[[str], str]) -> Plan:
    """The plan with `moved` applied to every path in it; names of stages are no paths.

    Args:
        moved: What a path becomes; a text that is no path (a hub id) comes back unchanged.
    """
    launch, server = plan.launch, plan.launch.vllm
    if server is not None and server.python is not None:
        launch = replace(launch, vllm=replace(server, python=moved(server.python)))
    return replace(
        plan,
        model=moved(plan.model),
        data=replace(plan.data, path=moved(plan.data.path)) if plan.data else None,
        launch=launch,
        extras={name: extras()[name].with_paths(keys, moved) for name, keys in plan.extras.items()},
        stages=tuple(_moved_stage(plan, stage, moved) for stage in plan.stages),
        tasks=tuple(
            replace(task, data=replace(task.data, path=moved(task.data.path)))
            for task in plan.tasks
        ),
    )


def stage_paths(plan: Plan, stage: Stage) -> list[str]:
    """Every path in a stage but its data, as written: what it starts from, what its keys name."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _moved_stage(plan, replace(stage, data=None), note)
    return found


def _moved_stage(plan: Plan, stage: Stage, moved: Callable[[str], str]) -> Stage:
    names = {one.name for one in plan.stages}
    declared = key_specs().allowed(stage.objective, stage.update)

    def unless_a_stage(text: str) -> str:
        return text if text in names else moved(text)

    def inside(value: Any, shape: Shape | None) -> Any:
        """A value of that shape with every path in it moved."""
        if isinstance(shape, ListOf) and isinstance(value, list):
            return [inside(part, shape.of) for part in value]
        if isinstance(shape, Keys) and isinstance(value, dict):
            return {key: inside(part, shape.keys.get(key)) for key, part in value.items()}
        if isinstance(shape, OneOf) and isinstance(value, str):
            shape = next((one for one in shape.options if isinstance(one, PathText)), None)
        if isinstance(shape, PathText) and isinstance(value, str):
            return unless_a_stage(value)
        if isinstance(shape, FunctionText) and isinstance(value, str):
            file, colon, function = value.rpartition(":")
            return f"{moved(file)}{colon}{function}"
        return value

    return replace(
        stage,
        data=moved(stage.data) if stage.data is not None else None,
        start_from=unless_a_stage(stage.start_from) if stage.start_from is not None else None,
        options={
            key: inside(value, declared[key].shape if key in declared else None)
            for key, value in stage.options.items()
        },
    )
