"""Which question comes next, and what becomes of its answer."""

import re

import pytest

from advisor.advice.types import Flip
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import Fact, Value
from advisor.wizard import BACK, DONT_KNOW, Several, walk
from advisor.wizard.conversation import can_be_tried, change_answers
from advisor.wizard.prompts import Option, choice_lines, prompt_lines
from advisor.wizard.walk import for_now, questions
from tests.wizard.scripted import FACTS, ScriptedUi, answers_of, asked_set, known, walked


def test_questions_come_in_the_order_of_the_facts_file():
    """The walk follows `order`, whatever the order in the file."""
    _, order = walked({"task": "qa"})
    numbers = [FACTS[fact].order for fact in order]
    assert numbers == sorted(numbers)
    assert order[0] == "task"
    assert len(order) > 10


@pytest.mark.parametrize(
    ("replies", "asked", "not_asked"),
    [
        ({"task": "multi_department"}, "n_tasks data_path", ""),
        ({"task": "code"}, "", "needs_citations n_tasks"),
        ({"task": "qa"}, "needs_citations data_kind data_rows", "n_tasks"),
        ({"task": "qa", "data_path": "x.jsonl"}, "", "data_kind data_rows"),
        ({"task": "qa", "data_kind": "none"}, "", "data_rows"),
        ({"task": "qa", "data_kind": "paired"}, "data_rows", ""),
        ({"task": "qa", "prompting_tried": True}, "prompt_meets_quality_bar", ""),
        ({"task": "qa", "prompting_tried": False}, "", "prompt_meets_quality_bar"),
    ],
)
def test_a_question_is_asked_only_where_it_applies(replies, asked, not_asked):
    """Of several teams alone their number; of a file neither kind nor number; who does not know
    what examples look like may still know how many; some follow from an answer.
    """
    order = set(walked(replies)[1])
    assert set(asked.split()) <= order
    assert not set(not_asked.split()) & order


def test_the_teams_own_files_spare_the_questions_they_answer():
    """Who names each team's file is asked neither for their number nor for one file; a file named
    before is dropped.
    """
    answers, order = walked(
        {"task": "multi_department", "tasks": {"legal": "a.jsonl"}}, asked_set(data_path="x.jsonl")
    )
    assert not {"n_tasks", "data_path", "data_kind", "data_rows"} & set(order)
    assert answers.value("data_path") is None


def test_not_knowing_states_nothing():
    """I don't know leaves the fact out of the answers."""
    answers, _ = walked({"task": "qa"})
    assert known(answers) == {"task": "qa"}


def test_yes_is_a_signal_and_no_is_none():
    """Yes to a yes-or-no question lists the signal; no is kept as said and lists nothing."""
    answers, _ = walked({"task": "qa", "facts_change_often": True, "prompting_tried": False})
    assert answers.signals == ("facts_change_often",)
    assert answers.value("prompting_tried") is False


def test_flags_and_files_are_not_asked_again():
    """What a flag or a file said stands and keeps its origin."""
    given = AnswerSet(
        known={
            "task": Answer(value="qa", origin="flag"),
            "signals": Answer(value=("needs_citations",), origin="file"),
        }
    )
    answers, order = walked({"budget": "low"}, given)
    assert not {"task", "needs_citations"} & set(order)
    assert answers.known["task"].origin == "flag"
    assert answers.known["budget"].origin == "asked"
    assert answers.signals == ("needs_citations",)


def test_back_asks_the_question_before_with_its_answer():
    """Back re-asks the last question, its old answer preselected; the new one counts."""
    script = iter(["multi_department", BACK, "qa", BACK, "code"])
    seen = []

    def ask(question):
        seen.append((question.fact.id, question.current, question.can_go_back))
        return next(script, DONT_KNOW)

    answers = walk(FACTS, ask, AnswerSet())
    assert seen[:5] == [
        ("task", None, False),
        ("tasks", None, True),
        ("task", "multi_department", False),
        ("data_path", None, True),
        ("task", "qa", False),
    ]
    assert known(answers) == {"task": "code"}


def test_an_answer_that_no_longer_applies_is_dropped():
    """Going back and taking another task drops what was only asked for the old one."""
    replies = iter(["multi_department", DONT_KNOW, 12, BACK, BACK, BACK, "qa"])
    answers = walk(FACTS, lambda question: next(replies, DONT_KNOW), AnswerSet())
    assert known(answers) == {"task": "qa"}


def test_irrelevant_questions_are_left_out():
    """A question whose answer cannot change the outcome is not put; the task always is."""
    _, order = walked({"task": "qa"}, relevant=lambda fact, answers, opened: fact == "budget")
    assert order == ["task", "budget"]


def test_a_new_fact_is_a_new_question():
    """A question is one entry of the facts: nothing else has to know it."""
    values = {"red": Value(label="Red", help="like blood")}
    extra = Fact(
        id="colour", type="choice", origin="asked", values=values, order=5, ask="Which colour?"
    )
    order = walked({"task": "qa"}, facts={**FACTS, "colour": extra})[1]
    assert order[:2] == ["colour", "task"]


def test_several_facts_can_be_answered_at_once():
    """A reply for several facts sets and clears them together."""
    before = asked_set(gpu="RTX 4090", gpus=2)
    replies = {"task": DONT_KNOW, "gpu": Several(values={"gpu": None, "gpus": None})}
    assert known(walked(replies, before)[0]) == {}


def test_what_refines_a_choice_waits_for_the_examples():
    """Who knows nothing of examples is not asked where the model will run; who has some is."""
    everything = for_now(FACTS, lambda *_: True)
    for replies in ({}, {"data_kind": "paired"}, {"data_path": "x.jsonl"}):
        order = walked({"task": "qa", **replies}, relevant=everything)[1]
        assert ("serve_with" in order) == bool(replies)
        assert "budget" in order
    assert for_now(FACTS, None) is None


# --------------------------------------------------------------------------- what if


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({"depth": "style"}, {"depth": "task"}, {"depth": "task"}),
        ({}, {"facts_change_often": True},
         {"facts_change_often": True, "signals": ("facts_change_often",)}),
        ({"gpu": "Mystery", "gpu_memory_gib": 8.0, "gpus": 4}, {"gpu": "A100 80GB"},
         {"gpu": "A100 80GB"}),  # nothing of the old card is left
        ({"budget_usd": 5, "budget_hours": 2}, {"budget": None}, {}),  # no limit of either kind
    ],
)  # fmt: skip
def test_a_change_is_answered_as_in_a_file(before, change, after):
    """A choice is answered anew, and a signal is listed."""
    answers = asked_set(task="qa", **before)
    assert known(change_answers(answers, change, FACTS)) == {"task": "qa", **after}


def test_a_signal_states_what_it_implies():
    told = change_answers(asked_set(task="qa"), {"teacher_logs_available": True}, FACTS)
    assert set(told.signals) == {"teacher_logs_available", "teacher_available"}


def test_only_what_can_be_answered_can_be_tried():
    """Other data, or another task, is nothing that a person can choose now."""
    to = parse_composition("sft+lora")
    efforts = {"answer": True, "money": True, "data": False, "fixed": False}
    for effort, can in efforts.items():
        assert can_be_tried(Flip(change={"budget": "high"}, to=to, effort=effort, text="")) is can


# ---------------------------------------------------------------------- as a newcomer reads them


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
    answers = answers_of(ui, "none")
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
