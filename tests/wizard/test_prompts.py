"""The real prompts, driven through a pipe."""

import io
import os
import subprocess
import sys
from threading import Timer

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from advisor.ground.errors import Stopped
from advisor.ground.types import AnswerSet
from advisor.wizard.prompts import (
    Option,
    PlainUi,
    QuestionaryUi,
    ask_typed,
    choice_lines,
    prompt_lines,
)
from advisor.wizard.saved import state_path
from advisor.wizard.walk import DONT_KNOW, Question, questions
from tests.test_layers import HEAVY
from tests.wizard.scripted import CTRL_C, DOWN, ENTER, FACTS, UP, ScriptedUi, answers_of, known


def through_pipe(keys: str, fact: str) -> AnswerSet:
    """The answers that these keys give in the real prompts, without a screen."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        return answers_of(QuestionaryUi(Console(file=open(os.devnull, "w"))), fact)


TEXTS = DOWN * 5 + ENTER  # the sixth task


@pytest.mark.parametrize(
    ("keys", "fact", "expected"),
    [
        # Four up from "I don't know" is the first budget, one up a limit; Enter states nothing.
        (TEXTS + UP * 4 + ENTER, "budget", {"task": "generation", "budget": "low"}),
        (TEXTS + UP + ENTER + "30 eur" + ENTER + "\x15$30, 6 h" + ENTER, "budget",
         {"task": "generation", "budget_usd": 30, "budget_hours": 6}),
        (TEXTS + ENTER, "budget", {"task": "generation"}),
        # A wrong number stays in the line to be mended.
        (ENTER + "5x" + ENTER + "\x15" + "5k" + ENTER, "data_rows",
         {"task": "customer_service", "data_rows": 5000}),
        # < and Enter go back from a line; the old answer is preselected.
        (TEXTS + "<" + ENTER + DOWN + ENTER + "train.jsonl" + ENTER, "data_path",
         {"task": "classification", "data_path": "train.jsonl"}),
    ],
    ids=["arrows", "limit", "enter", "mended", "back"],
)  # fmt: skip
def test_keys_give_answers(keys, fact, expected):
    """Down, up and Enter take a choice; what cannot be read is asked for again."""
    assert known(through_pipe(keys, fact)) == expected


def test_back_takes_an_answer_off_the_screen(monkeypatch):
    """With all that was printed since its question was put, in lines as the terminal wraps them."""
    gone: list[int] = []
    monkeypatch.setattr(DummyOutput, "cursor_up", lambda screen, amount: gone.append(amount))
    with create_app_session(output=DummyOutput()):
        ui = QuestionaryUi(Console(file=io.StringIO(), width=40))
        ui.begin("a", again=False)
        ui.say("5x is not a number.", tone="warning")
        ui.answered("Where?", "in a very long path " * 3)  # two lines
        ui.begin("b", again=False)
        ui.say_line("    a command " + "x" * 40)  # two
        ui.begin("a", again=True)
        ui.begin("a", again=True)
    assert gone == [5, 0]


def test_enter_takes_a_folder_although_its_files_are_listed(tmp_path):
    """The list of files takes no Enter away, also once it had the time to open."""
    (tmp_path / "a.jsonl").touch()
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keys = [Timer(0.5 * n, keyboard.send_text, [text]) for n, text in enumerate("/" + ENTER)]
        keys.append(Timer(2, keyboard.send_text, ["X" + ENTER]))
        for key in keys:
            key.start()
        ui, folder = QuestionaryUi(Console(file=io.StringIO())), str(tmp_path)
        assert ui.enter("Where?", hint="", default=folder, path=True, keep=False) == folder
        for key in keys:
            key.cancel()


def test_ctrl_c_in_a_real_prompt():
    """Ctrl-C in a list and in a line both save and stop."""
    with pytest.raises(Stopped, match="saved"):
        through_pipe(ENTER + CTRL_C, "budget")
    state_path().unlink()
    with pytest.raises(Stopped, match="saved"):
        through_pipe(ENTER + "tr" + CTRL_C, "data_path")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("fact", questions(FACTS), ids=lambda fact: fact.id)
def test_no_choice_is_wider_than_the_terminal(fact, width):
    """Long choices continue on the next line instead of being cropped."""
    for value in fact.values.values():
        option = Option(value=1, label=value.label, help=value.help)
        first, *others = choice_lines(option, width).split("\n")
        assert max(len(first) + 3, *map(len, others), 0) <= max(width, 24)
        assert " ".join([first, *map(str.strip, others)]) == f"{value.label} – {value.help}"
    assert max(map(len, prompt_lines(f"10. {fact.ask}", width).split("\n"))) <= max(width, 22)


ASK = """
import sys
from threading import Timer
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from advisor.ground.errors import Stopped
from advisor.ground.types import Hardware
from advisor.ruleset.facts import load_facts
from advisor.wizard.asking import ask_round
from advisor.wizard.outcome import Interview
from advisor.wizard.prompts import QuestionaryUi

machine, ui = Hardware(kind="cpu", origin="probed"), QuestionaryUi(Console(stderr=True))
with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
    keyboard.send_text("\x03")
    try:
        ask_round(Interview(facts=load_facts(), hardware=machine, ui=ui))
    except Stopped:
        print(sorted({*sys.argv[1:]} & {*sys.modules}))
"""


def test_the_first_question_needs_nothing_heavy():
    """Up to the first prompt neither torch nor numpy nor anything of that kind is imported."""
    command = [sys.executable, "-c", ASK, *HEAVY, "pydantic"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "This machine has no graphics card (GPU)" in done.stderr


def test_a_plain_prompt_keeps_what_was_answered(monkeypatch):
    """Enter keeps an earlier answer, which such a terminal cannot edit, but no refused text."""
    ui = PlainUi(Console(file=io.StringIO()))
    monkeypatch.setattr("builtins.input", lambda: "")
    for keep, kept in ((True, "a.jsonl"), (False, "")):
        assert ui.enter("Where?", hint="", default="a.jsonl", path=True, keep=keep) == kept
    options = [Option(value=True, label="Yes"), Option(value=False, label="No")]
    assert ui.choose("Is it?", options, current=False) is False


@pytest.mark.parametrize(
    ("question", "typed", "hint"),
    [
        (Question(fact=FACTS["data_path"], number=2, current="a.jsonl"), "?",
         "Enter keeps a.jsonl; ? and Enter: I don't know, or none yet"),
        (Question(fact=FACTS["data_rows"], number=3), "", "Enter alone: I don't know"),
    ],
)  # fmt: skip
def test_a_line_says_what_enter_does(question, typed, hint):
    """It keeps the answer, or leaves it open."""
    ui = ScriptedUi(typed)
    assert ask_typed(question, ui, str) is DONT_KNOW
    assert ui.hints == [hint]
