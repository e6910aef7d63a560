"""`advise run` of a run that is at work already shows how far it is, and disturbs nothing."""

from __future__ import annotations

import json
import os
import time

import pytest
from msgspec.structs import replace

from advisor.commands.training import follow
from advisor.ground.progress import View, Wait, write_view
from advisor.launch.folder import RunIsLive, read_live, refuse_live
from tests.launch.conftest import alive, run, start, wait_for

VIEW = View(
    label="sft",
    waits=[
        Wait("training", 108, "steps", -20.0, 12, 0, "loss 1.234", 120.0),
        Wait("generating answers", 64, "answers", -4.0, 16, 0),
    ],
    memory=(int(11.8 * 2**30), 24 * 2**30),
    now_s=0.0,
)
SENTENCE = (
    "stage sft (1 of 1): training: 12 of 108 steps, loss 1.234, 2 min left; generating answers: 16"
    " of 64 answers, 4.0 answers/s, 12 s left; memory 11.8 of 24.0 GiB"
)


@pytest.fixture
def live(shop, monkeypatch):
    """A run at work in the folder `out`, whose trainer says where it is; its process."""
    parent = start(shop, "wait", output="out")
    wait_for((shop / "out" / "stages" / "sft" / "ready").exists)
    monkeypatch.setattr(time, "time", lambda: 1e9)  # no time passes for those who look
    write_view(shop / "out", VIEW)
    yield parent
    parent.terminate()
    parent.communicate(timeout=20)


@pytest.fixture
def found(live, shop):
    """What the second call of `advise run` raises."""
    with pytest.raises(RunIsLive) as raised:
        run(output="out")
    return raised.value


def test_how_far_it_is_comes_from_what_the_trainer_says(live, shop):
    """Inside a step, between two stages, and before the trainer's first word."""
    seen = read_live(shop / "out")
    assert (seen.process, seen.stage.name, seen.sentence) == (live.pid, "sft", SENTENCE)
    between = replace(seen, record=replace(seen.record, stages=()))
    assert replace(between, view=None).sentence == "between two stages"
    assert between.sentence.startswith("training: 12 of 108 steps")
    for file in (shop / "out").glob(".advise-tmp-progress*"):
        file.unlink()
    seen = read_live(shop / "out")
    assert seen.sentence == "stage sft (1 of 1): it has just begun"
    assert seen.to_dict()["step"] is None


def test_how_far_it_is_and_how_to_stop_it_are_said(live, found, capsys):
    """And the run goes on; who looked a moment too late gets it, to print what came of it."""
    assert follow(found) is None
    line, stop = capsys.readouterr().err.splitlines()
    assert line == f"out is running (process {live.pid}): {SENTENCE}"
    assert stop.endswith(f"kill {live.pid}")
    assert alive(live.pid)
    live.terminate()
    live.communicate(timeout=20)
    assert follow(found).status == "stopped"


def test_as_json_it_is_one_document(live, found, capsys):
    """The record of the run, with its progress beside it."""
    assert follow(found, as_json=True) is None
    out = json.loads(capsys.readouterr().out)
    assert out["status"] == "running"
    assert out["progress"] == {
        "process": live.pid, "stage": "sft", "doing": ["training", "generating answers"],
        "step": 12, "total": 108, "eta_s": 120.0, "memory_bytes": VIEW.memory[0],
        "memory_limit_bytes": VIEW.memory[1], "text": SENTENCE,
    }  # fmt: skip


def test_a_folder_nobody_works_in_is_no_live_run(shop, monkeypatch):
    """Neither a finished run, nor a killed one whose lock file names a process that is gone."""
    monkeypatch.setenv("STAND_IN", "ok")
    assert run(output="out").status == "done"
    assert read_live(shop / "out") is None
    refuse_live(shop / "out")
    (shop / "out" / ".lock").write_text(f"{os.getpid()}\n")
    refuse_live(shop / "out")
    assert read_live(shop / "missing") is None
