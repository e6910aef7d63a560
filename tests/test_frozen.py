"""Frozen outputs (tools/frozen): the recorded situations, and how a change is found."""

import json

import pytest
import yaml

from tests.conftest import ROOT
from tests.frozen import specs
from tests.trials.trial import write_files
from tools.frozen.comparing import changes, table
from tools.frozen.situations import document_of, same_machine, situation_line

FROZEN = ROOT / "tests" / "frozen"
LINES = (FROZEN / "situations.txt").read_text("utf-8").splitlines()
BLOCKS = [range(start, start + 15) for start in range(0, 300, 15)]  # for several workers


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_recorded_situations_are_answered_as_before(block, tmp_path, monkeypatch):
    """`python -m tools.frozen` names the keys that changed; with --write it records the change."""
    assert len(LINES) == 300
    write_files(yaml.safe_load((FROZEN / "cases.yaml").read_text("utf-8")), tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in (LINES[number] for number in block):
        number, answers, _ = line.split(" | ", 2)
        with same_machine():
            document = document_of(json.loads(answers))
        assert situation_line(int(number), json.loads(answers), document) == line


def test_recorded_specs_and_plans_are_estimated_as_before(tmp_path, monkeypatch):
    """Of every model and every GPU, under settings of all kinds: the document and its text."""
    write_files(yaml.safe_load((FROZEN / "cases.yaml").read_text("utf-8")), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert list(specs.lines()) == (FROZEN / "estimates.txt").read_text("utf-8").splitlines()


def found(before, after):
    return list(changes(before, after, key="x", at="case"))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        # Entries of a list are told apart by their names, whatever their order.
        (
            {"fits": [{"name": "a", "gib": 1.0}, {"name": "b", "gib": 2.0}], "why": "w"},
            {"fits": [{"name": "a", "gib": 1.0 + 1e-12}, {"name": "b", "gib": 2.5}]},
            [("x.fits[].gib", 2.0, 2.5), ("x.why", "w", "(absent)")],
        ),
        # The lines below an inserted one are the same lines.
        (["a", "b", "c"], ["a", "new", "b", "c"], [("x[]", "(absent)", "new")]),
    ],
)
def test_a_changed_number_and_a_lost_key_are_named(before, after, named):
    """With what they were and what they are."""
    assert [(one.key, one.before, one.after) for one in found(before, after)] == named


def test_only_a_change_with_a_reason_may_stay():
    """A reason may be bound to a text that has to be seen, and says nothing of other changes."""
    change = found({"terms": ["1 GB", "x"]}, {"terms": ["2 GB", "x"]})
    reasons = [{"key": "x.terms[]", "text": r"\d GB", "because": "rounded"}]
    told, without = table(change, reasons)
    assert ("x.terms[]: rounded" in told, without) == (True, 0)
    assert table(change, [{**reasons[0], "text": "hours"}])[1] == 1
    assert table(change, [{**reasons[0], "key": "y.*"}])[1] == 1
