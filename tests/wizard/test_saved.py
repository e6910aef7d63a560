"""Answers that outlive a Ctrl-C."""

import json
import stat
from pathlib import Path

import pytest

from advisor.ground.errors import Stopped
from advisor.ground.types import Answer, Answers
from advisor.wizard.saved import Saved, load_answers, save_answers, state_path
from tests.render.example_advice import CPU
from tests.wizard.scripted import CARDS, FACTS, ScriptedUi, ask_answers, known


def test_ctrl_c_saves_the_answers_and_the_next_start_offers_them():
    """Stopped in the middle: exit 130, a private file, and the next round goes on where this one
    was.
    """
    with pytest.raises(Stopped, match="your answers are saved in") as stopped:
        ask_answers(
            FACTS,
            hardware=CPU,
            earlier=None,
            ui=ScriptedUi("Write texts", "train.jsonl", None),
            checks=CARDS,
        )
    assert stopped.value.exit_code == 130
    assert stat.S_IMODE(state_path().stat().st_mode) == 0o600
    assert list(state_path().parent.iterdir()) == [state_path()]
    ui = ScriptedUi("Continue with them", "How it sounds", *["I don't know"] * 2)
    answers = ask_answers(
        FACTS,
        hardware=CPU,
        earlier=None,
        ui=ui,
        checks=CARDS,
        relevant=lambda fact, *_: fact in ("data_path", "depth", "budget", "priority"),
    )
    assert known(answers) == {"task": "generation", "data_path": "train.jsonl", "depth": "style"}
    assert "What should the model do for you? -> Write texts" in ui.said


def test_starting_anew_forgets_what_was_saved():
    """Start anew asks from the first question on."""
    save_answers(
        Saved(
            answers=Answers(known={"task": Answer(value="code", origin="asked")}), asked=("task",)
        )
    )
    ui = ScriptedUi("Start anew", "Write texts")
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, relevant=lambda fact, *_: False)
    assert known(answers) == {"task": "generation"}


def test_i_dont_know_is_remembered_too():
    """A question answered by "I don't know" is not put again after a Ctrl-C."""
    with pytest.raises(Stopped):
        ask_answers(
            FACTS,
            hardware=CPU,
            earlier=None,
            ui=ScriptedUi("Write code", "", "I don't know", "", None),
            checks=CARDS,
        )
    ui = ScriptedUi("Continue with them", "How it sounds", None)
    with pytest.raises(Stopped):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, checks=CARDS)
    assert ui.asked[1] == "5. What should change in the model?"


def test_flags_of_this_start_win_over_saved_answers():
    """What is said on the command line now is newer than what was saved."""
    save_answers(
        Saved(
            answers=Answers(
                known={
                    "task": Answer(value="code", origin="asked"),
                    "budget": Answer(value="low", origin="asked"),
                }
            ),
            asked=("task", "budget"),
        )
    )
    earlier = Answers(known={"task": Answer(value="qa", origin="flag")})
    answers = ask_answers(
        FACTS,
        hardware=CPU,
        earlier=earlier,
        ui=ScriptedUi("Continue with them"),
        relevant=lambda fact, *_: False,
    )
    assert known(answers) == {"task": "qa", "budget": "low"}


def test_only_what_was_asked_is_saved():
    """Answers from flags belong to the command line, not to the saved file."""
    save_answers(
        Saved(
            answers=Answers(
                known={
                    "task": Answer(value="qa", origin="flag"),
                    "budget": Answer(value="low", origin="asked"),
                }
            ),
            asked=("budget",),
        )
    )
    assert json.loads(state_path().read_text())["answers"] == {"budget": "low"}


def test_nothing_answered_saves_nothing():
    """Ctrl-C at the first question leaves no file."""
    with pytest.raises(Stopped, match="nothing had been answered yet"):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi(None))
    assert not state_path().exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 9, "answers": {}, "asked": []}',
        '{"version": 1, "answers": 3, "asked": []}',
        "\x00",
        '{"version": 1}',
    ],
)
def test_a_broken_file_is_said_and_ignored(content):
    """Saved answers that cannot be read never stop the wizard, and are never dropped without a
    word.
    """
    state_path().parent.mkdir(parents=True)
    state_path().write_text(content)
    saved, problem = load_answers(FACTS)
    assert saved is None
    assert "cannot be read" in problem


def test_saved_answers_that_no_longer_exist_are_named():
    """A value or fact that is gone is left out by name, the rest stays."""
    state_path().parent.mkdir(parents=True)
    answers = {
        "task": "qa",
        "budget": "gigantic",
        "flavour": "sweet",
        "signals": ["facts_change_often"],
        "gpus": -2,
    }
    state_path().write_text(
        json.dumps(
            {
                "version": 1,
                "saved_at": "now",
                "answers": answers,
                "asked": ["task", "budget", "flavour"],
            }
        )
    )
    saved, problem = load_answers(FACTS)
    assert known(saved.answers) == {"task": "qa", "signals": ("facts_change_often",)}
    assert saved.asked == ("task",)
    assert all(name in problem for name in ("budget", "flavour", "gpus"))


def test_a_saved_path_holds_from_another_folder(tmp_path, monkeypatch):
    """Paths are saved absolute; one that is gone is said and asked for again."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    Path("train.jsonl").write_text("{}")
    progress = Saved(
        answers=Answers(
            known={
                "task": Answer(value="qa", origin="asked"),
                "data_path": Answer(value="train.jsonl", origin="asked"),
            }
        ),
        asked=("task", "data_path"),
    )
    save_answers(progress)
    monkeypatch.chdir(tmp_path)
    assert load_answers(FACTS)[0].answers.value("data_path") == str(tmp_path / "a" / "train.jsonl")
    (tmp_path / "a" / "train.jsonl").unlink()
    ui = ScriptedUi("Continue with them", "")
    answers = ask_answers(
        FACTS, hardware=CPU, earlier=None, ui=ui, relevant=lambda fact, *_: fact == "data_path"
    )
    assert known(answers) == {"task": "qa"}
    assert any("one no longer holds" in text for text in ui.said)


def test_a_state_place_that_is_a_file_is_said(tmp_path, monkeypatch):
    """Where the answers cannot be saved, the message says so instead of promising it."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    with pytest.raises(Stopped, match="could not be saved"):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi("Write texts", None))
