"""Contradictions are refused, all in one message, and no answer contradicts what was stated."""

import json
import random

import pytest

from advisor.advice.facts import can_be_stated, stated_values
from tests.advice.situations import RULES, random_advices
from tests.conftest import scaled


def signal(*names):
    return tuple(part for name in names for part in ("--signal", name))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (signal("prompt_meets_quality_bar", "base_model_never_succeeds"),
         "prompt_meets_quality_bar is yes (--signal) and base_model_never_succeeds is yes (--signal)"),
        (signal("prompt_meets_quality_bar", "prompting_tried=no"),
         "prompt_meets_quality_bar is yes (--signal) and prompting_tried is no (--signal)"),
        (signal("teacher_logs_available", "teacher_available=no"),
         "teacher_logs_available is yes (--signal) and teacher_available is no (--signal)"),
        (("--teacher", "none", *signal("teacher_logs_available")),
         "teacher_logs_available is yes (--signal) and teacher is none (--teacher)"),
        (("--teacher", "none", *signal("teacher_available")),
         "teacher is none (--teacher) and teacher_available is yes (--signal)"),
        (("--teacher", "texts", *signal("teacher_available=no")),
         "teacher is texts (--teacher) and teacher_available is no (--signal)"),
        (("--data-kind", "none", "--data-rows", 5000),
         "data_kind is none (--data-kind) and data_rows is 5000 (--data-rows)"),
        (("--data-kind", "none", "--data-tokens", 5000),
         "data_kind is none (--data-kind) and data_tokens is 5000 (--data-tokens)"),
        (("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 0),
         "data_rows is 5000 (--data-rows) and data_tokens is 0 (--data-tokens)"),
        (("--data-kind", "prompts_with_verifier", *signal("verifiable_rewards_available=no")),
         "data_kind is prompts_with_verifier (--data-kind) and verifiable_rewards_available is no"),
        (signal("base_model_untuned=no", "instruct_model_start=no"),
         "base_model_untuned is no (--signal) and instruct_model_start is no (--signal)"),
        (("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 60),
         "data_rows is 5000 (--data-rows) and data_tokens is 60 (--data-tokens)"),
        (signal("rag_tried", "rag_tried=no"), "--signal rag_tried: is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_stated_together_is_refused(call, flags, named):
    """With both sides, where they come from, and why."""
    code, out, err = call("--json", "--task", "qa", "--gpu", "unknown", *flags)
    assert (code, bool(json.loads(out)["error"]), named in err) == (2, True, True)
    assert "take one of them back" in err


# Several faults of one answer, as an answers file and as flags, and what each is named by.
FAULTS = {
    "budget": ("budget: {usd: -3}", ("--budget", "usd=-3"), "is -3"),
    "gpu": ("gpu: {name: RTX 4090, count: 0}", ("--gpu", "RTX 4090", "--gpus", 0), "is 0"),
    "unknown gpu": (None, ("--gpu", "RTX 9090"), "unknown GPU 'RTX 9090'"),
    "data": ("data: {path: none.jsonl}", ("--data", "none.jsonl"), "none.jsonl: no such file"),
    "signals": ("signals: {prompt_meets_quality_bar: true, prompting_tried: false}",
                signal("prompt_meets_quality_bar", "prompting_tried=no"), "this cannot be"),
    "priority": ("priority: speeed", ("--priority", "speeed"), "did you mean 'speed'"),
    "tasks": ("tasks: {a: a.jsonl, b: b.jsonl}\nn_tasks: 5",
              ("--tasks", "a=a.jsonl", "--tasks", "b=b.jsonl", "--n-tasks", 5),
              "n_tasks is 5, but 2 tasks are named"),
    "task": ("task: qua", ("--task", "qua"), "did you mean 'qa'"),
    "model": ("model: [a, b]", ("--model", ""), "model"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(scaled(12)))
def test_faults_of_every_kind_come_together(call, tmp_path, seed):
    """Of values, machine, files and what contradicts what; half in a file, half as flags."""
    draw = random.Random(seed)
    chosen = draw.sample(sorted(FAULTS), draw.randint(2, 5))
    if {"gpu", "unknown gpu"} <= {*chosen}:
        chosen.remove("gpu")  # one machine
    if {"data", "tasks"} <= {*chosen}:
        chosen.remove("data")  # one kind of data
    in_file = [name for name in chosen if FAULTS[name][0] is not None and draw.random() < 0.5]
    file = tmp_path / "answers.yaml"
    file.write_text("".join(f"{FAULTS[name][0]}\n" for name in in_file) or "depth: null\n")
    flags = [part for name in chosen if name not in in_file for part in FAULTS[name][1]]
    code, out, err = call("--json", "--answers", file, *flags)
    assert (code, bool(json.loads(out)["error"])) == (2, True)
    for name in chosen:
        assert FAULTS[name][2] in err, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: unknown\ndata:\n  kind: none\n  rows: 30\nsignals: []\n",
         ["data_kind is none ({file}:4:9) and data_rows is 30 ({file}:5:9)"]),
        ("signals: [instruct_model_start, base_model_untuned]\n",
         ["instruct_model_start is yes ({file}:2:11)"]),
        ("signals: [rag_tried, {prompting_tried: false}]\n", ["{file}:2:22: `signals[1]` is a map"]),
    ],
)  # fmt: skip
def test_a_contradiction_names_line_and_column(call, tmp_path, text, said):
    """Of an answers file, whether its signals are a map or a list."""
    file = tmp_path / "answers.yaml"
    file.write_text(f"task: qa\n{text}")
    code, _, err = call("--json", "--answers", file)
    assert code == 2
    assert all(words.format(file=file) in err for words in said)


def test_a_no_contradicts_no_other_no(call):
    """Except about what must be one of two."""
    signals = [fact.id for fact in RULES.facts.values() if fact.signal]
    denied = [f"{name}=no" for name in signals if name != "instruct_model_start"]
    assert call("--json", "--task", "qa", "--gpu", "unknown", *signal(*denied))[0] == 0


def test_no_change_is_promised_that_contradicts_what_was_stated(situation_files):
    """Whoever says that a teacher's answers are stored is not told what would be without one."""
    looked_at, by_answer = 0, {fact.answer: fact.id for fact in RULES.facts.values() if fact.answer}
    for seed, advice in random_advices(range(scaled(60)), situation_files):
        said = stated_values(advice.situation.answers)
        assert can_be_stated(RULES, said), seed
        for flip in advice.flips:
            change = {by_answer.get(key, key): value for key, value in flip.change.items()}
            assert can_be_stated(RULES, {**said, **change}), (seed, flip.change)
            looked_at += 1
    assert looked_at > scaled(30)
