"""Which question comes next, and what becomes of its answer."""

from advisor.ground.types import Answer, AnswerSet
from advisor.ruleset.facts import Fact, Value
from advisor.wizard import BACK, DONT_KNOW, Several, walk
from advisor.wizard.walk import for_now
from tests.wizard.scripted import FACTS, known, walked


def test_questions_come_in_the_order_of_the_facts_file():
    """The walk follows `order`, whatever the order in the file."""
    _, order = walked({"task": "qa"})
    numbers = [FACTS[fact].order for fact in order]
    assert numbers == sorted(numbers)
    assert order[0] == "task"
    assert len(order) > 10


def test_a_question_is_asked_only_where_it_applies():
    """The number of teams is asked for several teams alone; citations for questions about a
    business.
    """
    assert "n_tasks" in walked({"task": "multi_department"})[1]
    assert "n_tasks" not in walked({"task": "qa"})[1]
    assert "needs_citations" in walked({"task": "qa"})[1]
    assert "needs_citations" not in walked({"task": "code"})[1]


def test_a_data_file_spares_the_questions_about_data():
    """Kind and number of examples are asked only where there is no file to look into."""
    assert not {"data_kind", "data_rows"} & set(walked({"task": "qa", "data_path": "x.jsonl"})[1])
    assert {"data_kind", "data_rows"} <= set(walked({"task": "qa"})[1])


def test_the_teams_own_files_spare_the_questions_they_answer():
    """Who names each team's file is asked neither for their number nor for one file; a file named
    before is dropped.
    """
    answers, order = walked(
        {"task": "multi_department", "tasks": {"legal": "a.jsonl"}},
        AnswerSet(known={"data_path": Answer(value="x.jsonl", origin="asked")}),
    )
    assert not {"n_tasks", "data_path", "data_kind", "data_rows"} & set(order)
    assert answers.value("data_path") is None
    assert {"n_tasks", "data_path"} <= set(walked({"task": "multi_department"})[1])


def test_nobody_without_examples_is_asked_how_many():
    """Nothing yet: no number. Not known what they look like: the number may still be known."""
    assert "data_rows" not in walked({"task": "qa", "data_kind": "none"})[1]
    assert "data_rows" in walked({"task": "qa", "data_kind": "paired"})[1]
    assert "data_rows" in walked({"task": "qa"})[1]


def test_not_knowing_states_nothing():
    """I don't know leaves the fact out of the answers."""
    answers, _ = walked({"task": "qa"})
    assert known(answers) == {"task": "qa"}


def test_yes_is_a_signal_and_no_is_none():
    """Yes to a yes-or-no question lists the signal; no is kept as said and lists nothing."""
    answers, _ = walked({"task": "qa", "facts_change_often": True, "prompting_tried": False})
    assert answers.signals == ("facts_change_often",)
    assert answers.value("prompting_tried") is False


def test_a_question_may_follow_from_an_answer():
    """Whether the answers were good enough is asked only after good instructions were tried."""
    assert "prompt_meets_quality_bar" in walked({"task": "qa", "prompting_tried": True})[1]
    assert "prompt_meets_quality_bar" not in walked({"task": "qa", "prompting_tried": False})[1]


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
    script = iter(
        [
            ("task", "multi_department"),
            ("tasks", BACK),
            ("task", "qa"),
            ("data_path", BACK),
            ("task", "code"),
        ]
    )
    seen = []

    def ask(question):
        seen.append((question.fact.id, question.current, question.can_go_back))
        step = next(script, None)
        if step is None:
            return DONT_KNOW
        assert step[0] == question.fact.id
        return step[1]

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
    extra = Fact(
        id="colour",
        type="choice",
        origin="asked",
        values={"red": Value(label="Red", help="like blood")},
        order=5,
        ask="Which colour?",
    )
    order = []
    walk(
        {**FACTS, "colour": extra},
        lambda question: (
            order.append(question.fact.id) or ("qa" if question.fact.id == "task" else DONT_KNOW)
        ),
        AnswerSet(),
    )
    assert order[:2] == ["colour", "task"]


def test_several_facts_can_be_answered_at_once():
    """A reply for several facts sets and clears them together."""
    before = AnswerSet(
        known={
            "gpu": Answer(value="RTX 4090", origin="asked"),
            "gpus": Answer(value=2, origin="asked"),
        }
    )
    answers = walk(
        FACTS,
        lambda question: (
            Several(values={"gpu": None, "gpus": None}) if question.fact.id == "gpu" else DONT_KNOW
        ),
        before,
    )
    assert known(answers) == {}


def test_what_refines_a_choice_waits_for_the_examples():
    """Who knows nothing of examples is not asked where the model will run; who has some is."""
    everything = for_now(FACTS, lambda *_: True)
    for replies in ({}, {"data_kind": "paired"}, {"data_path": "x.jsonl"}):
        order = walked({"task": "qa", **replies}, relevant=everything)[1]
        assert ("serve_with" in order) == bool(replies)
        assert "budget" in order
    assert for_now(FACTS, None) is None
