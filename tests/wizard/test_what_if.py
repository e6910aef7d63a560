"""A change that was chosen, as answers."""

from dataclasses import replace

from advisor.advice.types import Flip
from advisor.ground.types import Answer, Answers
from advisor.wizard.conversation import change_answers, flip_words
from tests.render.example_advice import scenario_5
from tests.wizard.scripted import FACTS, known

TO = scenario_5().recommendation.composition


def after(answers, change, facts=None):
    """The answers after a change, in a situation that read these facts from the data."""
    advice = replace(scenario_5(), facts=facts or {})
    return known(
        change_answers(
            Answers(
                known={name: Answer(value=value, origin="asked") for name, value in answers.items()}
            ),
            change,
            advice,
            FACTS,
        )
    )


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


def test_other_data_set_the_file_aside_and_keep_what_it_held():
    """What if the 500 examples were 5,000: the file cannot say so, and its kind still counts."""
    read = {"data_kind": "paired", "data_rows": 500, "data_tokens": 80_000}
    assert after({"task": "qa", "data_path": "x.jsonl"}, {"data.rows": 5000}, read) == {
        "task": "qa",
        "data_kind": "paired",
        "data_rows": 5000,
        "data_tokens": 80_000,
    }


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


def test_another_size_or_start_of_the_model_can_be_tried():
    """A size stands without the old name; a start is the signal that says so."""
    assert after({"task": "qa", "model": "Qwen/Qwen3-8B"}, {"params_b": 1.0}) == {
        "task": "qa",
        "model_params_b": 1.0,
    }
    assert after({"task": "qa"}, {"checkpoint_kind": "instruct"})["signals"] == (
        "instruct_model_start",
    )
    assert after({"task": "qa", "signals": ("instruct_model_start",)}, {"checkpoint_kind": "base"})[
        "signals"
    ] == ("base_model_untuned",)


def test_a_change_reads_like_the_answer_to_its_question():
    """Question and answer for choices and signals, the advice's own words for amounts and cards."""
    assert (
        flip_words(Flip(change={"budget": "high"}, to=TO, effort="answer"), FACTS)
        == "How much may it cost? Quality comes first"
    )
    assert flip_words(
        Flip(change={"facts_change_often": False}, to=TO, effort="answer"), FACTS
    ).endswith("every few weeks? no")
    assert (
        flip_words(
            Flip(
                change={"data.rows": 500},
                to=TO,
                effort="data",
                text="if you had 500 examples instead of 20",
            ),
            FACTS,
        )
        == "If you had 500 examples instead of 20"
    )
    assert (
        flip_words(
            Flip(
                change={"checkpoint_kind": "base"}, to=TO, effort="fixed", text="if start were base"
            ),
            FACTS,
        )
        == f"{FACTS['base_model_untuned'].ask} yes"
    )
