"""Data files of the answers -> profiles: read as the task needs them, with what is to be said of
them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.terminal import one_line
from advisor.ground.types import Answer, Answers, DataProfile


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


# Tasks whose model writes to people: a category is no answer there.
REPLIES = ("customer_service", "qa", "domain_expertise", "chat_assistant", "generation", "code")
FEW_ROWS = 8  # on which nothing is judged
LEAST_SHARE = 0.05  # of the answers have to be what the task is about
LABEL_CHARS = 60  # a category is shorter on average
LABEL_SHARE = 0.5  # of the answers at most are different where they are categories
SHOWN_CHARS = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """Why data do not suit a task."""

    what: str  # "these rows hold a text and a category, and no reply"
    needs: str  # "answers to learn from"
    otherwise: str = ""  # what comes of it: "the model would answer with a category"
    row: str  # one row, shortened
    suits: tuple[str, ...] = ()  # tasks that these data do suit
    blocks: bool = True  # no plan is made without a word of the person

    @property
    def text(self) -> str:
        """The sentence of a warning."""
        comes_of_it = f": {self.otherwise}" if self.otherwise else ""
        return f"{self.what} (for example {self.row}); the task needs {self.needs}{comes_of_it}"


def wanted_columns(task: object) -> str | None:
    """What a task looks for among the columns of a table: "reply" or "label"; None for no task."""
    if task is None:
        return None
    return "label" if task == "classification" else "reply"


def misfit(task: object, found: DataProfile) -> Misfit | None:
    """Why the data do not suit the task, or None."""
    judge = JUDGES.get(str(task)) or (_replies if task in REPLIES else None)
    return None if judge is None else judge(found)


def suited_task(found: DataProfile) -> str:
    """The task that the rows show by themselves; `other`, with which the data decide alone, where
    they show none.
    """
    if found.format == "classification":
        return "classification"
    if found.kind == "prompts_with_verifier":
        return "reasoning"
    looks = _looks(found)
    count = looks["looked_at"]
    signs = {"calls": "tool_use", "code": "code", "layout": "structured_output"}
    shown = (task for sign, task in signs.items() if looks.get(sign, 0) > count / 2)
    return next(shown, "other") if count >= FEW_ROWS else "other"


def _replies(found: DataProfile) -> Misfit | None:
    if found.format != "classification":
        return None
    return Misfit(
        what="these rows hold a text and a category, and no reply",
        needs="replies to learn from",
        otherwise="the model would answer with a category",
        row=row_words(found),
        suits=("classification",),
    )


def _classification(found: DataProfile) -> Misfit | None:
    if found.format == "classification" or found.kind in (
        "prompts_with_verifier",
        "unpaired_feedback",
    ):
        return None
    needs, looks = "a text and its category in each row", _looks(found)
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents without a category",
            needs=needs,
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if found.kind == "preference":
        return Misfit(
            what="these are pairs of a better and a worse answer, without a category",
            needs=needs,
            row=row_words(found),
            suits=("chat_assistant", "customer_service"),
        )
    if looks["looked_at"] < FEW_ROWS or (
        looks["characters"] <= LABEL_CHARS
        and looks["different"] <= max(2, LABEL_SHARE * looks["looked_at"])
    ):
        return None
    return Misfit(
        what="the answers in these rows are no categories: nearly every one is different",
        needs=needs,
        row=row_words(found),
        suits=("customer_service", "qa", "generation"),
    )


def _tool_use(found: DataProfile) -> Misfit | None:
    needs = "rows in which the model calls a function"
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents: no function is called in them",
            needs=needs,
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if found.kind == "prompts_with_verifier" or not _lacks("calls", found):
        return None
    return Misfit(
        what="no row calls a function",
        needs=needs,
        row=row_words(found),
        suits=_sorts_or(found, "customer_service", "qa", "structured_output"),
    )


def _code(found: DataProfile) -> Misfit | None:
    if found.format == "classification":
        return _replies(found)
    if found.kind == "prompts_with_verifier" or not _lacks("code", found):
        return None
    return Misfit(
        what="hardly a row holds code",
        needs="programs, queries or scripts to learn from",
        row=row_words(found),
        suits=("qa", "generation", "domain_expertise"),
        blocks=False,  # there are more languages than signs to know them by
    )


def _structured_output(found: DataProfile) -> Misfit | None:
    if found.format == "classification" or found.kind == "prompts_with_verifier":
        return None
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents, without a filled-in form",
            needs="a text and what is to be filled in from it, in each row",
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if not _lacks("layout", found):
        return None
    return Misfit(
        what="hardly an answer has a layout that a program could read",
        needs="answers in JSON or another fixed layout",
        row=row_words(found),
        suits=("generation", "qa"),
        blocks=False,
    )


def _sorts_or(found: DataProfile, *tasks: str) -> tuple[str, ...]:
    """The tasks, or for texts with a category the one that they are for."""
    return ("classification",) if found.format == "classification" else tasks


JUDGES: dict[str, Callable[[DataProfile], Misfit | None]] = {
    "classification": _classification,
    "tool_use": _tool_use,
    "code": _code,
    "structured_output": _structured_output,
}


def _looks(found: DataProfile) -> dict[str, Any]:
    """Counts of advisor/data/checks/answers.py."""
    looks: dict[str, Any] = found.measures.get("answers_seen") or {"looked_at": 0}
    return looks


def _lacks(kind: str, found: DataProfile) -> bool:
    """Whether enough answers were looked at, and hardly one is of a kind."""
    looks = _looks(found)
    count = int(looks["looked_at"])
    return count >= FEW_ROWS and int(looks[kind]) < LEAST_SHARE * count


def row_words(found: DataProfile) -> str:
    """One row of the data as request -> answer, shortened."""
    return (
        " -> ".join(f'"{one_line(part, SHOWN_CHARS)}"' for part in example_parts(found))
        or "an empty row"
    )


def example_parts(found: DataProfile) -> tuple[str, ...]:
    """What stands in the sample row: request and answer, text and category, a text."""
    sample = found.sample or {}
    if sample.get("label") is not None:
        return str(sample.get("text", "")), str(sample["label"])
    turns = sample.get("messages") or []
    asked = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    if sample.get("chosen"):
        return asked, sample["chosen"][-1]["content"], sample["rejected"][-1]["content"]
    if turns:
        last = turns[-1]
        said = last["content"] or str(last.get("tool_calls") or last.get("function_call") or "")
        answer = said if last["role"] == "assistant" else str(sample.get("answer", ""))
        return (asked, answer) if answer else (asked,)
    return (str(sample["text"]),) if "text" in sample else ()
