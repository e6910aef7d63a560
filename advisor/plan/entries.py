"""What a plan trains, one after the other: its stages, or every stage of every task; and every path
that it holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.extras import extras
from advisor.ground.files import bytes_of
from advisor.ground.shape import Keys, ListOf, Shape
from advisor.methods.keys import FunctionText, PathText
from advisor.methods.rewards import reward_parts
from advisor.model_files.folder import ADAPTER_CONFIG
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Launch, Plan, PlanData, Stage, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
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


def entries(plan: Plan, *, specs: KeySpecs | None = None) -> list[Entry]:
    """The trainings of a plan in the order they are run: task by task, each through all stages."""
    return [
        entry
        for task in plan.tasks or (None,)
        for entry in _chain(plan, task, specs or key_specs())
    ]


def start_of(entry: Entry, *, run: Path, folder: Path) -> Path | None:
    """The folder of what a training continues from; None: the plan's model. Relative paths of the
    plan start from `folder`.
    """
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
            before = start_of(entry, run=run, folder=folder)
            return whole_model(plan, before, run=run, folder=folder)
    named = json.loads(bytes_of(start / ADAPTER_CONFIG)).get("base_model_name_or_path")
    return Path(named) if named and Path(named).is_dir() else None


def _chain(plan: Plan, task: Task | None, specs: KeySpecs) -> list[Entry]:
    suffix = f"-{task.name}" if task else ""
    names = [stage.name for stage in plan.stages]
    result = []
    for index, stage in enumerate(plan.stages):
        start = stage.start_from or _before(plan, index, specs)
        earlier = start in names[:index]
        data = (
            task.data
            if task
            else PlanData(path=stage.data)
            if stage.data is not None
            else plan.data
        )
        if data is None:
            raise ValueError(f"stage {stage.name} has no data; read.py refuses such plans")
        result.append(
            Entry(
                name=stage.name + suffix,
                stage=with_overrides(stage, task, specs) if task else stage,
                task=task,
                data=data,
                starts_from=f"{start}{suffix}" if earlier else None,
                start_folder=None if earlier else start,
                scored_by=tuple(f"{name}{suffix}" for name in _scorers(plan, index, specs)),
            )
        )
    return result


def _scorers(plan: Plan, index: int, specs: KeySpecs) -> list[str]:
    """The stages whose reward models score a stage's own answers; none if something else does."""
    stage = plan.stages[index]
    if not specs.objectives[stage.objective].needs_reward:
        return []
    there = [earlier.name for earlier in plan.stages[:index] if _scores(earlier, specs)]
    parts = reward_parts(stage.options)
    if not parts:
        return there[-1:]
    named = (part.value for part in parts if part.source == "reward_model")
    return [name for name in named if name in there]


def _before(plan: Plan, index: int, specs: KeySpecs) -> str | None:
    """The stage before, or before the reward model, which scores and does not write."""
    from_any = _scores(plan.stages[index], specs)
    earlier = [stage.name for stage in plan.stages[:index] if from_any or not _scores(stage, specs)]
    return earlier[-1] if earlier else None


def _scores(stage: Stage, specs: KeySpecs) -> bool:
    """Whether the stage trains a reward model."""
    return specs.objectives[stage.objective].scores


def with_overrides(stage: Stage, task: Task, specs: KeySpecs) -> Stage:
    """The stage as a task trains it. An override goes to every stage that reads its key."""
    common = {
        key: value for key, value in task.overrides.items() if key in Stage.__dataclass_fields__
    }
    allowed = specs.allowed(stage.objective, stage.update)
    own = {key: value for key, value in task.overrides.items() if key in allowed}
    return replace(stage, **common, options={**stage.options, **own}) if task.overrides else stage


def path_from(folder: Path, text: str) -> Path:
    """What a path means that starts from a folder; `~` is the home folder.

    Args:
        folder: Without links and `..`, so that `..` in the text is its parent.
    """
    path = Path(text).expanduser()
    while path.parts[:1] == ("..",):
        folder, path = folder.parent, Path(*path.parts[1:])
    return folder / path


def with_paths(plan: Plan, moved: Callable[[str], str], *, specs: KeySpecs | None = None) -> Plan:
    """The plan with `moved` applied to every path in it; names of stages are no paths.

    Args:
        moved: What a path becomes; a text that is no path (a hub id) comes back unchanged.
        specs: The keys that methods declare; default: those of the shipped rules.
    """
    specs = specs or key_specs()
    names = {stage.name for stage in plan.stages}
    return replace(
        plan,
        model=moved(plan.model),
        data=replace(plan.data, path=moved(plan.data.path)) if plan.data else None,
        launch=_launch(plan.launch, moved),
        extras={name: extras()[name].with_paths(keys, moved) for name, keys in plan.extras.items()},
        stages=tuple(_stage(stage, moved, names, specs) for stage in plan.stages),
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

    names = {one.name for one in plan.stages}
    _stage(replace(stage, data=None), note, names, key_specs())
    return found


def _launch(launch: Launch, moved: Callable[[str], str]) -> Launch:
    server = launch.vllm
    if server is None or server.python is None:
        return launch
    return replace(launch, vllm=replace(server, python=moved(server.python)))


def _stage(
    stage: Stage, moved: Callable[[str], str], names: Collection[str], specs: KeySpecs
) -> Stage:
    start = stage.start_from
    return replace(
        stage,
        data=moved(stage.data) if stage.data is not None else None,
        start_from=moved(start) if start is not None and start not in names else start,
        options=_options(stage, moved, names, specs),
    )


def _options(
    stage: Stage, moved: Callable[[str], str], names: Collection[str], specs: KeySpecs
) -> dict[str, Any]:
    declared = specs.allowed(stage.objective, stage.update)
    return {
        key: _moved(value, declared[key].shape, moved, names) if key in declared else value
        for key, value in stage.options.items()
    }


def _moved(
    value: Any, shape: Shape | None, moved: Callable[[str], str], names: Collection[str]
) -> Any:
    """A value of that shape with every path in it moved."""
    if isinstance(shape, ListOf) and isinstance(value, list):
        return [_moved(part, shape.of, moved, names) for part in value]
    if isinstance(shape, Keys) and isinstance(value, dict):
        return {key: _moved(part, shape.keys.get(key), moved, names) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    if isinstance(shape, PathText) and value not in names:
        return moved(value)
    if isinstance(shape, FunctionText):
        file, colon, function = value.rpartition(":")
        return f"{moved(file)}{colon}{function}"
    return value
