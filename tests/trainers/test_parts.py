"""What a part of a stage without steps shows while it is at work."""

from __future__ import annotations

import io
import sys
import time

import pytest

pytest.importorskip("torch")

from trainers.frame import parts as module
from trainers.frame.parts import AFTER, BEFORE, LOAD, TRAIN, Parts, Wait, followed


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_long_part_says_from_time_to_time_how_many_rows_are_done(monkeypatch, capsys):
    """Loading says that it goes on, measuring how far it is; the steps have their own display."""
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.02)
    with Parts("sft", shown=True) as parts:
        parts.begin(LOAD)
        time.sleep(0.1)
        parts.begin(BEFORE)
        for _ in followed([1, 2, 3], "rows"):
            time.sleep(0.06)
        parts.begin(TRAIN)
        assert Wait.at_work is None
        assert list(followed([1, 2], "rows")) == [1, 2]
    said = capsys.readouterr().err
    assert "sft: loading rows and model: under 1 s so far" in said
    assert "sft: measuring the model before training: 2 of 3 rows, under 1 s so far" in said
    assert parts.times().before_s >= 0.18


def test_a_terminal_gets_a_bar_which_goes_with_an_error(monkeypatch):
    """Nothing of it stays: no bar, no hidden cursor, the stream as it was."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    def fail_on_the_way():
        with Parts("sft", shown=True) as parts:
            parts.begin(AFTER)
            for place in followed(range(0, 16, 4), "sample answers", each=4, of=16):
                if place == 8:
                    assert Wait.at_work is not None
                    task = Wait.at_work.bar.tasks[0]
                    assert (task.completed, task.total) == (8, 16)
                    raise ValueError("in the midst")

    with pytest.raises(ValueError, match="in the midst"):
        fail_on_the_way()
    assert Wait.at_work is None
    assert sys.stderr is screen
    assert screen.getvalue().count("\x1b[?25h") == screen.getvalue().count("\x1b[?25l") > 0


def test_who_does_not_show_says_nothing(capsys):
    """Other processes than the main one."""
    with Parts("sft", shown=False) as parts:
        parts.begin(LOAD)
        assert Wait.at_work is None
    assert capsys.readouterr().err == ""
