"""What an earlier call left in the folder of a run: whether it is this very run, whether what it
read is what it began with, and whether the results of its finished stages are still what the
trainers saved.

A finished run says so only after this check, and no stage starts from a damaged result.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from advisor.ground.counting import counted
from advisor.ground.errors import AdviseError, Fault, InputError, refuse
from advisor.ground.files import ELSEWHERE, PLAN_FILE, TEMPORARY, cannot_write, shown_path
from advisor.launch.folder import LOCK, is_done, is_locked, last_logged
from advisor.launch.prepare import OTHER_FOLDER, PlanRun
from advisor.model_files.hub_cache import cached_snapshot
from advisor.plan.comments import leaves
from advisor.plan.entries import Entry, entries, path_from, stage_paths
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.plan.write import WHEN_SAVED, plan_data, relocate
from advisor.record.content import Contents, file_digest, model_files, read_contents
from advisor.record.files import MACHINES, read_record, trained_record
from advisor.record.run import (
    ADJUSTED,
    DONE,
    DRY_RUN,
    FAILED,
    METRICS,
    PENDING,
    RECORD,
    RunRecord,
    StageRecord,
)
from advisor.record.stage import SavedFile

# What `advise` itself may leave before a run begins.
BEFORE_A_RUN = {LOCK, MACHINES, DRY_RUN, PLAN_FILE}
# Keys of a plan whose values name its run.
NAMES_A_RUN = ("model", "revision", "trust_remote_code", "template", "data", "tasks", "stages")
# Files that people adapt to how they use a result: a change is told and not refused.
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
        raise _not_here(run, "is a file; a run needs a folder")
    try:
        record = read_record(folder, hint=OTHER_FOLDER)
        names = {path.name for path in folder.iterdir()} - BEFORE_A_RUN
    except PermissionError as error:
        raise cannot_write(folder, error, way_out=ELSEWHERE) from None
    foreign = sorted(name for name in names if not name.startswith(TEMPORARY))
    if record is None:
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise _not_here(run, f"holds other files ({', '.join(foreign[:3])}{more})")
    elif set(run.digests.values()).isdisjoint(record.digests.values()):
        if _has_trained_nothing(folder, record):
            return None  # a plan that was refused before its first step, and is corrected now
        named = f" of plan '{record.name}'" if record.name else ""
        keys = _differing(run, folder) or ["its model, data or stages"]
        are = "is" if keys[1:] == [] and "," not in keys[0] else "are"
        raise _not_here(
            run,
            f"holds another run{named} ({record.status}): {', '.join(keys)} {are} not as in this"
            " plan",
            f"to resume that run: advise run {shlex.quote(str(folder / PLAN_FILE))}",
        )
    else:
        _refuse_other_parts(run, record)
    return record


def begins_anew(run: PlanRun) -> str:
    """What a new run leaves behind: the last one of the same model and data that stopped on its
    way, with what differs; empty: there is none.
    """
    found = []
    homes = {run.path.parent, *(path.parent for path in run.folder.parent.glob(f"*/{RECORD}"))}
    for home in homes - {run.folder}:
        record = None
        with suppress(InputError):
            record = read_record(home)
        if record is None or record.status == DONE or record.max_steps or is_locked(home):
            continue
        stage = next((one for one in record.stages if one.status != DONE), None)
        if stage and (at := last_logged(home, stage.name, stage.task)):
            of = f" of {at['steps']:,}" if at.get("steps") else ""
            found.append((record.finished_at or "", home, f"step {at['step']:,}{of}"))
    for _, home, step in sorted(found, reverse=True):
        keys = _differing(run, home)
        if keys and {"model", "data"}.isdisjoint(key.split(".")[0] for key in keys):
            shown, differ = shown_path(home), f"differ{'' if keys[1:] else 's'}"
            return (
                f"{', '.join(keys)} {differ}, so a new run begins; {shown} stopped at {step}."
                f" To go on with it:\n  advise run {shlex.quote(shown)}"
            )
    return ""


def without_checkpoint(run: PlanRun, record: RunRecord) -> list[str]:
    """Stages of a run that trained, and start at its first step again, in words."""
    return [
        f"stage {one.name} starts at step 0: it has no checkpoint"
        for one in record.stages
        if one.status not in (DONE, PENDING)
        and last_logged(run.folder, one.name, one.task)
        and not any((run.folder / one.folder / "checkpoints").glob("*/complete.json"))
        and not trained_record(run.folder / one.folder).is_file()
    ]


def _differing(run: PlanRun, home: Path) -> list[str]:
    """The keys of a plan that differ in the plan of a run folder, of those that name a run."""
    try:
        other = read_plan(home / PLAN_FILE)
    except InputError:
        return []
    there = relocate(other, home.resolve(), run.folder)
    old, new = (leaves(plan_data(plan)) for plan in (there, run.copy))
    changed = (place for place in old | new if old.get(place) != new.get(place))
    named = [one for one in changed if one[0] in NAMES_A_RUN and one[-1] not in WHEN_SAVED]
    return sorted({".".join(map(str, one[2 if one[0] == "stages" else 0 :])) for one in named})


def _not_here(run: PlanRun, what: str, instead: str = "") -> InputError:
    hint = "choose another folder with --output DIR"
    return InputError(
        f"{run.folder} {what}",
        where=str(run.folder),
        hint=f"{hint}; {instead}" if instead else hint,
    )


def _has_trained_nothing(folder: Path, record: RunRecord) -> bool:
    """Whether a run ended before its first step: nothing is lost if another one begins there."""
    kept = ("checkpoints/*", "*.safetensors", ADJUSTED)
    return (
        record.status == FAILED
        and all(stage.status != DONE for stage in record.stages)
        and not (folder / METRICS).exists()
        and not any(any(folder.glob(f"stages/*/{pattern}")) for pattern in kept)
    )


def _refuse_other_parts(run: PlanRun, record: RunRecord) -> None:
    changed = [name for name, digest in record.tasks.items() if run.tasks.get(name) != digest]
    if changed:
        what = f"holds other tasks: {', '.join(changed)} missing or changed in this plan"
        raise _not_here(run, what)
    if record.max_steps != run.max_steps:
        steps = record.max_steps
        held = (
            f"a trial run of at most {counted(steps, 'step')} a stage" if steps else "the whole run"
        )
        again = f"add --max-steps {steps}" if steps else "leave --max-steps out"
        raise _not_here(run, f"holds {held}", f"{again} to resume it")
    refuse(
        Fault(
            where=str(run.folder / RECORD),
            what=f"stage {entry.name}: {key} is {there!r}, and {wanted} in the plan",
            hint=OTHER_FOLDER,
        )
        for entry in run.entries
        if (stage := record.stage(entry.name)) is not None
        for key in ("objective", "update")
        if (there := getattr(stage, key)) != (wanted := getattr(entry.stage, key))
    )


# --------------------------------------------------------------------------- its results


def check_results(run: PlanRun, record: RunRecord, selected: Sequence[Entry]) -> list[str]:
    """What was changed in results and does no harm, in words.

    Raises InputError, with each file and the way to train its stage again, if a result that the
    call rests on is damaged: one that it was asked for, or that another stage starts from or is
    scored by.
    """
    names = {
        name
        for entry in selected
        for name in ((entry.name,) if is_done(record, entry.name, run.folder) else entry.needs)
        if is_done(record, name, run.folder)
    }
    faults, warnings = [], []
    for stage in record.stages:
        folder = f"stages/{stage.name}"
        for name, saved in (stage.files or {}).items() if stage.name in names else ():
            path = run.folder / folder / name
            what = _difference(path, saved, _finished_ns(stage))
            if what is None:
                continue
            if name in ADAPTED and path.is_file():
                warnings.append(f"{run.shown_folder}/{folder}/{name} was changed after training")
                continue
            shown = shlex.quote(run.shown_folder)
            again = f"rm {shown}/{folder}/*.safetensors && advise run {shown}"
            has_checkpoints = any((path.parent / "checkpoints").glob("*/complete.json"))
            start = "its last checkpoint" if has_checkpoints else "the beginning"
            faults.append(
                Fault(
                    what=f"{run.shown_folder}/{folder}/{name} {what}: the result of stage"
                    f" {stage.name} is damaged",
                    allowed="put a copy of the file back if you have one",
                    hint=f"or train the stage again from {start}: {again}",
                )
            )
    refuse(faults)
    return warnings


def _difference(path: Path, saved: SavedFile, finished_ns: int) -> str | None:
    """What is wrong with a file of a result; None if it is as it was saved.

    Gigabytes are not hashed at each call: a file that nobody has touched since is not read.
    """
    try:
        found = path.stat()
        if found.st_size != saved.bytes:
            return f"has {found.st_size:,} bytes and had {saved.bytes:,} when it was saved"
        if max(found.st_mtime_ns, found.st_ctime_ns) <= finished_ns:
            return None
        is_same = file_digest(path) == saved.sha256
    except FileNotFoundError:
        return "is gone"
    except (OSError, AdviseError) as error:
        return f"cannot be read ({error})"
    return None if is_same else "has other content than when it was saved"


def _finished_ns(stage: StageRecord) -> int:
    """The beginning of the second in which the stage finished; 0 if that is not known."""
    with suppress(ValueError, OverflowError):
        return int(datetime.fromisoformat(str(stage.finished_at)).timestamp()) * 10**9
    return 0


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
        paths = files_of(key, text, run.folder, run.copy.revision)
        if paths:
            found[key] = read_contents(paths, known.get(key))
    return found


def inputs_of(run: PlanRun, chosen: Sequence[Entry], inputs: Inputs) -> dict[str, Contents]:
    """Those of the inputs that some entries read."""
    if not chosen:
        return {}
    names = {entry.name for entry in chosen}
    wanted = _paths(run.copy, [entry for entry in entries(run.copy) if entry.name in names])
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
        place = place_of(run.folder, key, run.copy.model)
        if key in before:
            changes = "; ".join(changes_of(place, before[key], held))
            said += [f"{what} has changed since this run began: {changes}"] if changes else []
        elif key != "model" and not run.plan.tasks:
            said.append(f"run.json does not say what {what} held, {_shown(place)}")
    allowed = "a run is resumed with the files that it began with"
    hint = "put the old files back, or begin a new run with --output DIR"
    where = str(run.folder)
    refuse(Fault(where=where, what=one, allowed=allowed, hint=hint) for one in said)


def _paths(plan: Plan, chosen: Sequence[Entry]) -> dict[str, str]:
    """Name of an input -> path as written, of those that some entries read."""
    found = {"model": plan.model}
    for entry in chosen:
        found[f"data {entry.data.path}"] = entry.data.path
        found |= {f"file {text}": text for text in stage_paths(plan, entry.stage)}
    return found


def files_of(key: str, text: str, folder: Path, revision: str | None) -> dict[str, Path]:
    """The files of an input on this machine, by their names there.

    Args:
        key: Its name: 'model', 'data PATH' or 'file PATH'.
        text: The path as the plan in the run folder names it; of a model also a hub id.
    """
    from advisor.data.read.source import find_data

    path = path_from(folder.resolve(), text)
    if key == "model" and not path.is_dir():
        snapshot = cached_snapshot(text, revision)
        return model_files(snapshot) if snapshot is not None else {}
    if key.startswith("data ") and path.is_dir():
        try:
            return find_data(path).named_files
        except InputError:  # the checks of the data say what is wrong
            return {}
    if path.is_dir():
        return model_files(path)
    return {path.name: path} if path.is_file() else {}


def changes_of(place: Path | str, old: Contents, new: Contents) -> list[str]:
    """'model/model.safetensors has other content (the same size)': each file that differs."""
    said = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        change = "is new" if before is None else "is gone"
        if before is not None and now is not None:
            if before.sha256 == now.sha256:
                continue
            sizes = f"{before.bytes:,} bytes then, {now.bytes:,} now"
            is_equal = before.bytes == now.bytes
            change = f"has other content ({'the same size' if is_equal else sizes})"
        said.append(f"{_shown(place, name)} {change}")
    return said


def place_of(folder: Path, key: str, model: str) -> Path | str:
    """Where an input lies; the name of a model of the hub."""
    text = model if key == "model" else key.partition(" ")[2]
    path = path_from(folder.resolve(), text)
    return text if key == "model" and not path.exists() else path


def _shown(place: Path | str, name: str = "") -> str:
    if isinstance(place, str):  # of the hub's cache
        return f"{place}/{name}"
    return shown_path(place / name if place.is_dir() else place)
