"""The question where the examples are, and what follows from what the file holds: which column is
what, whether a folder holds the teams, and whether the rows suit the task.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.data.read.source import team_files
from advisor.data.recognition.recognise import ColumnsUnclear, first_row
from advisor.ground.errors import AdviseError
from advisor.ground.terminal import one_line, shown, width_of
from advisor.ground.types import DataProfile
from advisor.ruleset.facts import Fact, load_facts
from advisor.situation.data import Misfit, example_parts, misfit, wanted_columns
from advisor.wizard.outcome import Profile, path_exists
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.typed import checked, typed
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

SHOWN_COLUMNS = 14
NAME_CHARS = 24
VALUE_CHARS = 46  # with the name and the space around it they fit into 80 columns
HELP_CHARS = 40
WAYS = 2  # other readings that are offered beside the first
# What a row may hold -> the roles of its columns.
HOLDS = {
    "pair": ("A request and its answer", ("question", "answer")),
    "label": ("A text and its category", ("text", "label")),
    "text": ("A text alone", ("text",)),
    "chat": ("A whole conversation", ("messages",)),
    "preference": ("A request, a better and a worse answer", ("question", "chosen", "rejected")),
}


def ask_columns(
    ui: Ui, path: str, row: Mapping[str, Any], ways: Sequence[Mapping[str, str]]
) -> dict[str, str] | None:
    """Role -> column, as the person says; None for another file.

    Args:
        row: One row, with nested columns beside its own.
        ways: How the file may be read, the likeliest first.
    """
    show_row(ui, path, row)
    while True:
        chosen = _offer(ui, ways) if ways else "columns"
        if chosen == "file":
            return None
        if isinstance(chosen, Mapping):
            return dict(chosen)
        picked = _pick(ui, row, ways[0] if ways else {}, can_go_back=bool(ways))
        if picked is not None:
            return picked
        if not ways:
            return None


def show_row(ui: Ui, path: str, row: Mapping[str, Any]) -> None:
    """One row, a column on a line, each value shortened."""
    cells = [(name, cell) for name, cell in row.items() if not isinstance(cell, Mapping)]
    ui.say(f"One row of {shown(path)}:")
    names = [one_line(name, NAME_CHARS) for name, _ in cells[:SHOWN_COLUMNS]]
    width = max(map(width_of, names), default=0)
    for name, (_, cell) in zip(names, cells, strict=False):
        ui.say(f"  {name}{' ' * (width - width_of(name))}  {value_words(cell, VALUE_CHARS)}")
    if len(cells) > SHOWN_COLUMNS:
        ui.say(f"  and {len(cells) - SHOWN_COLUMNS} more columns", tone="quiet")


def _offer(ui: Ui, ways: Sequence[Mapping[str, str]]) -> Any:
    """The guess as a question: the mapping that was chosen, "columns" or "file"."""
    options = [Option(value=ways[0], label="Yes")]
    options += [Option(value=way, label=f"No: {way_words(way)}") for way in ways[1 : 1 + WAYS]]
    options += [
        Option(value="columns", label="Choose the columns"),
        Option(value="file", label="Another file"),
        Option(value=ways[0], label="I don't know", help="the guess is taken"),
    ]
    return ui.choose(way_question(ways[0]), options, current=None)


def _pick(
    ui: Ui, row: Mapping[str, Any], guess: Mapping[str, str], *, can_go_back: bool
) -> dict[str, str] | None:
    """The columns chosen from lists, in which the guess is marked; None for back."""
    kinds = [Option(value=kind, label=label) for kind, (label, _) in HOLDS.items()]
    back = Option(value=None, label="Back" if can_go_back else "Another file")
    kind = ui.choose("What does each row hold?", [*kinds, back])
    if kind is None:
        return None
    chosen: dict[str, str] = {}
    for role in HOLDS[kind][1]:
        words = "the text" if role == "text" else ROLE_WORDS[role]
        options = [
            Option(value=name, label=shown(name), help=value_words(cell, HELP_CHARS))
            for name, cell in row.items()
            if name not in chosen.values() and not isinstance(cell, Mapping)
        ]
        column = ui.choose(
            f"Which column is {words}?",
            [*options, Option(value=None, label="Back")],
            current=guess.get(role),
        )
        if column is None:
            return None
        chosen[role] = column
    if kind == "chat" and not isinstance(row[chosen["messages"]], list):
        return {"transcript": chosen["messages"]}
    return chosen


def way_question(way: Mapping[str, str]) -> str:
    """'Is Description the request and Agent Reply the answer?'"""
    parts = _parts(way)
    if len(parts) == 1:
        return f"Is {parts[0]}?"
    return f"Is {', '.join(parts[:-1])} and {parts[-1]}?"


def way_words(way: Mapping[str, str]) -> str:
    """'Subject is the request, Description the answer'."""
    (first, *rest) = _parts(way, verb=" is")
    return ", ".join([first, *(part.replace(" is the", " the", 1) for part in rest)])


ROLE_WORDS = {
    "question": "the request",
    "answer": "the answer",
    "text": "the text to learn from",
    "label": "the category",
    "context": "what it is about",
    "messages": "the conversation",
    "transcript": "the conversation",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "ranked": "the answers, the best one first",
    "ground_truth": "the right answer",
    "good": "the verdict",
    "system": "the instruction to the model",
    "history": "what was said before",
    "tools": "the functions",
}


def _parts(way: Mapping[str, str], *, verb: str = "") -> list[str]:
    return [
        f"{one_line(column, NAME_CHARS)}{verb} {ROLE_WORDS.get(role, role)}"
        for role, column in way.items()
    ]


def value_words(cell: Any, columns: int) -> str:
    """A cell on one line, cut, safe on a terminal."""
    if cell is None:
        return "(empty)"
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return one_line(text, columns) or "(empty)"


EXAMPLE_CHARS = 29  # of a request and of its answer, so that both fit on a line
SHOWN_WARNINGS = 3
SAID_ALREADY = ("columns-guessed",)  # findings that were a question


@dataclass(frozen=True, kw_only=True, slots=True)
class Understood:
    """A data file as the person wants it read."""

    path: str
    mapping: Mapping[str, str] | None  # role -> column, where it was asked for
    profile: DataProfile


def ask_data(question: Question, ui: Ui, profile: Profile) -> Reply:
    """The data file with its columns, or one file for each team, or another task: asked for until
    it can be read and the person is content.
    """
    while True:
        reply = ask_file(question, ui, f"{question.number}. {question.fact.ask}", profile)
        if reply is BACK:
            return BACK
        if reply is DONT_KNOW:
            return Several(values={"data_path": None, "data_mapping": None})
        answer = _with_file(question, ui, str(reply), profile)
        if answer is not None:
            return answer


def ask_file(
    question: Question, ui: Ui, message: str, profile: Profile, *, empty: str = ""
) -> Reply:
    """The path of a file that can be read, if only its columns are not known; BACK or DONT_KNOW."""
    wanted = wanted_columns(question.answers.value("task"))

    def read(text: str) -> str:
        path = checked(text, path_exists)
        try:
            profile(path, None, wanted)
        except ColumnsUnclear:
            pass
        except AdviseError as error:
            raise ValueError(error.text()) from None
        return path

    return typed(question, ui, message, read, path=True, empty=empty)


def _with_file(question: Question, ui: Ui, path: str, profile: Profile) -> Several | None:
    """What the file or folder answers; None for another one."""
    task = question.answers.value("task")
    if task == "multi_department" and os.path.isdir(path):
        teams = team_files(path)
        if teams and (found := ask_teams(question, ui, path, teams, profile)) is not None:
            return found
    more: dict[str, Any] = {}
    while True:
        known = question.answers.value("data_mapping")
        same = path == question.answers.value("data_path")
        found_file = understand(ui, path, profile, task, before=known if same else None)
        if found_file is None:
            return None
        wrong = misfit(task, found_file.profile)
        if wrong is None:
            break
        chosen = _ask_task(ui, str(task), wrong)
        if chosen is None:
            return None
        if chosen == task:  # the rows are taken as they are, which a mapping says
            mapping = found_file.mapping or found_file.profile.mapping
            return Several(values={"data_path": path, "data_mapping": dict(mapping), **more})
        if chosen is DONT_KNOW:
            break
        task, more = chosen, {"task": chosen}
    return Several(values={"data_path": path, "data_mapping": found_file.mapping, **more})


def understand(
    ui: Ui,
    path: str,
    profile: Profile,
    task: object,
    *,
    before: Mapping[str, str] | None = None,
) -> Understood | None:
    """The file as read, after the question which column is what, where that is a guess; None for
    another file.

    Args:
        before: The mapping that was chosen when the same file was named before.
    """
    wanted = wanted_columns(task)
    try:
        found = profile(path, None, wanted)
    except ColumnsUnclear as error:
        row, ways = error.row, [way.mapping for way in error.ways]
    else:
        if found.confidence != "guessed":
            return Understood(path=path, mapping=None, profile=found)
        row, ways = first_row(path), [found.mapping]
    if before:
        ways = [before, *(way for way in ways if way != before)]
    while True:
        mapping = ask_columns(ui, path, row, ways)
        if mapping is None:
            return None
        try:
            return Understood(path=path, mapping=mapping, profile=profile(path, mapping, wanted))
        except AdviseError as error:
            ui.say(error.text(), tone="warning")


def _ask_task(ui: Ui, task: str, wrong: Misfit) -> Any:
    """The task after all: another one, the same, DONT_KNOW; None for another file."""
    tasks = load_facts()["task"].values
    options = [
        Option(value=other, label=tasks[other].label, help=tasks[other].help)
        for other in wrong.suits
    ]
    options += [
        Option(
            value=None,
            label=f"{tasks[task].label}, from another file",
            help=f"with {wrong.needs}",
        ),
        Option(
            value=task,
            label=f"{tasks[task].label}, from these rows",
            help=wrong.otherwise or "as they are",
        ),
        Option(value=DONT_KNOW, label="I don't know", help="it is said again with the answer"),
    ]
    ui.say(f"For example: {wrong.row}", tone="quiet")
    what = f"{wrong.what[0].upper()}{wrong.what[1:]}"
    return ui.choose(f"{what}. What should the model do?", options)


def ask_teams(
    question: Question, ui: Ui, folder: str, teams: Mapping[str, str], profile: Profile
) -> Several | None:
    """One team for each file of a folder, if that is so; None where it is one data set."""
    names = ", ".join(teams)
    options = [
        Option(value=True, label="Yes", help=names),
        Option(value=False, label="No", help="all rows belong together"),
        Option(value=True, label="I don't know", help="one team for each file is assumed"),
    ]
    if not ui.choose(f"{folder} holds {len(teams)} files. One team for each?", options):
        return None
    read, mapping = read_teams(question, ui, teams, profile)
    if not read:
        return None
    return Several(values={"tasks": read, "data_path": None, "data_mapping": mapping})


def read_teams(
    question: Question,
    ui: Ui,
    teams: Mapping[str, str],
    profile: Profile,
    mapping: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], Mapping[str, str] | None]:
    """The teams whose file can be read, and the columns that were asked for; the others are named
    with the reason. Columns chosen for one file hold for every file that has them.
    """
    task = question.answers.value("task")
    read: dict[str, str] = {}
    for name, path in teams.items():
        if mapping and _reads(profile, path, mapping):
            read[name] = path
            continue
        try:
            found = understand(ui, path, profile, task)
        except AdviseError as error:
            ui.say(f"{name} is left out: {error.text()}", tone="warning")
            continue
        if found is None or (mapping and found.mapping and found.mapping != mapping):
            why = "" if found is None else ": its columns are other ones than those of the first"
            ui.say(f"{name} is left out{why}.", tone="warning")
            continue
        read[name], mapping = path, found.mapping or mapping
    return read, mapping


def _reads(profile: Profile, path: str, mapping: Mapping[str, str]) -> bool:
    try:
        profile(path, mapping, None)
    except AdviseError:
        return False
    return True


# --------------------------------------------------------------------------- what was understood


def say_found(ui: Ui, reply: Reply, answers: Callable[[str], Any], profile: Profile) -> None:
    """What was understood of each file: how much of what, a row, and what is conspicuous."""
    values = reply.values if isinstance(reply, Several) else {}
    task = values.get("task") or answers("task")
    mapping = values.get("data_mapping")
    files = dict(values.get("tasks") or {})
    if not files and values.get("data_path"):
        files = {"": values["data_path"]}
    for name, path in files.items():
        found = profile_of(profile, path, mapping, wanted_columns(task))
        if found is None:
            continue
        lead = f"  {name}: " if name else "  "
        for place, line in enumerate(found_lines(found, brief=bool(name))):
            ui.say(line, tone="quiet", lead=lead if place == 0 else "    ")
    if "task" in values:
        label = load_facts()["task"].values[values["task"]].label
        ui.say(label, tone="quiet", lead="  The task is now: ")


def profile_of(
    profile: Profile, path: str, mapping: Mapping[str, str] | None, wanted: str | None
) -> DataProfile | None:
    """The file read with these columns, or without where it does not have them; None where it
    cannot be read.
    """
    for columns in (mapping, None) if mapping else (None,):
        try:
            return profile(path, columns, wanted)
        except AdviseError:
            continue
    return None


def found_lines(found: DataProfile, *, brief: bool = False) -> Iterator[str]:
    """How many examples of which kind, one of them, how the file was read, what is wrong."""
    yield f"found {found.rows:,} examples: {kind_words(load_facts()['data_kind'], found)}"
    parts = [one_line(part, EXAMPLE_CHARS) for part in example_parts(found)]
    if len(parts) == 1:
        parts = [one_line(example_parts(found)[0], 2 * EXAMPLE_CHARS)]
    if parts:
        yield f"such as: {' -> '.join(parts)}"
    if brief:
        return
    for finding in found.findings:
        if finding.id == "read-as":
            yield finding.text
    warnings = [
        finding
        for finding in found.findings
        if finding.severity != "note" and finding.id not in SAID_ALREADY
    ]
    for finding in warnings[:SHOWN_WARNINGS]:
        yield f"{finding.severity}: {finding.text}"
    if len(warnings) > SHOWN_WARNINGS:
        yield f"{len(warnings) - SHOWN_WARNINGS} more: advise check {shlex.quote(found.path)}"


def kind_words(fact: Fact, found: DataProfile) -> str:
    """'requests with the right answer'; texts with a category are named as what they are."""
    if found.format == "classification":
        count = found.measures.get("class_count", 0)
        return f"texts with one of {count:,} categories" if count > 1 else "texts with a category"
    kind = fact.values.get(found.kind)
    return f"{kind.label[0].lower()}{kind.label[1:]}" if kind else found.kind
