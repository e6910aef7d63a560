"""What a part of a stage shows while it is at work."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("torch")

from advisor.ground.progress import board, track
from trainers.say.progress import BEFORE, LOAD, TRAIN, Parts


def test_a_part_is_said_and_is_a_wait(capsys):
    """What goes on inside it is a wait inside; the steps are a wait of their own."""
    with Parts("sft", shown=True) as parts:
        parts.begin(LOAD)
        assert [wait.what for wait in board.waits] == ["loading rows and model"]
        parts.begin(BEFORE)
        for _ in track([1, 2, 3], "losses"):
            assert [wait.what for wait in board.waits] == [
                "measuring the model before training",
                "losses",
            ]
            time.sleep(0.02)
        parts.begin(TRAIN)
        assert board.waits == []
    said = capsys.readouterr().err
    assert said == "sft: loading rows and model\nsft: measuring the model before training\n"
    assert parts.times().before_s >= 0.06


def test_an_error_leaves_no_wait_behind():
    """Nothing is shown once the stage has ended, however it did."""

    def fail_on_the_way():
        with Parts("sft", shown=True) as parts:
            parts.begin(BEFORE)
            for place in track(range(0, 16, 4), "sample answers", each=4, of=16):
                if place == 8:
                    raise ValueError("in the midst")

    with pytest.raises(ValueError, match="in the midst"):
        fail_on_the_way()
    assert board.waits == []


def test_who_does_not_show_says_nothing(capsys):
    """Other processes than the main one."""
    with Parts("sft", shown=False) as parts:
        parts.begin(LOAD)
    assert capsys.readouterr().err == ""
