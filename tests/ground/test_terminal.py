"""Messages for the person, on a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from advisor.ground.terminal import print_message

SENTENCE = "about 8 min in all (load 9 s, measuring before 54 s, training 6 min, afterwards 38 s)"
COMMAND = "advise run plan.yaml --output runs/a-folder-with-a-name-as-long-as-this-one-here-is"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")


def printed(monkeypatch, stream, text):
    monkeypatch.setattr(sys, "stderr", stream)
    print_message(text)
    return stream.getvalue()


def test_a_message_is_broken_between_words_on_a_terminal(monkeypatch, columns):
    """No word is cut in two, and none is lost."""
    said = printed(monkeypatch, Terminal(), SENTENCE)
    assert max(map(len, said.splitlines())) <= 40
    assert said.split() == SENTENCE.split()


@pytest.mark.parametrize("line", [f"  {COMMAND}", f"resume with: {COMMAND}"])
def test_a_command_stays_on_one_line(monkeypatch, columns, line):
    """It is copied."""
    assert printed(monkeypatch, Terminal(), line) == f"{line}\n"


def test_a_log_gets_a_message_as_one_line(monkeypatch, columns):
    """Programs that read it look for whole lines."""
    assert printed(monkeypatch, io.StringIO(), SENTENCE) == f"{SENTENCE}\n"
