"""The questions as a newcomer reads them, and the first for people who do not know the answer."""

import re

import pytest

from advisor.wizard.prompts import Option, choice_lines, prompt_lines
from advisor.wizard.walk import questions
from tests.render.example_advice import CPU
from tests.wizard.scripted import FACTS, ScriptedUi, ask_answers, known


def test_no_question_needs_knowledge_of_the_trade():
    """Neither a question nor a choice names a method or a term of machine learning."""
    texts = [fact.ask for fact in questions(FACTS)]
    texts += [
        part
        for fact in questions(FACTS)
        for value in fact.values.values()
        for part in (value.label, value.help, value.such_as)
    ]
    texts += [fact.unknown for fact in questions(FACTS)]
    assert len(texts) > 100
    jargon = (
        "lora", "adapter", "prefix", "rlhf", "ppo", "sft", "dpo", "fine-tun", "finetun", "quantiz",
        "quantis", "token", "gpu", "vram", "epoch", "hyperparam",
        "gradient", "checkpoint", "inference", "parameter", "nf4", "bf16", "embedding", "corpus",
        "rag ", "llm", "supervised", "reward", "dataset",
    )  # fmt: skip
    for text in texts:
        for word in jargon:
            assert not re.search(rf"\b{word}", text.lower()), f"{word!r} in {text!r}"


def test_every_choice_has_a_line_of_help():
    """Each value of an asked choice says in plain words what it means."""
    for fact in questions(FACTS):
        for name, value in fact.values.items():
            assert value.label != name or value.help, f"{fact.id}: {name}"
            assert value.help, f"{fact.id}: {name}"


def test_every_question_but_the_task_says_what_not_knowing_means():
    """Except for the task and plain yes-or-no questions, each question says what is assumed without
    an answer.
    """
    for fact in questions(FACTS):
        assert fact.required or fact.signal or fact.unknown, fact.id


def test_every_choice_is_one_line_of_a_small_terminal():
    """Label and help fit into 80 columns, and a whole question into 24 lines."""
    for fact in questions(FACTS):
        question = prompt_lines(f"12. {fact.ask} (arrow keys, Enter)", 80).splitlines()
        assert len(question) <= 2, fact.id
        choices = [
            Option(value=name, label=one.label, help=one.help) for name, one in fact.values.items()
        ]
        lines = [choice_lines(choice, 80) for choice in choices]
        assert not any("\n" in line for line in lines), fact.id
        assert len(question) + len(lines) + 2 <= 22, fact.id  # not known, and back


def test_a_question_refers_to_nothing_that_scrolled_away():
    """ "Then" and "that" mean nothing to somebody who reads one question alone."""
    for fact in questions(FACTS):
        assert not re.search(r"\bthen\b", fact.ask), fact.id


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
