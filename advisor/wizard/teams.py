"""The question which data file belongs to which team."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from advisor.data.read.team_files import team_files
from advisor.ground.files import FOLDER_NAME, is_folder_name
from advisor.wizard.checks import Checks
from advisor.wizard.data_file import ask_file, ask_teams, read_teams
from advisor.wizard.prompts import Ui
from advisor.wizard.typed import checked, typed
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several


def ask_tasks(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The name and the data file of each team, until no more is named."""
    before = dict(question.current or {})
    named: dict[str, str] = {}
    mapping: Mapping[str, str] | None = None
    while True:
        message = (
            f"{question.number}. {question.fact.ask} What is the first team called? (such as"
            " legal; or a folder with one file for each team)"
            if not named
            else f"What is the next team called? (so far: {', '.join(named)})"
        )
        unnamed = [name for name in before if name not in named]
        asked = replace(
            question,
            current=unnamed[0] if unnamed else None,
            can_go_back=question.can_go_back or bool(named),
        )
        name = typed(
            asked,
            ui,
            message,
            partial(_task_name, taken=dict(named), folders=not named),
            empty="that was the last" if named else "I don't know",
        )
        if name is DONT_KNOW:
            return _reply(named, mapping, checks)
        if name is BACK and not named:
            return BACK
        if name is BACK:
            named.popitem()
            continue
        if isinstance(name, Mapping):  # a folder with one file for each team
            folder = os.path.dirname(next(iter(name.values())))
            if checks.profile is None:
                return dict(name)
            if (found := ask_teams(question, ui, folder, name, checks.profile)) is not None:
                return found
            continue
        asked = replace(question, current=before.get(name), can_go_back=True)
        message = f"Where are the examples of {name}? (a file or a folder)"
        empty = f"leave {name} out"
        if checks.profile is not None:
            file = ask_file(asked, ui, message, checks.profile, empty=empty)
            if isinstance(file, str):
                read, mapping = read_teams(question, ui, {name: file}, checks.profile, mapping)
                named |= read
            continue
        file = typed(
            asked,
            ui,
            message,
            lambda text: checked(text, checks.data_path),
            path=True,
            empty=empty,
        )
        if isinstance(file, str):
            named[name] = file


def _reply(named: dict[str, str], mapping: Mapping[str, str] | None, checks: Checks) -> Reply:
    """The teams with the columns that were asked for."""
    if not named:
        return DONT_KNOW
    if checks.profile is None:
        return named
    return Several(values={"tasks": named, "data_mapping": mapping})


def _task_name(text: str, taken: Collection[str], *, folders: bool = False) -> str | dict[str, str]:
    """What somebody called a team, as the plan writes it: 'Human Resources' is human-resources; or
    the files of a folder that holds one for each team.

    Raises ValueError with the plan's rule.
    """
    if folders and (teams := team_files(os.path.expanduser(text))):
        return teams
    name = "-".join(text.lower().split())
    if not is_folder_name(name):
        raise ValueError(f"{text} cannot be the name. Allowed: {FOLDER_NAME}.")
    if name in taken:
        raise ValueError(f"{name} is named already.")
    return name
