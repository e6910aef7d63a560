"""The question where the examples are, and what follows from what the file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.ground.types import DataProfile
from advisor.wizard.checks import Check
from advisor.wizard.prompts import Ui
from advisor.wizard.typed import checked, typed
from advisor.wizard.walk import Question, Reply

Profile = Callable[[str, Mapping[str, str] | None], DataProfile]  # raises AdviseError


def ask_data(question: Question, ui: Ui, check: Check, profile: Profile) -> Reply:
    """The data file, asked for until it can be read."""
    message = f"{question.number}. {question.fact.ask}"
    return typed(question, ui, message, lambda text: checked(text, check), path=True)
