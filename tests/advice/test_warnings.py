"""What an answer warns of: rules of whatever table, and a machine without a GPU."""

import json

import pytest

from advisor.ground.types import Answer, AnswerSet
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of

SHOWN = [table.id for table in load_rules().tables.values() if not table.per]
ASKED = [table.id for table in load_rules().tables.values() if table.per]
FILE = """
overlay: acme
sources: {{us: {{title: our handbook}}}}
tables:
  {table}:
    - {{id: acme/heard, kind: warn, when: {{}}, then: {{say: this is heard}}, because: a test, sources: [us]}}
"""


@pytest.mark.parametrize("table", SHOWN)
def test_a_warning_of_every_table_is_shown(call, tmp_path, table):
    """The rule of a file of one's own warns in the answer, once, with its id."""
    (tmp_path / f"{table}.yaml").write_text(FILE.format(table=table))
    code, out, _ = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", f"{table}.yaml")
    assert code == 0
    assert json.loads(out)["warnings"].count("this is heard (acme/heard)") == 1


@pytest.mark.parametrize("table", ASKED)
def test_a_warning_that_nothing_would_show_is_refused(call, tmp_path, table):
    """A table that is asked for each scheme has nobody to warn, and the loader says so."""
    (tmp_path / f"{table}.yaml").write_text(FILE.format(table=table))
    code, _, err = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", f"{table}.yaml")
    assert code == 2
    assert f"table '{table}' rules schemes out" in err


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
    """Stated data that do not suit the task, or are too few, come before every other warning, and
    each warning comes once.
    """
    _, out, err = call(
        "--json", "--task", task, "--data-kind", kind, "--data-rows", rows, "--gpu", "RTX 4090"
    )
    warnings = json.loads(out)["warnings"]
    assert said in warnings[0]
    assert all(err.count(f"warning: {warning}") == 1 for warning in warnings)


def test_a_guess_is_told_once(call):
    """A model of which the size alone is known is guessed, and that is one warning."""
    code, out, _ = call("--json", "--task", "qa", "--model-params-b", "7", "--gpu", "RTX 4090")
    assert code == 0
    assert sum("shape guessed" in text for text in json.loads(out)["warnings"]) == 1


TRAINS = ("--task", "qa", "--data-kind", "paired", "--data-rows", 500, "--model", "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--gpu", "none"), True),
        *((("--gpu", gpu), False) for gpu in ("RTX 4090", "T4", "unknown", "M3 Max")),
        (("--gpu", "none", "--signal", "prompt_meets_quality_bar"), False),  # needs no GPU
    ],
)
def test_free_gpus_are_named_where_a_processor_would_train_alone(call, more, named):
    """Not where a GPU is there or none is known of, nor where nothing is trained."""
    code, out, _ = call("--json", *TRAINS, *more)
    said = " ".join(json.loads(out)["warnings"])
    assert code == 0
    assert (("Kaggle (2 x T4" if named else "cost nothing") in said) is named


def test_a_machine_nobody_named_is_said_to_be_the_one_meant(call, monkeypatch):
    """Where no GPU was stated and none is found, the answer is for a processor by a guess."""
    processor = situation_of(AnswerSet(known={"gpu": Answer(value="none", origin="file")})).hardware
    monkeypatch.setattr("advisor.situation.build.probe", lambda: processor)
    guessed = "no GPU was stated, and none was found here"
    for more, is_guessed in ((), True), (("--gpu", "none"), False):
        code, out, _ = call("--json", *TRAINS, *more)
        assert (code, guessed in " ".join(json.loads(out)["warnings"])) == (0, is_guessed)
