"""Answers: one list of facts, three forms, one precedence."""

import json

import pytest

from advisor.ground.errors import InputError
from advisor.ground.yaml_files import parse_yaml
from advisor.ruleset.facts import load_facts
from advisor.situation.answers import (
    answers_document,
    answers_from_document,
    answers_from_flags,
    merge_answers,
)

FACTS = load_facts()


def from_text(text):
    return answers_from_document(parse_yaml(text, name="answers.yaml"), FACTS)


def test_a_file_fills_every_fact_of_the_contract():
    """All keys of the documented answers file are read."""
    answers, warnings = from_text(
        "task: customer_service\nbudget: {usd: 50, hours: 8}\ndepth: style\ndata: {path:"
        " train.jsonl, examples: pairs.jsonl, kind: paired, rows: 5000, tokens:"
        " null}\nreward_model: rm\nmodel: Qwen/Qwen3-8B\nmodel_params_b: 8.2\ngpu: {name: RTX 4090,"
        " vram_gib: 24, count: 2}\nserve_with: vllm\npriority: quality\nsignals:"
        " [facts_change_often, prompting_tried]\n"
    )
    assert not warnings
    assert {key: answer.value for key, answer in answers.known.items()} == {
        "task": "customer_service", "budget_usd": 50, "budget_hours": 8, "depth": "style",
        "data_path": "train.jsonl", "data_examples": "pairs.jsonl", "reward_model": "rm",
        "data_kind": "paired", "data_rows": 5000,
        "model": "Qwen/Qwen3-8B", "model_params_b": 8.2, "gpu": "RTX 4090", "gpu_memory_gib": 24,
        "gpus": 2, "serve_with": "vllm", "priority": "quality",
        "signals": ("facts_change_often", "prompting_tried"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "signals", ["[needs_citations]", "{needs_citations: true, rag_tried: false}"]
)
def test_an_answers_file_is_lossless(signals):
    """What is read can be written and read again."""
    answers, _ = from_text(
        "task: qa\nbudget: low\ngpu: RTX 4090\nreward_model: rm\ndata: {rows: 100, examples:"
        f" pairs.jsonl}}\nsignals: {signals}\n"
    )
    assert from_text(json.dumps(answers_document(answers)))[0] == answers


def test_a_signal_says_yes_or_no():
    """A map of signals reads true and false, and a denied one is known until a flag says yes."""
    answers, _ = from_text(
        "task: qa\nsignals: {rag_tried: true, needs_citations: true, prompt_meets_quality_bar:"
        " false, access_control: false, latency_critical: null}\n"
    )
    assert answers.signals == ("rag_tried", "needs_citations")
    assert {name: answers.value(name) for name in ("prompt_meets_quality_bar", "access_control",
    "latency_critical")} == {
        "prompt_meets_quality_bar": False, "access_control": False, "latency_critical": None,
    }  # fmt: skip
    merged = merge_answers(answers, answers_from_flags({"signals": ["access_control"]}, FACTS))
    assert ("access_control" in merged.signals, merged.value("access_control")) == (True, None)
    for text in ("maybe", "'yes'", "5", "[true]"):
        with pytest.raises(InputError, match=r"`rag_tried` is .*\n  true or false"):
            from_text(f"task: qa\nsignals: {{rag_tried: {text}}}\n")


@pytest.mark.parametrize("nothing", ["[]", "{}", "null"])
def test_null_and_no_signals_state_nothing(nothing):
    """A key that is null counts as left out; an empty list or map of signals states none."""
    text = f"task: qa\nbudget: null\ndata: {{path: null}}\ngpu: null\nsignals: {nothing}\n"
    found, warnings = from_text(text)
    assert (set(found.known) - {"signals"}, found.signals, not warnings) == ({"task"}, (), True)


def test_all_faults_come_together_with_their_places(approved):
    """One message names every fault of the file, each with line and column."""
    with pytest.raises(InputError) as error:
        from_text("task: qq\nbudgt: low\ndata: {rows: -1, knd: paired}\n")
    approved(error.value.text())


@pytest.mark.parametrize(
    "text",
    ["priority: [quality, cost]", "task: [qa]", "budget: [low]", "data: {kind: [paired]}",
     "depth: {a: 1}"],
)  # fmt: skip
def test_several_values_where_one_is_wanted_are_refused(text):
    """A list or a map is no choice, and the values that are stand beside it."""
    with pytest.raises(InputError, match=r"answers.yaml:1:\d+: `\w+` is a (list|map)\n  one of "):
        from_text(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rag_tryed", "did you mean 'rag_tried'?"),
        ("quantum", "`advise rules facts` lists them all"),
    ],
)
def test_an_unknown_signal_is_a_warning(name, said):
    """It is named and left out, with the nearest signal; without one, where all of them stand."""
    answers, (warning,) = from_text(f"task: qa\nsignals: [{name}, needs_citations]\n")
    assert (answers.signals, said in warning) == (("needs_citations",), True)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        # The name of a fact, its flag or its last part at the top of the file.
        ("rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("data_rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("data-rows: 500", "write it inside `data`: `data: {rows: ...}`"),
        ("vram_gib: 24", "write it inside `gpu`: `gpu: {vram_gib: ...}`"),
        ("gpu-memory: 24", "write it inside `gpu`: `gpu: {vram_gib: ...}`"),
        ("facts_change_often: true", "it is a signal: `signals: [facts_change_often]`"),
        ("n-tasks: 3", "write `n_tasks`"),
        # Amounts as people write them.
        ("data: {rows: '500'}", "remove the quotes"),
        ("data: {rows: thousands}", ""),
        ("data: {rows: 5k}", "write one number in digits, without quotes"),
        ("data: {rows: '1,500'}", "write one number in digits, without quotes"),
        ("data: {rows: ~2M}", "write one number in digits, without quotes"),
        ("data: {rows: 1000-5000}", "write one number in digits, without quotes"),
    ],
)
def test_what_was_meant_is_said(line, hint):
    """A fact in the wrong place is told its own, a number in words is answered with the number."""
    with pytest.raises(InputError) as error:
        from_text(f"task: qa\n{line}\n")
    assert [fault.hint for fault in error.value.faults] == [hint]


def test_flags_win_over_the_file():
    """A flag replaces the file's answer, a new card its memory; usd and hours are limits."""
    file, _ = from_text("task: qa\nbudget: low\ngpu: {name: RTX 4090, vram_gib: 24}\n")
    merged = merge_answers(file, answers_from_flags({"budget": "high", "gpu": "H100"}, FACTS))
    found = [merged.value(name) for name in ("task", "budget", "gpu", "gpu_memory_gib")]
    assert (found, merged.known["budget"].origin) == (["qa", "high", "H100", None], "flag")
    known = answers_from_flags({"budget": "usd=20,hours=6"}, FACTS).known
    assert {key: one.value for key, one in known.items()} == {"budget_usd": 20, "budget_hours": 6}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "lo"}, "did you mean 'low'"),
        ({"budget": "usd=many"}, "--budget.usd is 'many'\n  a number of US dollars"),
        ({"tasks": ["legal"]}, "NAME=VALUE is expected"),
        ({"tasks": ["a=x", "a=y"]}, "given twice"),
        ({"tasks": ["a=x", "b=y"], "n_tasks": 3.0}, "n_tasks is 3, but 2 tasks are named"),
        ({"signals": ["nonsense"]}, "unknown signal"),
        ({"data_rows": 1.5}, "--data-rows is 1.5\n  a whole number of rows"),
    ],
)
def test_a_wrong_flag_says_what_is_allowed(flags, said):
    """Each contradictory or unreadable flag is refused with a reason."""
    with pytest.raises(InputError, match=said):
        answers_from_flags(flags, FACTS)
