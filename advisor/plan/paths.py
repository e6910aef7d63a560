"""Every path a plan holds, found in one place: model, data, what stages start from, and keys that
methods declare as paths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.ground.extras import extras
from advisor.ground.shape import Keys, ListOf, Shape
from advisor.methods.keys import FunctionText, PathText
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Launch, Plan, Stage


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
