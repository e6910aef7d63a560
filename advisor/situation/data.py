"""The data files of the answers, read as the task needs them, and whether they suit it.

A model trained on a ticket's category answers a customer with "Billing". What a task needs of its
data is written down here once, for the wizard's question and for the warning if nobody is asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct, field

import advisor.data
from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.terminal import one_line
from advisor.ground.types import AnswerSet, DataProfile

# Tasks whose model writes to people: a category is no answer there.
REPLIES = ("customer_service", "qa", "domain_expertise", "chat_assistant", "generation", "code")
FEW_ROWS = 8  # on which nothing is judged
LEAST_SHARE = 0.05  # of the answers have to be what the task is about
LABEL_CHARS = 60  # a category is shorter on average
LABEL_SHARE = 0.5  # of the answers at most are different if they are categories
SHOWN_CHARS = 90
Reader = Callable[..., DataProfile]  # as advisor.data.profile


class ReadData(Struct, frozen=True, kw_only=True):
    """The data of a situation."""

    data: DataProfile | None = None
    tasks: Mapping[str, DataProfile] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()  # how the data do not suit the task
    unsuited: str = ""  # why no plan is made of data that do not suit the task


def read_data(answers: AnswerSet, base: Path | None, read: Reader | None = None) -> ReadData:
    """The profiles of the data that the answers name.

    Args:
        read: Measures a data file, if not as advisor.data does.
        base: Folder of the answers file; paths that do not exist in the working folder are tried
            there.

    Raises InputError with every fault of every file.
    """
    stated_tasks: Mapping[str, str] = answers.value("tasks") or {}
    path = answers.value("data_path")
    if path and stated_tasks:
        raise InputError(
            "both one data file and one file per task are given",
            allowed="--data with one file, or --tasks with a name and a file for each task",
        )
    files = stated_tasks or ({"": str(path)} if path else {})
    profiles = _profiles(answers, files, base, read)
    misfits, unsuited = _misfits(answers.value("task"), profiles)
    return ReadData(
        data=profiles.get(""),
        tasks=profiles if stated_tasks else {},
        warnings=(*(_about_teams(answers, base) if path else ()), *_warnings(answers, profiles)),
        misfits=tuple(misfits),
        unsuited=unsuited,
    )


def own_tokenizer(answers: AnswerSet, base: Path | None) -> Callable[[str], int] | None:
    """The tokenizer of the named model, if it is here: a run counts with it, too."""
    if (model := answers.value("model")) is None:
        return None
    from advisor.data.templates.tokenizer import model_tokenizer  # few models are here

    return model_tokenizer(path_beside(str(model), base))[0]


def _about_teams(answers: AnswerSet, base: Path | None) -> tuple[str, ...]:
    """How to name one file for each team, if several are served and one folder was stated."""
    path = answers.value("data_path")
    if answers.value("task") != "multi_department" or answers.known["data_path"].origin == "asked":
        return ()
    teams = advisor.data.team_files(path_beside(str(path), base))
    flags = " ".join(f"--tasks {shlex.quote(f'{name}={file}')}" for name, file in teams.items())
    text = f"data: {path} is read as the data of one task; one for each file: {flags}"
    return (text,) if teams else ()


def _profiles(
    answers: AnswerSet, files: Mapping[str, str], base: Path | None, read: Reader | None
) -> dict[str, DataProfile]:
    """Task -> profile of its file; "" for the one file of all."""
    faults: list[Fault] = []
    profiles: dict[str, DataProfile] = {}
    if not files:
        return profiles
    read = read or partial(advisor.data.profile, count_tokens=own_tokenizer(answers, base))
    task, mapping = answers.value("task"), answers.value("data_mapping")
    wanted = wanted_columns(task)
    for name, file in files.items():
        where = path_beside(file, base)
        try:
            try:
                profiles[name] = read(where, mapping=mapping, wanted=wanted)
            except InputError:
                if not name or not mapping:
                    raise
                # Of several files not each has the columns that were named.
                profiles[name] = read(where, wanted=wanted)
        except advisor.data.ColumnsUnclear as error:
            command = "advise check" if task is None or name else f"advise --task {task} --data"
            asked = error.with_command(f"{command} {shlex.quote(file)}")
            faults += [*error.faults[:-1], asked]
        except InputError as error:
            faults.extend(error.faults)
    refuse(faults)
    return profiles


def path_beside(file: str, base: Path | None) -> str:
    """The path as given, or beside the answers file if it exists only there."""
    if base is not None and not Path(file).exists() and (base / file).exists():
        return str(base / file)
    return file


def _misfits(task: object, profiles: Mapping[str, DataProfile]) -> tuple[list[str], str]:
    """What is said of data that do not suit the task, and why no plan is made of them, if none is:
    a mapping that was stated is a word of the person.
    """
    warnings: list[str] = []
    unsuited = ""
    for name, found in profiles.items():
        wrong = misfit(task, found)
        if wrong is None:
            continue
        warnings.append(f"data{f' of {name}' if name else ''}: {wrong.text}")
        if wrong.blocks and found.confidence != "stated" and not unsuited:
            suits = " or ".join(f"--task {other}" for other in wrong.suits[:2])
            unsuited = (
                f"data that suit the task ({found.path}: {wrong.what}): another file,"
                f" {suits}, or --force to train on these"
            )
    return warnings, unsuited


def _warnings(answers: AnswerSet, profiles: Mapping[str, DataProfile]) -> list[str]:
    warnings: list[str] = []
    kind, rows = answers.value("data_kind"), answers.value("data_rows")
    for name, found in profiles.items():
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


# --------------------------------------------------------------------------- what suits a task


class Misfit(Struct, frozen=True, kw_only=True):
    """Why data do not suit a task."""

    profile: DataProfile
    what: str  # "these rows hold a text and a category, and no reply"
    needs: str  # "answers to learn from"
    otherwise: str = ""  # what comes of it: "the model would answer with a category"
    suits: tuple[str, ...] = ()  # tasks that these data do suit
    blocks: bool = True  # no plan is made without a word of the person

    @property
    def text(self) -> str:
        """The sentence of a warning."""
        comes_of_it = f": {self.otherwise}" if self.otherwise else ""
        return (
            f"{self.what} (for example {row_words(self.profile)}); the task needs"
            f" {self.needs}{comes_of_it}"
        )


def wanted_columns(task: object) -> str | None:
    """What a task looks for among the columns of a table: "reply" or "label"; None for no task."""
    if task is None:
        return None
    return "label" if task == "classification" else "reply"


def misfit(task: object, found: DataProfile) -> Misfit | None:
    """Why the data do not suit the task, or None."""
    sorts, documents = found.format == "classification", found.kind == "raw_text"
    if found.kind == "prompts_with_verifier":
        return None
    if task == "classification":
        return None if sorts else _without_categories(found)
    if task in REPLIES and sorts:
        return Misfit(
            profile=found,
            what="these rows hold a text and a category, and no reply",
            needs="replies to learn from",
            otherwise="the model would answer with a category",
            suits=("classification",),
        )
    if task == "tool_use" and (documents or _lacks("calls", found)):
        others = ("classification",) if sorts else ("customer_service", "qa", "structured_output")
        return Misfit(
            profile=found,
            what="these are documents: no function is called in them"
            if documents
            else "no row calls a function",
            needs="rows in which the model calls a function",
            suits=("qa", "domain_expertise", "generation") if documents else others,
        )
    if task == "code" and _lacks("code", found):
        return Misfit(
            profile=found,
            what="hardly a row holds code",
            needs="programs, queries or scripts to learn from",
            suits=("qa", "generation", "domain_expertise"),
            blocks=False,  # there are more languages than signs to know them by
        )
    if task == "structured_output" and documents:
        return Misfit(
            profile=found,
            what="these are documents, without a filled-in form",
            needs="a text and what is to be filled in from it, in each row",
            suits=("qa", "domain_expertise", "generation"),
        )
    if task == "structured_output" and not sorts and _lacks("layout", found):
        return Misfit(
            profile=found,
            what="hardly an answer has a layout that a program could read",
            needs="answers in JSON or another fixed layout",
            suits=("generation", "qa"),
            blocks=False,
        )
    return None


def _without_categories(found: DataProfile) -> Misfit | None:
    looks = _looks(found)
    few = looks["looked_at"] < FEW_ROWS
    short = (
        not few
        and looks["characters"] <= LABEL_CHARS
        and looks["different"] <= max(2, LABEL_SHARE * looks["looked_at"])
    )
    suits: tuple[str, ...]
    if found.kind == "raw_text":
        what = "these are documents without a category"
        suits = ("qa", "domain_expertise", "generation")
    elif found.kind == "preference":
        what = "these are pairs of a better and a worse answer, without a category"
        suits = ("chat_assistant", "customer_service")
    elif found.kind == "unpaired_feedback" or few or short:
        return None
    else:
        what = "the answers in these rows are no categories: nearly every one is different"
        suits = ("customer_service", "qa", "generation")
    return Misfit(
        profile=found, what=what, needs="a text and its category in each row", suits=suits
    )


def suited_task(found: DataProfile) -> str:
    """The task that the rows show; `other`, with which the data decide alone, if they show none."""
    if found.format == "classification":
        return "classification"
    if found.kind == "prompts_with_verifier":
        return "reasoning"
    looks = _looks(found)
    count = looks["looked_at"]
    signs = {"calls": "tool_use", "code": "code", "layout": "structured_output"}
    shown = (task for sign, task in signs.items() if looks.get(sign, 0) > count / 2)
    return next(shown, "other") if count >= FEW_ROWS and found.kind != "raw_text" else "other"


def _looks(found: DataProfile) -> dict[str, Any]:
    """Counts of advisor/data/checks/answers.py."""
    return dict(found.measures.get("answers_seen") or {"looked_at": 0})


def _lacks(kind: str, found: DataProfile) -> bool:
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
        text = last["content"] or str(last.get("tool_calls") or last.get("function_call") or "")
        answer = text if last["role"] == "assistant" else str(sample.get("answer", ""))
        return (asked, answer) if answer else (asked,)
    return (str(sample["text"]),) if "text" in sample else ()
