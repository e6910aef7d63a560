"""What an answer warns of, and how sure it is: what it rests on, how clear it is, and who disagrees."""

import json

import pytest

from advisor.advice.why import GRADES
from advisor.render.answer.page import first_screen
from advisor.render.answer.why import certainty_lines
from tests.advice.situations import RULES, advised, asked, random_advices
from tests.conftest import scaled

FILE = """
overlay: acme
sources: {{us: {{title: our handbook}}}}
tables:
  {table}:
    - {{id: acme/heard, kind: warn, when: {{}}, then: {{say: this is heard}}, because: a test, sources: [us]}}
"""


@pytest.mark.parametrize("table", RULES.tables.values(), ids=lambda table: table.id)
def test_a_warning_of_a_table_is_shown_or_refused(call, tmp_path, table):
    """A rule of one's own warns once, with its id; a table asked for each scheme refuses it."""
    file = tmp_path / "own.yaml"
    file.write_text(FILE.format(table=table.id))
    code, out, err = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", file)
    if table.per:
        assert (code, f"table '{table.id}' rules schemes out" in err) == (2, True)
    else:
        assert (code, json.loads(out)["warnings"].count("this is heard (acme/heard)")) == (0, 1)


@pytest.mark.parametrize(
    ("task", "kind", "rows", "said"),
    [
        ("classification", "raw_text", 50, "no categories"),
        ("tool_use", "raw_text", 300, "no calls"),
        ("chat_assistant", "raw_text", 300, "no replies"),
        ("generation", "preference", 300, "too few"),
    ],
)
def test_wrong_data_are_the_first_warning(call, task, kind, rows, said):
    """Unsuited or too few data come before every other warning, and each warning once."""
    _, out, err = call(
        "--json", "--task", task, "--data-kind", kind, "--data-rows", rows, "--gpu", "RTX 4090"
    )
    warnings = json.loads(out)["warnings"]
    assert said in warnings[0]
    assert all(err.count(f"warning: {warning}") == 1 for warning in warnings)


def test_a_guess_is_told_once(call):
    """A model of which the size alone is known is guessed, and that is one warning."""
    code, out, _ = call("--json", "--task", "qa", "--model-params-b", "7", "--gpu", "RTX 4090")
    assert (code, sum("shape guessed" in text for text in json.loads(out)["warnings"])) == (0, 1)


TRAINS = ("--task", "qa", "--data-kind", "paired", "--data-rows", 500, "--model", "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--gpu", "none"), True),
        *((("--gpu", gpu), False) for gpu in ("RTX 4090", "T4", "unknown", "M3 Max")),
        # Needs no GPU.
        (("--gpu", "none", "--signal", "prompt_meets_quality_bar"), False),
    ],
)
def test_free_gpus_are_named_where_a_processor_would_train_alone(call, more, named):
    """Not where a GPU is there or none is known of, nor where nothing is trained."""
    code, out, _ = call("--json", *TRAINS, *more)
    said = " ".join(json.loads(out)["warnings"])
    assert code == 0
    assert (("Kaggle (2 x T4" if named else "cost nothing") in said) is named
    # NVIDIA's and the processor are what was tried.
    assert ("never run on an A" in said) is ("M3 Max" in more)


@pytest.mark.parametrize(("more", "is_guessed"), [((), True), (("--gpu", "none"), False)])
def test_a_machine_nobody_named_is_said_to_be_the_one_meant(call, monkeypatch, more, is_guessed):
    """Where no GPU was stated and none is found, the answer is for a processor by a guess."""
    processor = asked(gpu="none").hardware
    monkeypatch.setattr("advisor.situation.build.probe", lambda: processor)
    code, out, _ = call("--json", *TRAINS, *more)
    said = "no GPU was stated, and none was found here" in " ".join(json.loads(out)["warnings"])
    assert (code, said) == (0, is_guessed)


def test_evidence_is_that_of_the_weakest_rule_and_doubts_make_it_weak(situation_files):
    """Over random situations: the two scales say what their parts say."""
    strengths = set()
    for _, advice in random_advices(range(scaled(60)), situation_files):
        found = advice.certainty
        rules = [RULES.rule(rule_id) for rule_id in advice.decided_by]
        words = [GRADES[rule.confidence][0] for rule in rules]
        assert found.evidence == max(words, key=["high", "medium", "low"].index, default="low")
        assert (found.strength == "weak") == bool(found.doubts)
        if found.conflicts:
            assert "experts disagree here" in found.doubts
        strengths.add(found.strength)
    assert strengths == {"weak", "strong"}


def test_experts_who_disagree_are_named(approved):
    """The other side with its source, and the recommendation is weak for it alone."""
    preference = {
        "task": "customer_service", "data_kind": "preference", "data_rows": 30_000, "budget": "high",
        "depth": "style", "serve_with": "vllm", "priority": "quality", "teacher": "none",
        "prompting_tried": True, "instruct_model_start": True, "model": "Qwen/Qwen3-8B",
    }  # fmt: skip
    advice = advised(**preference)
    found = advice.certainty
    (short,) = first_screen(advice).labelled["Unsure"]
    approved([found.strength, short.text, found.conflicts, certainty_lines(found)])
