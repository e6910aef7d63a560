"""Which question comes next, and what becomes of its answer."""

import re
from unittest.mock import Mock

import pytest

from advisor.advice.types import Flip
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import Fact, Value
from advisor.wizard.conversation import can_be_tried, change_answers
from advisor.wizard.prompts import Option, choice_lines, prompt_lines
from advisor.wizard.walk import BACK, DONT_KNOW, Several, for_now, questions, walk
from tests.wizard.scripted import FACTS, ScriptedUi, answers_of, asked_set, known, walked


def test_questions_come_in_the_order_of_the_facts_file():
    """It follows `order`; yes lists a signal, and I don't know leaves the fact out."""
    answers, order = walked({"task": "qa", "facts_change_often": True})
    numbers = [FACTS[fact].order for fact in order]
    assert (numbers, order[0]) == (sorted(numbers), "task")
    assert len(order) > 10
    assert known(answers) == {
        "task": "qa",
        "facts_change_often": True,
        "signals": ("facts_change_often",),
    }


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
    """A file answers kind and number of rows; who does not know their kind may know how many."""
    order = set(walked(replies)[1])
    assert set(asked.split()) <= order
    assert not set(not_asked.split()) & order


@pytest.mark.parametrize(
    ("before", "replies", "after", "spared"),
    [
        # Who names each team's file is asked neither for their number nor for one file; a file
        # named before is dropped.
        ({"data_path": "x.jsonl"}, {"task": "multi_department", "tasks": {"legal": "a.jsonl"}},
         {"task": "multi_department", "tasks": {"legal": "a.jsonl"}},
         {"n_tasks", "data_path", "data_kind", "data_rows"}),
        # A reply for several facts sets and clears them together.
        ({"gpu": "RTX 4090", "gpus": 2}, {"gpu": Several(values={"gpu": None, "gpus": None})},
         {}, set()),
    ],
    ids=["teams", "several"],
)  # fmt: skip
def test_an_answer_can_settle_several_questions(before, replies, after, spared):
    """It clears what was said before."""
    answers, order = walked(replies, asked_set(**before))
    assert known(answers) == after
    assert not spared & set(order)


def test_flags_and_files_are_not_asked_again():
    """What a flag or a file said stands and keeps its origin."""
    file = Answer(value=("needs_citations",), origin="file")
    given = AnswerSet(known={"task": Answer(value="qa", origin="flag"), "signals": file})
    answers, order = walked({"budget": "low", "prompting_tried": False}, given)
    assert not {"task", "needs_citations"} & set(order)
    assert (answers.known["task"].origin, answers.known["budget"].origin) == ("flag", "asked")
    assert answers.signals == ("needs_citations",)
    assert answers.value("prompting_tried") is False  # kept as said, and listed nowhere


def test_back_asks_the_question_before_with_its_answer():
    """Back re-asks the last question, its old answer preselected; the new one counts."""
    ask = Mock(side_effect=["multi_department", BACK, "qa", BACK, "code", *[DONT_KNOW] * 99])
    answers = walk(FACTS, ask, AnswerSet())
    put = [call.args[0] for call in ask.call_args_list]
    assert [(one.fact.id, one.current, one.can_go_back) for one in put[:5]] == [
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


def test_a_question_is_one_fact_and_is_left_out_where_it_does_not_matter():
    """Nothing else has to know a new fact; it is asked if it can matter, the task always."""
    values = {"red": Value(label="Red", help="like blood")}
    extra = Fact(
        id="colour", type="choice", origin="asked", values=values, order=5, ask="Which colour?"
    )
    assert walked({"task": "qa"}, facts={**FACTS, "colour": extra})[1][:2] == ["colour", "task"]
    _, order = walked({"task": "qa"}, relevant=lambda fact, *_: fact == "budget")
    assert order == ["task", "budget"]


def test_what_refines_a_choice_waits_for_the_examples():
    """Who knows nothing of examples is not asked where the model will run; who has some is."""
    everything = for_now(FACTS, lambda *_: True)
    for replies in ({}, {"data_kind": "paired"}, {"data_path": "x.jsonl"}):
        order = walked({"task": "qa", **replies}, relevant=everything)[1]
        assert ("serve_with" in order, "budget" in order) == (bool(replies), True)
    assert for_now(FACTS, None) is None


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({"depth": "style"}, {"depth": "task"}, {"depth": "task"}),
        ({}, {"facts_change_often": True},
         {"facts_change_often": True, "signals": ("facts_change_often",)}),
        ({}, {"teacher_logs_available": True},  # states what it implies
         {"teacher_logs_available": True, "teacher_available": True,
          "signals": ("teacher_logs_available", "teacher_available")}),
        ({"gpu": "Mystery", "gpu_memory_gib": 8.0, "gpus": 4}, {"gpu": "A100 80GB"},
         {"gpu": "A100 80GB"}),  # nothing of the old card is left
        ({"budget_usd": 5, "budget_hours": 2}, {"budget": None}, {}),  # no limit of either kind
    ],
)  # fmt: skip
def test_a_change_is_answered_as_in_a_file(before, change, after):
    """A choice is answered anew, and a signal is listed."""
    answers = asked_set(task="qa", **before)
    assert known(change_answers(answers, change, FACTS)) == {"task": "qa", **after}


@pytest.mark.parametrize(
    ("effort", "can"), [("answer", True), ("money", True), ("data", False), ("fixed", False)]
)
def test_only_what_can_be_answered_can_be_tried(effort, can):
    """Other data, or another task, is nothing that a person can choose now."""
    to = parse_composition("sft+lora")
    assert can_be_tried(Flip(change={"budget": "high"}, to=to, effort=effort, text="")) is can


JARGON = re.compile(
    r"\b(lora|adapter|prefix|rlhf|ppo|sft|dpo|fine-tun|finetun|quanti[sz]|token|gpu|vram|epoch"
    r"|hyperparam|gradient|checkpoint|inference|parameter|nf4|bf16|embedding|corpus|rag |llm"
    r"|supervised|reward|dataset)"
)


QUESTIONS = questions(FACTS)


@pytest.mark.parametrize("fact", QUESTIONS, ids=lambda fact: fact.id)
def test_a_newcomer_can_read_the_question(fact):
    """It has no jargon, helps with each choice, says what not knowing means, and fits 80 x 24."""
    values = fact.values.values()
    texts = [part for value in values for part in (value.label, value.help, value.such_as)]
    assert [one for one in (fact.ask, fact.unknown, *texts) if JARGON.search(one.lower())] == []
    assert not re.search(r"\bthen\b", fact.ask)
    assert all(value.help for value in values)
    assert fact.required or fact.signal or fact.unknown
    question = prompt_lines(f"12. {fact.ask} (arrow keys, Enter)", 80).splitlines()
    assert len(question) <= 2
    lines = [choice_lines(Option(value=1, label=one.label, help=one.help), 80) for one in values]
    assert not any("\n" in line for line in lines)
    assert len(question) + len(lines) + 2 <= 22  # not known, and back
    assert len(QUESTIONS) > 12


TASK = FACTS["task"]


@pytest.mark.parametrize(
    "replies",
    [
        ("Take name, date and sum out of an invoice",),  # the nearest
        ("Back", "Write code"),  # nobody is caught in the second question
        ("I don't know",),  # decides nothing; what decides then is said
    ],
    ids=" > ".join,
)
def test_not_knowing_the_task_shows_examples(approved, replies):
    """One line for each task, in words of somebody's work; not knowing then either is an answer."""
    ui = ScriptedUi("I don't know", *replies)
    answers = answers_of(ui, "none")
    assert ui.replies == []
    assert len(ui.offered[1]) == len(TASK.values) - 1 + 2  # all but `other`; not known, and back
    approved([known(answers), ui.asked, ui.said[5:], ui.offered[1][-2:], ui.helps[1][-2:]])


@pytest.mark.parametrize("name", [name for name in TASK.values if name != "other"])
def test_every_task_has_an_example(name):
    """It fits into a line of 80 columns and needs no term of the trade."""
    assert 0 < len(TASK.values[name].such_as) < 70
