"""The wizard in a real pseudo-terminal, around hand-made advice (tests/wizard/driver.py)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")
DRIVER = Path(__file__).parent / "driver.py"
DOWN, UP, ENTER, CTRL_C = "\x1b[B", "\x1b[A", "\r", "\x03"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start the driver in a terminal of a given size; every child is ended with the test."""
    children = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")

    def spawn(*arguments: str, rows: int = 40, columns: int = 80, **environment: str):
        # PROMPT_TOOLKIT_NO_CPR: nobody answers the question where the cursor is.
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **environment,
        }
        child = pexpect.spawn(
            sys.executable,
            [str(DRIVER), *arguments],
            env=env,
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=30,
        )
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def ended(child) -> int:
    """The exit code after the program ended by itself."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def answer_all(child) -> None:
    """Write texts, a data file, and I don't know for the rest: Enter alone."""
    for question, keys in (
        ("What should the model do for you", DOWN * 5 + ENTER),
        ("Where are your examples", ENTER),  # the one data file that is here
        ("What should change", ENTER),
        ("How much may it cost", ENTER),
        ("Which model do you want", ENTER),
        ("Which graphics card", ENTER),
        ("Where will the finished model run", ENTER),
        ("What matters most", ENTER),
    ):
        child.expect(question)
        child.send(keys)


def test_from_the_first_question_to_the_run(start):
    """Probe, questions, first screen, menu, run: one way through, exit 0."""
    child = start("scenario_5", "--plan")
    child.expect("This machine has NVIDIA GeForce RTX 4090")
    answer_all(child)
    child.expect_exact("ANSWERS [('data_path', 'train.jsonl'), ('task', 'generation')]")
    child.expect("Teach Qwen/Qwen3-8B with your 5,000 examples")
    child.expect("Why not ")
    child.expect("What now")
    child.send(DOWN * 5 + ENTER)  # show the plan
    child.expect("model: Qwen/Qwen3-8B")
    child.expect("What now")
    child.send(ENTER)
    child.expect("RUNNING plan.yaml")
    assert ended(child) == 0


def test_ctrl_c_keeps_the_answers_for_the_next_start(start, tmp_path):
    """Exit 130 saying where the answers are; the next start goes on with them."""
    child = start("scenario_5")
    child.expect("What should the model do")
    child.send(DOWN * 5 + ENTER)
    child.expect("Where are your examples")
    child.send(CTRL_C)
    child.expect("your answers are saved in")
    assert ended(child) == 130
    assert len(list((tmp_path / "state" / "finetune-advisor").glob("answers-*.json"))) == 1
    child = start("scenario_5")
    child.expect(r"for this folder: Write texts \(1 question\)")
    child.send(ENTER)
    child.expect("Write texts")
    child.expect("2. Where are your examples")
    child.send(CTRL_C)
    assert ended(child) == 130


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "vt100"}, {"TERM": "linux"}])
def test_other_terminals_work(start, environment):
    """Without colour and on older terminals the same keys lead to the same end."""
    child = start("scenario_5", "--plan", **environment)
    answer_all(child)
    child.expect("other methods: in the menu")
    if "NO_COLOR" in environment:
        assert not re.search(r"\x1b\[(?:[0-9]+;)*3[0-9]m", child.before)
    child.expect("What now")
    child.send(ENTER)
    assert ended(child) == 0


def test_a_dumb_terminal_leads_from_the_first_question_to_the_run(start):
    """In linear order, without one escape sequence: what a screen reader reads from top to end."""
    child = start("scenario_5", "--plan", TERM="dumb")
    read = ""
    for question, numbers, line in (
        ("", 13, "13"),
        ("What do you want it to do better.*", 13, "6"),
        ("Where are your examples.*", 4, "2"),  # another file than the one that is here
        ("Where are your examples.*", 0, "train.jsonl"),
        ("What should change.*", 6, "5"),
        ("How much may it cost.*", 5, "4"),
        ("Which model do you want.*", 0, ""),
        ("Which graphics card.*", 5, "2"),
        ("What is the card called.*", 0, "3080 laptop"),
        ("How much memory.*", 4, "2"),
        ("Where will the finished model run.*", 6, "5"),
        ("What matters most.*", 8, "7"),
        ("ANSWERS.*What now.*", "[0-9]+", "1"),
    ):
        child.expect(question + (f"Number from 1 to {numbers}.*: " if numbers else "> "))
        read += child.before + child.after
        child.send(f"{line}\r")
    child.expect("RUNNING plan.yaml")
    read += child.before
    assert ended(child) == 0
    assert "\x1b" not in read
    assert "Which graphics card will be used?  RTX 3080 Laptop, 16 GiB" in read


def test_a_small_window_that_changes_its_size(start):
    """A window of 12 lines scrolls its choices, and a new size in the middle of a question does no
    harm.
    """
    child = start("scenario_5", "--plan", rows=12, columns=40)
    child.expect("What should the model do")
    child.setwinsize(8, 30)
    child.send(DOWN * 3)
    child.setwinsize(50, 160)
    child.send(DOWN * 2 + ENTER)
    child.expect("Write texts")
    child.expect("Where are your examples")
    child.send(CTRL_C)
    assert ended(child) == 130


def test_the_end_of_input_is_like_ctrl_c(start):
    """Ctrl-D in an empty line stops and keeps the answers."""
    child = start("scenario_5")
    child.expect("What should the model do")
    child.send(ENTER)
    child.expect("Where are your examples")
    child.send(DOWN + ENTER)
    child.expect("or none yet")
    child.send("\x04")
    child.expect("your answers are saved in")
    assert ended(child) == 130
