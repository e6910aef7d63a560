"""A stage that several processes train: the training and the judging are two children of `advise
run`. The stand-in trainer leaves what several real processes leave.
"""

import json

from advisor.ground.errors import Stopped
from tests.launch.conftest import fails, run, start

STAGE = "out/stages/sft"


def parts(shop):
    return (shop / STAGE / "parts").read_text().split()


def test_the_training_comes_first_and_the_judging_after_it(shop, monkeypatch):
    """Two children, one result."""
    monkeypatch.setenv("STAND_IN", "parts")
    assert run(output="out").status == "done"
    assert parts(shop) == ["whole", "judge"]


def test_a_failure_of_the_judging_is_recorded_and_only_judging_goes_on(shop, monkeypatch):
    """Its error is told as that of any trainer; the same command judges, and trains nothing."""
    assert "the tuned model never stops" in fails("parts-fail", output="out")
    assert json.loads((shop / "out" / "run.json").read_text())["status"] == "failed"
    monkeypatch.setenv("STAND_IN", "parts")
    assert run("out").status == "done"
    assert parts(shop) == ["whole", "judge", "judge"]


def test_memory_that_runs_out_while_judging_trains_nothing_again(shop, monkeypatch):
    """The smaller micro-batch is written down, and the judging is started again with it."""
    monkeypatch.setenv("STAND_IN", "parts-memory")
    record = run(output="out").record
    assert record.status == "done"
    assert [one.micro_batch_size for one in record.adjusted] == [2]
    assert parts(shop) == ["whole", "judge", "judge"]


def test_what_was_trained_for_another_plan_is_trained_again(shop, monkeypatch):
    """If the judging finds that the record is of something else, the training follows."""
    monkeypatch.setenv("STAND_IN", "parts-other")
    assert run(output="out").status == "done"
    assert parts(shop) == ["whole", "judge", "whole", "judge"]


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
