"""A stage that several processes train: the training and the judging are two children of `advise
run`. The stand-in trainer leaves what several real processes leave.
"""

import json

import pytest

from advisor.ground.errors import Stopped
from tests.launch.conftest import fails, run, start

STAGE = "out/stages/sft"


def parts(shop):
    return (shop / STAGE / "parts").read_text().split()


@pytest.mark.parametrize(
    ("mode", "wanted", "sizes"),
    [
        ("parts", ["whole", "judge"], []),
        # Memory that runs out while judging: a smaller micro-batch, and nothing is trained again.
        ("parts-memory", ["whole", "judge", "judge"], [2]),
        # The judging finds that what was trained is of another plan.
        ("parts-other", ["whole", "judge", "whole", "judge"], []),
    ],
)
def test_the_training_comes_first_and_the_judging_after_it(shop, monkeypatch, mode, wanted, sizes):
    """Two children, one result."""
    monkeypatch.setenv("STAND_IN", mode)
    record = run(output="out").record
    assert (record.status, parts(shop)) == ("done", wanted)
    assert [one.micro_batch_size for one in record.adjusted] == sizes


def test_a_failure_of_the_judging_is_recorded_and_only_judging_goes_on(shop, monkeypatch):
    """Its error is told as that of any trainer; the same command judges, and trains nothing."""
    assert "the tuned model never stops" in fails("parts-fail", output="out")
    assert json.loads((shop / "out" / "run.json").read_text())["status"] == "failed"
    monkeypatch.setenv("STAND_IN", "parts")
    assert run("out").status == "done"
    assert parts(shop) == ["whole", "judge", "judge"]


def test_a_stop_between_the_two_loses_no_step(shop, monkeypatch):
    """The run ends with 130; judging is what is left."""
    process = start(shop, "parts-stopped", output="out")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == Stopped.exit_code
    assert "stage sft: stopped before its result was judged: no step is lost" in said
    assert json.loads((shop / "out" / "run.json").read_text())["status"] == "stopped"
    monkeypatch.setenv("STAND_IN", "parts")
    assert run("out").status == "done"
    assert parts(shop) == ["whole", "judge"]
