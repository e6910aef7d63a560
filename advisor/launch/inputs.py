"""What a run reads: model, data and the other files of its plan. A run is resumed only with the
files that it began with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from advisor.ground.errors import Fault, InputError
from advisor.launch.hub import cached_snapshot
from advisor.launch.prepare import PlanRun
from advisor.plan.entries import Entry, entries, path_from, stage_paths
from advisor.plan.model import Plan
from advisor.record.content import Contents, model_files, read_contents

IN_WORDS = {"model": "the model", "data": "the data", "file": "a file that the plan names"}
Inputs = Mapping[str, Contents]  # 'model', 'data PATH' or 'file PATH' -> the files there


def read_inputs(run: PlanRun, known: Inputs) -> dict[str, Contents]:
    """What the paths of a plan hold now, by their names in the plan of the run folder; nothing of
    what is not on this machine, such as a hub id that is not in the cache.

    Raises InputError or MachineNotReady if a file cannot be read.

    Args:
        known: What they held earlier: a file of the same size and times is not read again.
    """
    found: dict[str, Contents] = {}
    for key, text in _paths(run.copy, entries(run.copy)).items():
        paths = _files(run.copy, key, text, path_from(run.folder.resolve(), text))
        if paths:
            found[key] = read_contents(paths, known.get(key))
    return found


def inputs_of(run: PlanRun, chosen: Sequence[Entry], inputs: Inputs) -> dict[str, Contents]:
    """Those of the inputs that some entries read."""
    if not chosen:
        return {}
    names = {entry.name for entry in chosen}
    copied = [entry for entry in entries(run.copy) if entry.name in names]
    wanted = _paths(run.copy, copied)
    return {key: held for key, held in inputs.items() if key in wanted}


def refuse_changed(run: PlanRun, before: Inputs, now: Inputs) -> None:
    """Raise InputError, with every file that is not what the run in the folder began with.

    Args:
        before: What run.json says.
        now: What the stages that are left would read. A model may have come from the hub since the
            run began, and the data of a new task with the task.
    """
    said = []
    for key, held in now.items():
        what = IN_WORDS[key.split(" ")[0]]
        if key in before:
            changes = "; ".join(_changes(run, key, before[key], held))
            said += [f"{what} has changed since this run began: {changes}"] if changes else []
        elif key != "model" and not run.plan.tasks:
            said.append(f"run.json does not say what {what} held, {_shown(run, key)}")
    faults = [
        Fault(
            where=str(run.folder),
            what=one,
            allowed="a run is resumed with the files that it began with",
            hint="put the old files back, or begin a new run with --output DIR",
        )
        for one in said
    ]
    if faults:
        raise InputError(faults=faults)


def _paths(plan: Plan, chosen: Sequence[Entry]) -> dict[str, str]:
    """Name of an input -> path as written, of those that some entries read."""
    found = {"model": plan.model}
    for entry in chosen:
        found[f"data {entry.data.path}"] = entry.data.path
        found |= {f"file {text}": text for text in stage_paths(plan, entry.stage)}
    return found


def _files(plan: Plan, key: str, text: str, path: Path) -> dict[str, Path]:
    """The files that count there, by their names."""
    from advisor.data.read.source import find_data

    if key == "model" and not path.is_dir():
        snapshot = cached_snapshot(text, plan.revision)
        return model_files(snapshot) if snapshot is not None else {}
    if key.startswith("data ") and path.is_dir():
        try:
            return find_data(path).named_files
        except InputError:  # the checks of the data say what is wrong
            return {}
    if path.is_dir():
        return model_files(path)
    return {path.name: path} if path.is_file() else {}


def _changes(run: PlanRun, key: str, old: Contents, new: Contents) -> list[str]:
    """'model/model.safetensors has other content (the same size)': each file that differs."""
    said = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if before is None:
            change = "is new"
        elif now is None:
            change = "is gone"
        elif before.sha256 == now.sha256:
            continue
        elif before.bytes == now.bytes:
            change = "has other content (the same size)"
        else:
            change = f"has other content ({before.bytes:,} bytes then, {now.bytes:,} now)"
        said.append(f"{_shown(run, key, name)} {change}")
    return said


def _shown(run: PlanRun, key: str, name: str = "") -> str:
    """A file of an input, as it can be typed from here."""
    text = run.copy.model if key == "model" else key.partition(" ")[2]
    path = path_from(run.folder.resolve(), text)
    if not path.exists():  # of the hub's cache
        return f"{text}/{name}"
    path = path / name if path.is_dir() else path
    near = path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if near else str(path)
