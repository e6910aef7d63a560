"""Where the examples are, which column is what, and whether the rows suit the task."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.examples import REASONS, TooManyUnusable, usable_rows
from advisor.data.read.source import files_here, find_data, team_files, typed_path
from advisor.data.recognition.recognise import ColumnsUnclear, first_row, recognise
from advisor.ground.errors import AdviseError
from advisor.ground.files import text_of, write_atomically
from advisor.ground.terminal import one_line, shown, width_of
from advisor.ground.types import AnswerSet, DataProfile
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import value_words
from advisor.situation.data import Misfit, example_parts, misfit, row_words, wanted_columns
from advisor.wizard.outcome import Check, Profile
from advisor.wizard.prompts import COMMAND_INDENT, Option, Ui, ask_typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

SHOWN_COLUMNS = 14
NAME_CHARS = 24
VALUE_CHARS = 46  # with the name and the space around it they fit into 80 columns
HELP_CHARS = 40
EXAMPLE_CHARS = 29  # of a request and of its answer, so that both fit on a line
WAYS = 2  # other readings that are offered beside the first
SHOWN_WARNINGS, SHOWN_NOTES = 3, 2
SAID_ALREADY = ("columns-guessed", "read-as")  # findings that were a question, or a line before
# What a row may hold -> the roles of its columns.
HOLDS = {
    "pair": ("A request and its answer", ("question", "answer")),
    "label": ("A text and its category", ("text", "label")),
    "text": ("A text alone", ("text",)),
    "chat": ("A whole conversation", ("messages",)),
    "preference": ("A request, a better and a worse answer", ("question", "chosen", "rejected")),
}
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
Mapped = Mapping[str, str]  # role -> column


class DataReader(Struct, frozen=True, kw_only=True):
    """Reads data files, and asks which column is what if that is a guess."""

    ui: Ui
    profile: Profile
    task: object  # what the model should do, as far as it is known

    def read(self, path: str, mapping: Mapped | None) -> DataProfile:
        """The file measured. Raises AdviseError if it cannot be read."""
        return self.profile(path, mapping, wanted_columns(self.task))

    def ask_file(self, question: Question) -> Reply:
        """The path of a file that can be read, its columns apart; BACK or DONT_KNOW."""

        def readable(text: str) -> str:
            path = typed_path(text)
            try:
                with suppress(ColumnsUnclear, TooManyUnusable):
                    self.read(path, None)
            except AdviseError as error:
                notes: tuple[str, ...] = ()
                with suppress(AdviseError):  # it may lack a package alone
                    notes = find_data(path).notes
                raise ValueError("\n".join([error.text(), *map(_on_lines, notes)])) from None
            return path

        if question.current is None and (here := files_here()):
            options = [Option(value=name, label=name) for name in here]
            options += [Option(value="", label="Another file", help="or a folder: type its path")]
            chosen = self.ui.choose(question.message, [*options, *ways_out(question)])
            if not isinstance(chosen, str):
                return chosen
            try:
                if chosen:
                    return readable(chosen)
            except ValueError as error:
                self.ui.say(str(error), tone="warning")
        return ask_typed(question, self.ui, readable, path=True)

    def understand(
        self, path: str, *, before: Mapped | None = None, holds: Mapped | None = None
    ) -> tuple[Mapped | None, DataProfile] | None:
        """The columns, if they were asked for, and the file read with them, or a copy of it without
        the rows that cannot be used; None for another file.

        Args:
            before: The mapping that was chosen when the same file was named before.
            holds: The mapping of another file, which is taken if this one has its columns.
        """
        if holds:
            with suppress(AdviseError):
                return holds, self.read(path, holds)
        try:
            found = self.read(path, None)
        except ColumnsUnclear as error:
            for fault in error.faults[:-1]:  # files, sheets and rows that are not read
                self.ui.say(_on_lines(fault.what), tone="warning")
            row, ways = error.row, [way.mapping for way in error.ways]
        except TooManyUnusable:  # of other columns, it may be
            row, ways = first_row(path), [recognise(path).mapping]
        else:
            if found.confidence != "guessed":
                return None, found
            row, ways = first_row(path), [found.mapping]
        if before:
            ways = [before, *(way for way in ways if way != before)]
        while (mapping := ask_columns(self.ui, path, row, ways)) is not None:
            try:
                if mended := self._usable(path, mapping):
                    return mapping, mended
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
            ways = [mapping, *(way for way in ways if way != mapping)]
        return None

    def _usable(self, path: str, mapping: Mapped) -> DataProfile | None:
        """The file measured, or a copy without the rows that cannot be used, if there are many and
        the person wants it; None if not.
        """
        try:
            return self.read(path, mapping)
        except TooManyUnusable as error:
            if not error.usable:
                raise
            *reasons, last = error.faults
            self.ui.say("; ".join(fault.what for fault in reasons), tone="warning")
            copy = _free_copy(path, text := usable_rows(path, mapping))
            options = [
                Option(
                    value=True, label="Yes", help=f"{error.usable:,} rows go into {shown(copy)}"
                ),
                Option(value=False, label="No", help="other columns, or another file"),
            ]
            what = f"{last.what[0].upper()}{last.what[1:]}"
            if not self.ui.choose(f"{what}. Leave them out, in a copy?", options):
                return None
            write_atomically(Path(copy), text)
            return self.read(copy, mapping)

    def ask_teams(self, folder: str, teams: Mapping[str, str]) -> Several | None:
        """One team for each file of a folder, if that is so; None if it is one data set."""
        options = [
            Option(value=True, label="Yes", help=", ".join(teams)),
            Option(value=False, label="No", help="all rows belong together"),
            Option(value=True, label="I don't know", help="one team for each file is assumed"),
        ]
        if self.ui.choose(f"{folder} holds {len(teams)} files. One team for each?", options):
            return self.read_teams(teams)
        return None

    def read_teams(self, teams: Mapping[str, str]) -> Several | None:
        """The teams whose file can be read, and the columns that were asked for; None without any.

        The others are named with the reason. Columns chosen for one file hold for every file that
        has them.
        """
        found: dict[str, str] = {}
        mapping: Mapped | None = None
        for name, path in teams.items():
            try:
                understood = self.understand(path, holds=mapping)
            except AdviseError as error:
                self.ui.say(f"{name} is left out: {error.text()}", tone="warning")
                continue
            own = understood[0] if understood else None
            if understood is None or (mapping and own and own != mapping):
                why = ": its columns are other ones than those of the first" if understood else ""
                self.ui.say(f"{name} is left out{why}.", tone="warning")
                continue
            found[name], mapping = understood[1].path, own or mapping
        values = {"tasks": found, "data_path": None, "data_mapping": mapping}
        return Several(values=values) if found else None


def _free_copy(path: str, text: str) -> str:
    """Where the usable rows of a file go: no other file of that name is lost."""
    for number in count(1):
        copy = f"{os.path.splitext(path.rstrip('/'))[0]}-usable{f'-{number}' * (number > 1)}.jsonl"
        if not os.path.lexists(copy) or text_of(Path(copy)) == text:
            return copy
    raise AssertionError


def _on_lines(note: str) -> str:
    """What is left out of a folder, each command on a line of its own."""
    return re.sub(r" `([^`]+)`", rf"\n{COMMAND_INDENT}\1", note)


def expanded_path(text: str, check: Check) -> str:
    """The path that was typed. Raises ValueError with what is wrong with it."""
    text = typed_path(text)
    if wrong := check(text):
        raise ValueError(wrong)
    return text


def ask_tasks(question: Question, reader: DataReader) -> Reply:
    """The file of each team, by the folder that holds them; BACK or DONT_KNOW."""

    def read_folder(text: str) -> dict[str, str]:
        if teams := team_files(path := typed_path(text)):
            return teams
        what = f"{text} is no folder with one file for each team."
        if not os.path.exists(path):
            what = f"There is no {text} here."
        raise ValueError(
            f"{what} Put the rows of each team into a file named after it, and all files into one"
            " folder."
        )

    folder = next((os.path.dirname(file) for file in (question.current or {}).values()), None)
    asks = f"{question.message} (a folder with one file for each team)"
    asked = replace(question, current=folder, asks=asks)
    while True:
        teams = ask_typed(asked, reader.ui, read_folder, path=True)
        if teams in (BACK, DONT_KNOW):
            return teams
        if (found := reader.read_teams(teams)) is not None:
            return found


def ask_data(question: Question, reader: DataReader) -> Reply:
    """The data file and its columns, the files of teams, or another task; BACK."""
    while True:
        reply = reader.ask_file(question)
        if reply is BACK:
            return BACK
        if reply is DONT_KNOW:
            return Several(values={"data_path": None, "data_mapping": None})
        if reader.task == "multi_department" and os.path.isdir(reply):
            teams = team_files(reply)
            if teams and (found := reader.ask_teams(reply, teams)) is not None:
                return found
        answer = _ask_about(question.answers, reply, reader)
        if answer is not None:
            return answer


def _ask_about(answers: AnswerSet, path: str, reader: DataReader) -> Several | None:
    more: dict[str, Any] = {}
    is_known = path == answers.value("data_path")
    while True:
        before = answers.value("data_mapping") if is_known else None
        understood = reader.understand(path, before=before)
        if understood is None:
            return None
        mapping, found = understood
        path = found.path
        wrong = misfit(reader.task, found)
        chosen = _ask_task(reader.ui, str(reader.task), wrong) if wrong else DONT_KNOW
        if chosen is None:
            return None
        if chosen == reader.task:  # the rows are taken as they are, which a mapping says
            mapping = dict(mapping or found.mapping)
        if chosen in (DONT_KNOW, reader.task):
            return Several(values={"data_path": path, "data_mapping": mapping, **more})
        reader, more = replace(reader, task=chosen), {"task": chosen}


def _ask_task(ui: Ui, task: str, wrong: Misfit) -> Any:
    """The task after all: another one, the same, DONT_KNOW; None for another file."""
    tasks = load_facts()["task"].values
    label, again = tasks[task].label, "it is said again with the answer"
    as_they_are = wrong.otherwise or "as they are"
    options = [
        *(Option(value=one, label=tasks[one].label, help=tasks[one].help) for one in wrong.suits),
        Option(value=None, label=f"{label}, from another file", help=f"with {wrong.needs}"),
        Option(value=task, label=f"{label}, from these rows", help=as_they_are),
        Option(value=DONT_KNOW, label="I don't know", help=again),
    ]
    ui.say(f"For example: {row_words(wrong.profile)}", tone="quiet")
    what = f"{wrong.what[0].upper()}{wrong.what[1:]}"
    return ui.choose(f"{what}. What should the model do?", options)


# --------------------------------------------------------------------------- which column is what


def ask_columns(
    ui: Ui, path: str, row: Mapping[str, Any], ways: Sequence[Mapped]
) -> dict[str, str] | None:
    """Role -> column, as the person says; None for another file.

    Args:
        row: One row, with nested columns beside its own.
        ways: How the file may be read, the likeliest first.
    """
    _say_row(ui, path, row)
    while True:
        chosen: Any = "columns"
        if ways:
            options = [
                Option(value=ways[0], label="Yes"),
                *(Option(value=way, label=f"No: {way_words(way)}") for way in ways[1 : 1 + WAYS]),
                Option(value="columns", label="Choose the columns"),
                Option(value="file", label="Another file"),
                Option(value=ways[0], label="I don't know", help="the guess is taken"),
            ]
            chosen = ui.choose(way_question(ways[0]), options, current=None)
        if chosen == "file":
            return None
        if isinstance(chosen, Mapping):
            return dict(chosen)
        picked = _pick_columns(ui, row, ways)
        if picked is not None or not ways:
            return picked


def _say_row(ui: Ui, path: str, row: Mapping[str, Any]) -> None:
    cells = [(name, cell) for name, cell in row.items() if not isinstance(cell, Mapping)]
    ui.say(f"One row of {shown(path)}:")
    names = [one_line(name, NAME_CHARS) for name, _ in cells[:SHOWN_COLUMNS]]
    width = max(map(width_of, names), default=0)
    for name, (_, cell) in zip(names, cells, strict=False):
        ui.say(f"  {name}{' ' * (width - width_of(name))}  {cell_words(cell, VALUE_CHARS)}")
    if len(cells) > SHOWN_COLUMNS:
        ui.say(f"  and {len(cells) - SHOWN_COLUMNS} more columns", tone="quiet")


def _pick_columns(ui: Ui, row: Mapping[str, Any], ways: Sequence[Mapped]) -> dict[str, str] | None:
    kinds = [Option(value=kind, label=label) for kind, (label, _) in HOLDS.items()]
    leave = Option(value=None, label="Back" if ways else "Another file")
    kind = ui.choose("What does each row hold?", [*kinds, leave])
    if kind is None:
        return None
    chosen: dict[str, str] = {}
    for role in HOLDS[kind][1]:
        words = "the text" if role == "text" else ROLE_WORDS[role]
        options = [
            Option(value=name, label=shown(name), help=cell_words(cell, HELP_CHARS))
            for name, cell in row.items()
            if name not in chosen.values() and not isinstance(cell, Mapping)
        ]
        options.append(Option(value=None, label="Back"))
        guess = ways[0].get(role) if ways else None
        column = ui.choose(f"Which column is {words}?", options, current=guess)
        if column is None:
            return None
        chosen[role] = column
    if kind == "chat" and not isinstance(row[chosen["messages"]], list):
        return {"transcript": chosen["messages"]}
    return chosen


def way_question(way: Mapped) -> str:
    """'Is Description the request and Agent Reply the answer?'"""
    *before, last = _roles_of_columns(way)
    return f"Is {', '.join(before)} and {last}?" if before else f"Is {last}?"


def way_words(way: Mapped) -> str:
    """'Subject is the request, Description the answer'."""
    first, *rest = _roles_of_columns(way, verb=" is")
    return ", ".join([first, *(part.replace(" is the", " the", 1) for part in rest)])


def _roles_of_columns(way: Mapped, *, verb: str = "") -> list[str]:
    return [
        f"{one_line(column, NAME_CHARS)}{verb} {ROLE_WORDS.get(role, role)}"
        for role, column in way.items()
    ]


def cell_words(cell: Any, columns: int) -> str:
    """A cell on one line, cut, safe on a terminal."""
    if cell is None:
        return "(empty)"
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return one_line(text, columns) or "(empty)"


# --------------------------------------------------------------------------- what was understood


def say_found(reply: Reply, reader: DataReader) -> None:
    """What was understood of each file: how much of what, a row, and what is conspicuous."""
    values = reply.values if isinstance(reply, Several) else {}
    wanted = wanted_columns(values.get("task") or reader.task)
    files = dict(values.get("tasks") or {})
    if not files and values.get("data_path"):
        files = {"": values["data_path"]}
    for name, path in files.items():
        found = profile_of(reader.profile, path, values.get("data_mapping"), wanted)
        for place, line in enumerate(found_lines(found, brief=bool(name)) if found else ()):
            lead = "    " if place else f"  {name}: " if name else "  "
            reader.ui.say(line, tone="quiet", lead=lead)
    if "task" in values:
        label = load_facts()["task"].values[values["task"]].label
        reader.ui.say(label, tone="quiet", lead="  The task is now: ")


def profile_of(
    profile: Profile, path: str, mapping: Mapped | None, wanted: str | None
) -> DataProfile | None:
    """The file read with these columns, or without them; None if it cannot be read."""
    for columns in (mapping, None) if mapping else (None,):
        try:
            return profile(path, columns, wanted)
        except AdviseError:
            continue
    return None


def found_lines(found: DataProfile, *, brief: bool = False) -> Iterator[str]:
    """How many examples of which kind, one of them, how the file was read, what is wrong."""
    is_text = found.kind == "raw_text"
    count, why = f"{found.rows:,}", ""
    if found.left_out:
        count = f"{found.rows - found.left_out:,} of {count}"
        reasons = [REASONS[one.id] for one in found.findings if one.id in REASONS]
        why = f"; {found.left_out:,} left out: {', '.join(reasons)}"
    what = "documents" if is_text else f"examples: {_kind_words(found)}"
    yield f"found {count} {what}{why}"
    example = example_parts(found)
    room = EXAMPLE_CHARS if len(example) > 1 else 2 * EXAMPLE_CHARS
    if example:
        yield f"such as: {' -> '.join(one_line(part, room) for part in example)}"
    if brief:
        return
    # One for each file of a folder; no warning is folded so.
    notes = [finding.text for finding in found.findings if finding.id == "read-as"]
    yield from notes[:SHOWN_NOTES]
    if len(notes) > SHOWN_NOTES:
        yield f"and {len(notes) - SHOWN_NOTES} more of this kind"
    warnings = [
        f"{finding.severity}: {finding.text}"
        for finding in found.findings
        if finding.severity != "note" and finding.id not in SAID_ALREADY
    ]
    yield from warnings[:SHOWN_WARNINGS]
    if len(warnings) > SHOWN_WARNINGS:
        yield f"{len(warnings) - SHOWN_WARNINGS} more: advise check {shlex.quote(found.path)}"


def _kind_words(found: DataProfile) -> str:
    """'requests with the right answer'; texts with a category are named as what they are."""
    if found.format == "classification":
        count = found.measures.get("class_count", 0)
        return f"texts with one of {count:,} categories" if count > 1 else "texts with a category"
    return value_words(load_facts()["data_kind"], found.kind)
