"""Data files of the answers -> profiles: read as the task needs them, with what is to be said of
them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from advisor.ground.errors import Fault, InputError
from advisor.ground.types import Answer, Answers, DataProfile
from advisor.situation.data_fit import misfit, wanted_columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadData:
    """The data of a situation."""

    answers: Answers  # with one file for each team, where a folder holds them
    data: DataProfile | None = None
    tasks: Mapping[str, DataProfile] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()  # how the data do not suit the task
    unsuited: str = ""  # why no plan is made of data that do not suit the task


def read_data(answers: Answers, base: Path | None) -> ReadData:
    """The profiles of the data that the answers name.

    Args:
        base: Folder of the answers file; paths that do not exist in the working folder are tried
            there.

    Raises InputError with every fault of every file.
    """
    answers, taken = with_team_files(answers, base)
    stated_tasks: Mapping[str, str] = answers.value("tasks") or {}
    path = answers.value("data_path")
    if path and stated_tasks:
        raise InputError(
            "both one data file and one file per task are given",
            allowed="--data FILE, or --tasks NAME=FILE for each task",
        )
    if not path and not stated_tasks:
        return ReadData(answers=answers)
    profiles = _profiles(answers, stated_tasks or {"": str(path)}, base)
    misfits, unsuited = _misfits(answers.value("task"), profiles)
    return ReadData(
        answers=answers,
        data=None if stated_tasks else profiles[""],
        tasks=profiles if stated_tasks else {},
        warnings=(*taken, *_warnings(answers, profiles)),
        misfits=tuple(misfits),
        unsuited=unsuited,
    )


def with_team_files(answers: Answers, base: Path | None = None) -> tuple[Answers, tuple[str, ...]]:
    """The answers with one task for each file of the folder, where several teams are served and
    one folder was stated; and a sentence that says so.
    """
    path, n_tasks = answers.value("data_path"), answers.value("n_tasks")
    if answers.value("task") != "multi_department" or not path or answers.value("tasks"):
        return answers, ()
    if answers.known["data_path"].origin == "asked":  # the wizard has asked about it
        return answers, ()
    from advisor.data.read.team_files import team_files

    teams = team_files(found_beside(str(path), base))
    if not teams:
        return answers, ()
    if n_tasks is not None and n_tasks != len(teams):
        return answers, (
            f"data: {path} holds {len(teams)} files ({', '.join(teams)}) and {n_tasks} tasks were"
            " stated: all rows are read as the data of one task; --tasks NAME=FILE names the file"
            " of each",
        )
    known = {name: answer for name, answer in answers.known.items() if name != "data_path"}
    known["tasks"] = Answer(value=teams, origin=answers.known["data_path"].origin)
    return Answers(known=known), (
        f"data: the {len(teams)} files in {path} are taken as one task each: {', '.join(teams)}",
    )


def _profiles(
    answers: Answers, files: Mapping[str, str], base: Path | None
) -> dict[str, DataProfile]:
    from advisor.data import profile

    faults: list[Fault] = []
    profiles: dict[str, DataProfile] = {}
    mapping = answers.value("data_mapping")
    wanted = wanted_columns(answers.value("task"))
    for name, file in files.items():
        where = found_beside(file, base)
        try:
            try:
                profiles[name] = profile(where, mapping=mapping, wanted=wanted)
            except InputError:
                if not name or not mapping:
                    raise
                # Of several files not each has the columns that were named.
                profiles[name] = profile(where, wanted=wanted)
        except InputError as error:
            from advisor.data.recognition.unclear import ColumnsUnclear

            if isinstance(error, ColumnsUnclear):
                faults.append(error.with_command(_command(answers, name, file)))
            else:
                faults.extend(error.faults)
    if faults:
        raise InputError(faults=faults)
    return profiles


def _command(answers: Answers, name: str, file: str) -> str:
    """The command that reads the file, but for the columns; ready to be pasted."""
    task = answers.value("task")
    if task is None or name:
        return f"advise check {shlex.quote(file)}"
    return f"advise --task {task} --data {shlex.quote(file)}"


def _misfits(task: object, profiles: Mapping[str, DataProfile]) -> tuple[list[str], str]:
    """What is said of data that do not suit the task, and why no plan is made of them, if none is:
    a mapping that was stated is a word of the person.
    """
    said: list[str] = []
    unsuited = ""
    for name, found in profiles.items():
        wrong = misfit(task, found)
        if wrong is None:
            continue
        said.append(f"data{f' of {name}' if name else ''}: {wrong.text}")
        if wrong.blocks and found.confidence != "stated" and not unsuited:
            suits = " or ".join(f"--task {other}" for other in wrong.suits[:2])
            unsuited = (
                f"data that suit the task ({found.path}: {wrong.what}): another file,"
                f" {suits}, or --force to train on these"
            )
    return said, unsuited


def _warnings(answers: Answers, profiles: Mapping[str, DataProfile]) -> list[str]:
    """What was stated otherwise than the files say, and what is conspicuous in them."""
    warnings: list[str] = []
    for name, found in profiles.items():
        kind, rows = answers.value("data_kind"), answers.value("data_rows")
        if kind is not None and kind != found.kind:
            warnings.append(
                f"data: stated as {kind}, but {found.path} holds {found.kind}; the file counts"
            )
        if rows is not None and not name and rows != found.rows:
            warnings.append(
                f"data: stated as {rows:,} rows, but {found.path} holds {found.rows:,}; the file"
                " counts"
            )
        warnings.extend(
            f"data{f' of {name}' if name else ''}: {finding.text}"
            for finding in found.findings
            if finding.severity != "note"
        )
    return warnings


def found_beside(file: str, base: Path | None) -> str:
    """The path as given, or beside the answers file where it exists only there."""
    if base is not None and not Path(file).exists() and (base / file).exists():
        return str(base / file)
    return file
