"""How much data each objective wants."""

import pytest

from advisor.data.amounts import compare_amounts, data_requirements, in_words, shortages, verdict
from advisor.data.measure import trainable_on
from advisor.ground.resources import rules_dir
from advisor.ground.types import DataProfile, TokenStats
from advisor.ground.yaml_files import read_yaml
from advisor.methods import objectives
from advisor.methods.model import DATA_KINDS
from advisor.ruleset.facts import load_facts


def test_every_objective_has_an_amount_with_a_source():
    """No objective is left out, every source is known, and the numbers rise."""
    assert set(data_requirements()) == {*objectives(), "classification"}
    for amount in data_requirements().values():
        assert 0 < amount.too_few <= amount.usual[0] < amount.usual[1]
        assert amount.sources
        assert all(source.title for source in amount.sources)


def test_kinds_and_objectives_agree_with_the_rules():
    """What a kind can train is what the objectives' own files say they train on."""
    stated = {kind: set() for kind in DATA_KINDS}
    files = sorted((rules_dir() / "objectives").glob("*.yaml"))
    assert len(files) == len(objectives())
    for path in files:
        entry = read_yaml(path).data
        for kind in entry["trains_on"]:
            stated[kind].add(entry["id"])
    assert {kind: set(trainable_on(kind)) for kind in DATA_KINDS} == stated
    assert set(DATA_KINDS) == set(load_facts()["data_kind"].values) - {"none"}
    assert all(trainable_on(kind) for kind in DATA_KINDS)


def test_what_is_too_little_is_told_by_objective():
    """Each objective that wants more rows, in words; of an unknown amount nothing."""
    found = shortages(rows=300, tokens=None)
    assert (
        found["dpo"] == "300 rows are too few: below 500 it seldom works; 5,000 to 60,000 are usual"
    )
    assert not {"sft", "grpo", "cpt"} & set(found)
    assert shortages(rows=None, tokens=None) == {}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (10, "too_few"),
        (49, "too_few"),
        (50, "thin"),
        (499, "thin"),
        (500, "usual"),
        (10_000, "usual"),
        (10_001, "plenty"),
        (None, "unknown"),
    ],
)
def test_rows_are_judged_against_the_range(rows, expected):
    """Below 50 examples is documented to fail, 500 to 10,000 is usual (rules/data/amounts.yaml)."""
    assert verdict(rows, data_requirements()["sft"]) == expected


def test_text_is_counted_in_tokens():
    """Continued pre-training is measured in tokens, other objectives in rows."""
    tokens = TokenStats(
        total=200_000_000, mean=1, p50=1, p90=1, p95=1, p99=1, longest=1, counted_by="words"
    )
    profile = DataProfile(
        path="a",
        kind="raw_text",
        format="text",
        mapping={},
        rows=7,
        tokens=tokens,
        objectives=("cpt",),
    )
    row = compare_amounts(profile)[0]
    assert (row["unit"], row["has"], row["verdict"]) == ("tokens", 200_000_000, "usual")
    assert in_words(row) == "200M tokens, within the usual 125M to 10B"
    assert row["sources"]
