"""The questions as a newcomer reads them, and the first for people who do not know the answer."""

import re

import pytest

from advisor.wizard.prompts import Option, choice_lines, prompt_lines
from advisor.wizard.walk import questions
from tests.render.example_advice import CPU
from tests.wizard.scripted import FACTS, ScriptedUi, ask_answers, known

JARGON = re.compile(
    r"\b(lora|adapter|prefix|rlhf|ppo|sft|dpo|fine-tun|finetun|quanti[sz]|token|gpu|vram|epoch"
    r"|hyperparam|gradient|checkpoint|inference|parameter|nf4|bf16|embedding|corpus|rag |llm"
    r"|supervised|reward|dataset)"
)


def test_there_are_some_questions():
    assert len(questions(FACTS)) > 12


@pytest.mark.parametrize("fact", questions(FACTS), ids=lambda fact: fact.id)
def test_a_newcomer_can_read_the_question(fact):
    """Neither it nor a choice names a method or a term of machine learning; each choice has a line
    of help, and what not knowing means is said. It refers to nothing that scrolled away, and fits
    a terminal of 80 columns and 24 lines.
    """
    values = fact.values.values()
    texts = [part for value in values for part in (value.label, value.help, value.such_as)]
    for text in (fact.ask, fact.unknown, *texts):
        assert not JARGON.search(text.lower()), text
    assert not re.search(r"\bthen\b", fact.ask)
    assert all(value.help for value in values)
    assert fact.required or fact.signal or fact.unknown
    question = prompt_lines(f"12. {fact.ask} (arrow keys, Enter)", 80).splitlines()
    assert len(question) <= 2
    options = [Option(value=1, label=value.label, help=value.help) for value in values]
    lines = [choice_lines(option, 80) for option in options]
    assert not any("\n" in line for line in lines)
    assert len(question) + len(lines) + 2 <= 22  # not known, and back


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
