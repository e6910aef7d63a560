"""The question which data file belongs to which team."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from advisor.ground.files import FOLDER_NAME, is_folder_name
from advisor.wizard.checks import Checks
from advisor.wizard.prompts import Ui
from advisor.wizard.typed import checked, typed
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply


def ask_tasks(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The name and the data file of each team, until no more is named."""
    before = dict(question.current or {})
    named: dict[str, str] = {}
    while True:
        message = (
            f"{question.number}. {question.fact.ask} What is the first team called? (such as legal)"
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
            lambda text: _task_name(text, named),
            empty="that was the last" if named else "I don't know",
        )
        if name is DONT_KNOW:
            return named or DONT_KNOW
        if name is BACK and not named:
            return BACK
        if name is BACK:
            named.popitem()
            continue
        asked = replace(question, current=before.get(name), can_go_back=True)
        file = typed(
            asked,
            ui,
            f"Where are the examples of {name}? (a file or a folder)",
            lambda text: checked(text, checks.data_path),
            path=True,
            empty=f"leave {name} out",
        )
        if isinstance(file, str):
            named[name] = file


def _task_name(text: str, taken: Collection[str]) -> str:
    """What somebody called a team, as the plan writes it: 'Human Resources' is human-resources.

    Raises ValueError with the plan's rule.
    """
    name = "-".join(text.lower().split())
    if not is_folder_name(name):
        raise ValueError(f"{text} cannot be the name. Allowed: {FOLDER_NAME}.")
    if name in taken:
        raise ValueError(f"{name} is named already.")
    return name
