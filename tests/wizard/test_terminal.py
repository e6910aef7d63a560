"""The wizard in a real pseudo-terminal, around hand-made advice (tests/wizard/driver.py)."""

import re
import sys
from pathlib import Path

import pytest

from tests.wizard.scripted import CTRL_C, DOWN, ENTER

pexpect = pytest.importorskip("pexpect")
DRIVER = Path(__file__).parent / "driver.py"
FIRST, DATA = "What should the model do for you", "Where are your examples"
TEXTS = (FIRST, DOWN * 5 + ENTER)
# Write texts, a data file, and I don't know for the rest: Enter alone.
ALL = (
    TEXTS,
    (DATA, ENTER),  # the one data file that is here
    ("What should change", ENTER),
    ("How much may it cost", ENTER),
    ("Which model do you want", ENTER),
    ("Which graphics card", ENTER),
    ("Where will the finished model run", ENTER),
    ("What matters most", ENTER),
)


@pytest.fixture
def start(terminal, tmp_path, monkeypatch):
    """Start the driver in a terminal of a given size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm"}

    def driver(rows=40, columns=80, **more):
        env = {**home, **more}
        return terminal(sys.executable, [str(DRIVER)], env=env, rows=rows, columns=columns)

    return driver


def talk(child, *steps: tuple[str, str]) -> str:
    """Wait for each text, and send what is typed then; all that was read meanwhile."""
    read = ""
    for text, keys in steps:
        child.expect(text)
        read += child.before + child.after
        child.send(keys)
    return read


def ended(child) -> int:
    """The exit code after the program ended by itself."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_from_the_first_question_to_the_run(start):
    """Probe, questions, first screen, menu, run: one way through, exit 0."""
    child = start()
    talk(
        child,
        ("This machine has NVIDIA GeForce RTX 4090", ""),
        *ALL,
        (re.escape("ANSWERS [('data_path', 'train.jsonl'), ('task', 'generation')]"), ""),
        ("Teach Qwen/Qwen3-8B with your 5,000 examples", ""),
        ("Why not ", ""),
        ("What now", DOWN * 5 + ENTER),  # show the plan
        ("model: Qwen/Qwen3-8B", ""),
        ("What now", ENTER),
        ("RUNNING plan.yaml", ""),
    )
    assert ended(child) == 0


def test_ctrl_c_keeps_the_answers_for_the_next_start(start, tmp_path):
    """Exit 130 says where they are, the next start goes on, and end of input is alike."""
    child = start()
    talk(child, TEXTS, (DATA, CTRL_C), ("your answers are saved in", ""))
    assert ended(child) == 130
    assert len(list((tmp_path / "state" / "finetune-advisor").glob("answers-*.json"))) == 1
    child, offered = start(), r"for this folder: Write texts \(1 question\)"
    talk(
        child,
        (offered, ENTER),
        ("Write texts", ""),
        (f"2. {DATA}", DOWN + ENTER),
        ("or none yet", "\x04"),
    )
    child.expect("your answers are saved in")
    assert ended(child) == 130


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "vt100"}, {"TERM": "linux"}])
def test_other_terminals_work(start, environment):
    """Without colour and on older terminals the same keys lead to the same end."""
    child = start(**environment)
    read = talk(child, *ALL, ("other methods: in the menu", ""))
    if "NO_COLOR" in environment:
        assert not re.search(r"\x1b\[(?:[0-9]+;)*3[0-9]m", read)
    talk(child, ("What now", ENTER))
    assert ended(child) == 0


def test_a_dumb_terminal_leads_from_the_first_question_to_the_run(start):
    """In linear order, without one escape sequence: what a screen reader reads from top to end."""
    child, number = start(TERM="dumb"), "Number from 1 to %s.*: "
    read = talk(
        child,
        (number % 13, "99\r"),
        (number % 13, "six\r"),
        (number % 13, "13\r"),
        ("What do you want it to do better.*" + number % 13, "6\r"),
        (f"{DATA}.*" + number % 4, "2\r"),  # another file than the one that is here
        (f"{DATA}.*> ", "train.jsonl\r"),
        ("What should change.*" + number % 6, "5\r"),
        ("How much may it cost.*" + number % 6, "5\r"),
        ("Which model do you want.*> ", "\r"),
        ("Which graphics card.*" + number % 5, "2\r"),
        ("What is the card called.*> ", "3080 laptop\r"),
        ("How much memory.*" + number % 4, "2\r"),
        ("Where will the finished model run.*" + number % 6, "5\r"),
        ("What matters most.*" + number % 8, "7\r"),
        ("ANSWERS.*What now.*" + number % "[0-9]+", "1\r"),
        ("RUNNING plan.yaml", ""),
    )
    assert (ended(child), "\x1b" in read) == (0, False)
    assert "Which graphics card will be used?  RTX 3080 Laptop, 16 GiB" in read


def test_a_small_window_that_changes_its_size(start):
    """12 lines scroll the choices, and a new size amid a question does no harm."""
    child = start(rows=12, columns=40)
    child.expect("What should the model do")
    child.setwinsize(8, 30)
    child.send(DOWN * 3)
    child.setwinsize(50, 160)
    child.send(DOWN * 2 + ENTER)
    talk(child, ("Write texts", ""), (DATA, CTRL_C))
    assert ended(child) == 130
