"""What an earlier call left in the folder of a run: whether it is this very run, whether what it
read is what it began with, and whether the results of its finished stages are still what the
trainers saved.

A finished run says so only after this check, and no stage starts from a damaged result.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.files import ELSEWHERE, PLAN_FILE, TEMPORARY, cannot_write, text_of
from advisor.launch.folder import LOCK, MACHINES, METRICS, is_done
from advisor.launch.hub import cached_snapshot
from advisor.launch.prepare import OTHER_FOLDER, PlanRun
from advisor.plan.entries import Entry, entries, path_from, stage_paths
from advisor.plan.model import Plan
from advisor.record.content import Contents, file_digest, model_files, read_contents
from advisor.record.files import read_record
from advisor.record.run import ADJUSTED, DONE, DRY_RUN, FAILED, RECORD, RunRecord, StageRecord
from advisor.record.stage import SavedFile

# What `advise` itself may leave before a run begins.
BEFORE_A_RUN = {LOCK, MACHINES, DRY_RUN, PLAN_FILE}
# Up to this size all results together are read at each call: under 2 s on one core. Of larger ones,
# the files that were written or moved since their stage finished are read.
READ_ALWAYS_BYTES = 2 * 2**30
# Files that people adapt to how they use a result: a change is told, and refused only if the file
# cannot be read any more.
ADAPTED = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def find_record(run: PlanRun) -> RunRecord | None:
    """The record of this very run in its folder, or None if a run may begin there.

    Raises InputError if the folder holds anything else.
    """
    folder = run.folder
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file; a run needs a folder",
            where=str(folder),
            hint="choose another one with --output DIR",
        )
    try:
        record = read_record(folder, hint=OTHER_FOLDER)
        names = sorted(
            entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY)
        )
    except PermissionError as error:
        raise cannot_write(folder, error, way_out=ELSEWHERE) from None
    if record is None:
        _refuse_foreign_files(folder, names)
    elif not set(run.digests.values()).isdisjoint(record.digests.values()):  # but for tasks
        _refuse_other_parts(run, record)
    elif _has_trained_nothing(folder, record):
        return None  # a plan that was refused before its first step, and is corrected now
    else:
        _refuse_another_run(folder, record)
    return record


def _has_trained_nothing(folder: Path, record: RunRecord) -> bool:
    """Whether a run ended before its first step: nothing is lost if another one begins there."""
    return (
        record.status == FAILED
        and all(stage.status != DONE for stage in record.stages)
        and not (folder / METRICS).exists()
        and not any(folder.glob("stages/*/checkpoints/*"))
        and not any(folder.glob("stages/*/*.safetensors"))
        and not any(folder.glob(f"stages/*/{ADJUSTED}"))
    )


def _refuse_foreign_files(folder: Path, names: list[str]) -> None:
    foreign = [name for name in names if name not in BEFORE_A_RUN]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise InputError(
            f"{folder} holds other files ({', '.join(foreign[:3])}{more})",
            "an empty or new folder",
            "choose another one with --output DIR",
            where=str(folder),
        )


def _refuse_another_run(folder: Path, record: RunRecord) -> None:
    named = f" of plan '{record.name}'" if record.name else ""
    raise InputError(
        f"{folder} holds another run{named} ({record.status}): its model, data or stages are not"
        " those of this plan",
        where=str(folder),
        hint="choose another folder with --output DIR; to resume that run: advise run"
        f" {shlex.quote(str(folder / PLAN_FILE))}",
    )


def _refuse_other_parts(run: PlanRun, record: RunRecord) -> None:
    """Raise InputError if tasks, the limit or the method of a stage are others now."""
    folder = run.folder
    changed = [name for name, digest in record.tasks.items() if run.tasks.get(name) != digest]
    if changed:
        verb = "is" if len(changed) == 1 else "are"
        raise InputError(
            f"{folder} holds other tasks: {', '.join(changed)} {verb} missing or changed in this"
            " plan",
            where=str(folder),
            allowed="the same tasks and new ones",
            hint="choose another folder with --output DIR",
        )
    if record.max_steps != run.max_steps:
        steps = record.max_steps
        held = f"a trial run of at most {steps} steps per stage" if steps else "the whole run"
        again = f"add --max-steps {steps}" if steps else "leave --max-steps out"
        raise InputError(
            f"{folder} holds {held}",
            where=str(folder),
            hint=f"choose another folder with --output DIR, or {again} to resume it",
        )
    faults = [
        Fault(
            where=str(folder / RECORD),
            what=f"stage {entry.name}: {key} is {there!r}, and {wanted} in the plan",
            hint=OTHER_FOLDER,
        )
        for entry in run.entries
        if (stage := record.stage(entry.name)) is not None
        for key, there, wanted in (
            ("objective", stage.objective, entry.stage.objective),
            ("update", stage.update, entry.stage.update),
        )
        if there != wanted
    ]
    if faults:
        raise InputError(faults=faults)


# --------------------------------------------------------------------------- its results


def check_results(run: PlanRun, record: RunRecord, selected: Sequence[Entry]) -> list[str]:
    """What was changed in results and does no harm, in words.

    Raises InputError, with each file and the way to train its stage again, if a result that the
    call rests on is damaged: one that it was asked for, or that another stage starts from or is
    scored by.
    """
    names = dict.fromkeys(
        name
        for entry in selected
        for name in ((entry.name,) if is_done(record, entry.name, run.folder) else entry.needs)
        if is_done(record, name, run.folder)
    )
    stages = [stage for stage in record.stages if stage.name in names]
    total = sum(saved.bytes for stage in stages for saved in (stage.files or {}).values())
    faults, warnings = [], []
    for stage in stages:
        place = run.folder / "stages" / stage.name
        for name, saved in (stage.files or {}).items():
            what = _difference(place / name, saved, total <= READ_ALWAYS_BYTES, _finished_ns(stage))
            if what is None:
                continue
            if name in ADAPTED and _is_readable(place / name):
                shown = f"{run.shown_folder}/stages/{stage.name}/{name}"
                warnings.append(f"{shown} was changed after the training")
            else:
                faults.append(_fault(stage, name, what, place, run.shown_folder))
    if faults:
        raise InputError(faults=faults)
    return warnings


def _fault(stage: StageRecord, name: str, what: str, place: Path, shown_folder: str) -> Fault:
    run = shlex.quote(shown_folder)
    result = f"{run}/stages/{stage.name}"
    has_checkpoints = any((place / "checkpoints").glob("checkpoint-*"))
    start = "from its last checkpoint" if has_checkpoints else "from the beginning"
    return Fault(
        what=f"{shown_folder}/stages/{stage.name}/{name} {what}: the result of stage {stage.name}"
        " is damaged",
        allowed="put a copy of the file back if you have one",
        hint=f"or train the stage again {start}: rm {result}/*.safetensors && advise run {run}",
    )


def _difference(path: Path, saved: SavedFile, read_all: bool, finished_ns: int) -> str | None:
    """What is wrong with a file of a result; None if it is as it was saved."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found.st_size != saved.bytes:
        return f"has {found.st_size:,} bytes and had {saved.bytes:,} when it was saved"
    if not read_all and max(found.st_mtime_ns, found.st_ctime_ns) <= finished_ns:
        return None
    try:
        digest = file_digest(path)
    except AdviseError as error:
        return f"cannot be read ({error.faults[0].headline})"
    return None if digest == saved.sha256 else "has other content than when it was saved"


def _finished_ns(stage: StageRecord) -> int:
    """The end of the second in which the stage finished; 0 if that is not known."""
    with suppress(ValueError, OverflowError):
        return (int(datetime.fromisoformat(str(stage.finished_at)).timestamp()) + 1) * 10**9
    return 0


def _is_readable(path: Path) -> bool:
    """Whether a JSON file holds an object, or a text file is text."""
    try:
        text = text_of(path)
        return path.suffix != ".json" or isinstance(json.loads(text), dict)
    except (OSError, ValueError, RecursionError):
        return False


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
