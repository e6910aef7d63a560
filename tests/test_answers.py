"""Answers: one list of facts, three forms, one precedence."""

import pytest

from advisor.answers import answers_document, answers_from_document, answers_from_flags, merge_answers
from advisor.errors import InputError
from advisor.facts import load_facts
from advisor.yamlio import parse_yaml

FACTS = load_facts()


def from_text(text):
    return answers_from_document(parse_yaml(text, name="answers.yaml"), FACTS)


def test_a_file_fills_every_fact_of_the_contract():
    """All keys of the documented answers file are read."""
    answers, warnings = from_text(
        "task: customer_service\nbudget: {usd: 50, hours: 8}\ndepth: style\ndata: {path: train.jsonl, examples: pairs.jsonl, kind: paired, rows: 5000, tokens: null}\n"
        "reward_model: scores\nmodel: Qwen/Qwen3-8B\nmodel_params_b: 8.2\ngpu: {name: RTX 4090, vram_gib: 24, count: 2}\nserve_with: vllm\npriority: quality\nsignals: [facts_change_often, prompting_tried]\n"
    )
    assert not warnings
    assert {key: answer.value for key, answer in answers.known.items()} == {
        "task": "customer_service", "budget_usd": 50, "budget_hours": 8, "depth": "style", "data_path": "train.jsonl", "data_examples": "pairs.jsonl", "reward_model": "scores", "data_kind": "paired", "data_rows": 5000,
        "model": "Qwen/Qwen3-8B", "model_params_b": 8.2, "gpu": "RTX 4090", "gpu_memory_gib": 24, "gpus": 2, "serve_with": "vllm", "priority": "quality",
        "signals": ("facts_change_often", "prompting_tried"),
    }  # fmt: skip


def test_an_answers_file_is_lossless():
    """What is read can be written and read again."""
    answers, _ = from_text("task: qa\nbudget: low\ngpu: RTX 4090\ndata: {rows: 100, examples: pairs.jsonl}\nreward_model: scores\nsignals: [needs_citations]\n")
    again, _ = answers_from_document(parse_yaml(str(answers_document(answers)).replace("'", '"'), name="again"), FACTS)
    assert again == answers


def test_null_is_not_stated():
    """A key that is null counts as left out."""
    answers, _ = from_text("task: qa\nbudget: null\ndata: {path: null}\ngpu: null\n")
    assert set(answers.known) == {"task"}


def test_all_faults_come_together_with_their_places():
    """One message names every fault of the file, each with line and column."""
    with pytest.raises(InputError) as error:
        from_text("task: qq\nbudgt: low\ndata: {rows: -1, knd: paired}\n")
    text = error.value.text()
    assert "answers.yaml:1:7: task: unknown task 'qq'" in text
    assert "answers.yaml:2:1: unknown key 'budgt'" in text
    assert "did you mean 'budget'" in text
    assert "data.rows: -1 is out of range" in text
    assert "unknown data key 'knd'" in text


def test_an_unknown_signal_is_a_warning():
    """A signal nobody knows is named and left out."""
    answers, warnings = from_text("task: qa\nsignals: [facts_change_oft, needs_citations]\n")
    assert answers.signals == ("needs_citations",)
    assert len(warnings) == 1
    assert "did you mean 'facts_change_often'" in warnings[0]


def test_flags_win_over_the_file():
    """A flag replaces the file's answer, and a new card drops the old card's memory."""
    file, _ = from_text("task: qa\nbudget: low\ngpu: {name: RTX 4090, vram_gib: 24}\n")
    flags, _ = answers_from_flags({"budget": "high", "gpu": "H100"}, FACTS)
    merged = merge_answers(file, flags)
    assert (merged.value("task"), merged.value("budget"), merged.value("gpu"), merged.value("gpu_memory_gib")) == ("qa", "high", "H100", None)
    assert merged.known["budget"].origin == "flag"


def test_a_budget_flag_takes_limits():
    """usd=20,hours=6 are limits, not a level."""
    answers, _ = answers_from_flags({"budget": "usd=20,hours=6"}, FACTS)
    assert {key: answer.value for key, answer in answers.known.items()} == {"budget_usd": 20, "budget_hours": 6}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "lo"}, "did you mean 'low'"),
        ({"budget": "usd=many"}, "not a number"),
        ({"tasks": ["legal"]}, "NAME=VALUE is expected"),
        ({"tasks": ["a=x", "a=y"]}, "given twice"),
        ({"tasks": ["a=x", "b=y"], "n_tasks": 3.0}, "n_tasks is 3, but 2 tasks are named"),
        ({"signals": ["nonsense"]}, "unknown signal"),
        ({"data_rows": 1.5}, "not a whole number"),
    ],
)
def test_a_wrong_flag_says_what_is_allowed(flags, said):
    """Each contradictory or unreadable flag is refused with a reason."""
    with pytest.raises(InputError, match=said):
        answers_from_flags(flags, FACTS)
