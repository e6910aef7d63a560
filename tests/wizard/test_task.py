"""The first question, for people who do not know the answer."""

import pytest

from tests.render.example_advice import CPU
from tests.wizard.scripted import FACTS, ScriptedUi, ask_answers, known

TASK = FACTS["task"]


def asked(*replies: str) -> tuple[str, ScriptedUi]:
    """The task that comes of it."""
    ui = ScriptedUi(*replies)
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, relevant=lambda *_: False)
    assert ui.replies == []
    return known(answers)["task"], ui


def test_not_knowing_the_task_shows_examples():
    """One line for each task, in words of somebody's work; the nearest is the task."""
    task, ui = asked("I don't know", "Take name, date and sum out of an invoice")
    assert task == "structured_output"
    assert ui.asked[1].startswith("What do you want it to do better?")
    assert len(ui.offered[1]) == len(TASK.values) - 1 + 2  # all but `other`; not known, and back


def test_not_knowing_after_the_examples_either_is_an_answer():
    """It is the task that decides nothing, and what decides then is said."""
    task, ui = asked("I don't know", "I don't know")
    assert task == "other"
    assert "your data, money and machine decide alone" in ui.helps[1]
    assert any(text.endswith("-> Something else") for text in ui.said)


def test_back_from_the_examples_leads_to_the_list():
    """Nobody is caught in the second question."""
    assert asked("I don't know", "Back", "Write code")[0] == "code"


@pytest.mark.parametrize("name", [name for name in TASK.values if name != "other"])
def test_every_task_has_an_example(name):
    """It fits into a line of 80 columns and needs no term of the trade."""
    assert TASK.values[name].such_as
    assert len(TASK.values[name].such_as) < 70
