"""A change that was chosen, as answers."""

from advisor.advice.types import Flip
from advisor.ground.types import Answer, AnswerSet
from advisor.wizard.conversation import can_be_tried, change_answers
from tests.render.example_advice import scenario_5
from tests.wizard.scripted import FACTS, known

TO = scenario_5().recommendation.composition


def after(answers, change):
    """The answers after a change."""
    asked = {name: Answer(value=value, origin="asked") for name, value in answers.items()}
    return known(change_answers(AnswerSet(known=asked), change, FACTS))


def test_a_choice_and_a_signal_are_re_answered():
    """Named as in an answers file; a signal is listed, and states what it implies."""
    assert after({"task": "qa", "depth": "style"}, {"depth": "task"}) == {
        "task": "qa",
        "depth": "task",
    }
    assert after({"task": "qa"}, {"facts_change_often": True}) == {
        "task": "qa",
        "facts_change_often": True,
        "signals": ("facts_change_often",),
    }
    told = after({"task": "qa"}, {"teacher_logs_available": True})
    assert set(told["signals"]) == {"teacher_logs_available", "teacher_available"}


def test_another_card_replaces_name_memory_and_count():
    """Nothing of the old card is left."""
    assert after(
        {"task": "qa", "gpu": "Mystery", "gpu_memory_gib": 8.0, "gpus": 4}, {"gpu": "A100 80GB"}
    ) == {"task": "qa", "gpu": "A100 80GB"}


def test_limits_are_lifted_together():
    """No budget means no limit in dollars and none in hours."""
    assert after({"task": "qa", "budget_usd": 5, "budget_hours": 2}, {"budget": None}) == {
        "task": "qa"
    }


def test_only_what_can_be_answered_can_be_tried():
    """Other data, or another task, is nothing that a person can choose now."""
    efforts = ("answer", "money", "data", "fixed")
    flips = [Flip(change={"budget": "high"}, to=TO, effort=effort, text="") for effort in efforts]
    assert [can_be_tried(flip) for flip in flips] == [True, True, False, False]
