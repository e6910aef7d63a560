"""The files of a run, read and written: run.json, and what trainers leave beside it (run.py lists
them). A file of a person is refused with its place; one that a crash left half-written can be asked
for quietly.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from msgspec.structs import replace

from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.files import read_at_most, shown_path, write_atomically
from advisor.ground.terminal import json_shown
from advisor.methods import objective
from advisor.record.run import (
    CARD,
    DONE,
    RECORD,
    SCHEMA_VERSION,
    RunRecord,
    StageRecord,
    StageResult,
    last_of_each_task,
)
from advisor.record.stage import SavedFile

Part = TypeVar("Part", bound=JsonObject)
MACHINES = ".machines"  # what each of several has to say
OWN = ("stages", "prepared", MACHINES)  # folders in it that a run works in
MOST_BYTES = 2**28  # of run.json; with the samples of 10,000 stages it has a tenth of that


def refuse_links_out(folder: Path) -> None:
    """Raise InputError with each name inside a run folder that leads out of it, or is a pipe or a
    device: who works with a run reads, writes, renames and deletes there. The run folder itself may
    be a link.
    """
    home, faults, folders = os.path.realpath(folder), [], [folder]
    while folders:
        with suppress(FileNotFoundError):  # of a run that is still at work
            for entry in os.scandir(place := folders.pop()):
                path, mode = Path(entry.path), entry.stat(follow_symlinks=False).st_mode
                what, hint = "is not a regular file", "remove it"
                if stat.S_ISDIR(mode):
                    folders += [path] if place != folder or entry.name in OWN else []
                    continue
                if stat.S_ISLNK(mode):
                    to = os.path.realpath(path)
                    what = f"is a link to {to}, outside of the run folder"
                    hint = "put in its place what it leads to, or remove it"
                    mode = stat.S_IFREG if Path(to).is_relative_to(home) else mode
                if not stat.S_ISREG(mode):
                    faults.append(Fault(where=str(path), what=what, hint=hint))
    refuse(faults)


def read_record(folder: Path, *, hint: str = "") -> RunRecord | None:
    """run.json of a folder, or None if there is none.

    Raises InputError if it is damaged, or of another version of advise, or if a name in the folder
    leads out of it: everything that reads a run comes by here first.

    Args:
        hint: The next step for a person whose file cannot be read.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    refuse_links_out(folder)
    try:
        data = _json_of(path, hint)
    except FileNotFoundError:  # a link inside the folder, to nothing
        return None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        found = f"its schema_version is {version}" if version else "it has no schema_version"
        raise InputError(
            f"{path} is no run.json of this version of advise: {found}",
            f"this version reads schema_version {SCHEMA_VERSION}",
            hint,
            where=str(path),
        )
    record = _value_of(RunRecord, data, path, hint)
    refuse(  # a report and model cards are written there
        Fault(
            where=str(path),
            what=f"stages[{number}].folder is {stage.folder[:60]!r}",
            allowed="a folder inside the run folder",
            hint=hint,
        )
        for number, stage in enumerate(record.stages)
        if Path(stage.folder).is_absolute() or ".." in Path(stage.folder).parts
    )
    return record


def read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if there is no such file.

    Raises InputError if it is half-written, or holds something else.
    """
    try:
        data = _json_of(path, "")
    except FileNotFoundError:
        return None
    return _value_of(kind, data, path, "")


def try_read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if the file is missing or broken."""
    try:
        return read_part(kind, path)
    except InputError:
        return None


def _json_of(path: Path, hint: str) -> Any:
    try:
        return plain_json(read_at_most(path, MOST_BYTES))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise InputError(
            f"{path} cannot be read: it is nested too deeply", where=str(path), hint=hint
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=str(path), hint=hint) from None


def plain_json(raw: bytes) -> Any:
    """The data of a JSON file that was written by `to_dict`.

    Raises ValueError for anything else: numbers that are not finite, too deep nesting, half a
    surrogate pair, bytes that are no UTF-8.
    """
    try:
        text = raw.decode("utf-8")
        data = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _value_of(kind: type[Part], data: Any, path: Path, hint: str) -> Part:
    try:
        return kind.from_dict(data, at=str(path))
    except InputError as error:
        raise InputError(faults=[replace(one, hint=hint) for one in error.faults]) from None


def write_record(path: Path, value: JsonObject) -> None:
    """Write the value as JSON, whole or not at all. Raises MachineNotReady."""
    text = json.dumps(value.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, json_shown(text) + "\n")


TRAINED: Final = "trained"  # the folder inside the stage's
TRAINED_RECORD, ANSWER = "record.json", "answer.safetensors"  # the files in it


class TrainedStage(StageResult, frozen=True, kw_only=True):
    """trained/record.json: a stage that is trained and saved, and not judged yet. What judging
    finds out is still missing: the evaluation, the checks of the saved files, the verdict.
    """

    processes: Annotated[int, "how many trained it"] = 1
    depends_on: Annotated[str, "digest of everything that the training depends on"] = ""
    answer: Annotated[SavedFile, "answer.safetensors: the trained model's answer to one row"]
    answered_in: Annotated[
        str | None, "dtype that the answer was computed in, if not that of the weights", OMIT_NULL
    ] = None


def trained_record(folder: Path) -> Path:
    """The record's path in the folder of a stage. It is written last: if it is there, all is."""
    return folder / TRAINED / TRAINED_RECORD


def record_of(run: Path) -> RunRecord:
    """run.json of a run folder. Raises InputError if there is none, or it is damaged."""
    record = read_record(run, hint="run the plan again with another --output")
    if record is None:
        raise InputError(
            f"{run} is not a run folder: it has no {RECORD}",
            where=str(run),
            hint="`advise run` makes one, and prints where it is",
        )
    return record


def writing_stages(run: Path, record: RunRecord, *, only: str | None = None) -> list[StageRecord]:
    """The last finished stage of each task, or of the run if it has no tasks.

    Raises InputError if nothing that writes is finished, or `only` names none.
    """
    done = [stage for stage in record.stages if stage.status == DONE]
    # A model that scores answers is a step on the way; alone it is the result.
    on_the_way = [stage for stage in done if not objective(stage.objective).scores]
    is_whole = len(done) == len(record.stages)
    last = last_of_each_task(on_the_way or (done if is_whole else ()))
    if not last:
        raise InputError(
            "no stage that writes is finished",
            where=str(run),
            hint=f"to resume the run: advise run {shlex.quote(str(run))}",
        )
    for stage in last:
        if not record.writes(stage):
            does = "sorts texts into classes"
            if record.is_seq2seq(stage):
                does = "rewrites texts and holds no conversation"
            elif not record.is_classifier(stage):
                does = "scores answers"
            card = shown_path(run / stage.folder / CARD)
            chat = f"advise chat {shlex.quote(shown_path(run))}, or " if does[0] == "s" else ""
            raise InputError(
                f"its result, {stage.folder}, {does}: it does not write answers",
                "results that write answers can be exported",
                f"use it as it is: {chat}from Python as {card} says",
                where=str(run),
            )
    chosen = [stage for stage in last if only in (None, label(stage))]
    if not chosen:
        raise InputError(
            "the run has no such result",
            where=f"--only {only}",
            allowed=", ".join(map(label, last)),
        )
    return chosen


def label(stage: StageRecord) -> str:
    """What a result is called: its task, or its stage."""
    return stage.task or stage.name


def find_run(run: str) -> Path:
    """The run folder with this path, with a record that can be read. Raises InputError."""
    folder = Path(run).expanduser().absolute()
    record_of(folder)
    return folder


def newest_run(here: Path) -> Path:
    """The run under ./runs that ended last with a finished stage.

    Raises InputError if there is none.
    """
    found = []
    for record_path in (here / "runs").glob(f"*/{RECORD}"):
        try:
            record = read_record(record_path.parent)
        except InputError:  # of another version, or broken: not to be used unasked
            continue
        if record is not None and any(stage.status == DONE for stage in record.stages):
            found.append((record.finished_at or "", record_path.parent))
    if not found:
        raise InputError(
            "there is no finished run under ./runs",
            hint="name a run folder; `advise run` prints where it is",
        )
    return max(found)[1]


def device_of(folder: Path) -> str:
    """The kind of device a run was trained on: cuda, rocm, mps or cpu."""
    record = read_record(folder)
    kind = record.hardware.kind if record is not None and record.hardware is not None else None
    return kind if kind in ("cuda", "rocm", "mps") else "cpu"
