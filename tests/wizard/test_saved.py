"""Answers that outlive a Ctrl-C."""

import json
import re
import stat
from pathlib import Path

import pytest

from advisor.ground.errors import Stopped
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.version import __version__
from advisor.wizard.saved import Saved, load_answers, save_answers, state_path
from tests.wizard.scripted import FACTS, ScriptedUi, answers_of, asked_set, known


def save(**values: object) -> None:
    """Save answers to questions."""
    save_answers(Saved(answers=asked_set(**values), asked=tuple(values)))


def told(**values: object) -> AnswerSet:
    """Answers as flags give them."""
    return AnswerSet(known={name: Answer(value=one, origin="flag") for name, one in values.items()})


def test_ctrl_c_saves_the_answers_and_the_next_start_offers_them():
    """Exit 130 leaves a private file; the next round goes on and asks no "I don't know" again."""
    with pytest.raises(Stopped, match="your answers are saved in") as stopped:
        answers_of(ScriptedUi("Write texts", "train.jsonl", None))
    assert (stopped.value.exit_code, stat.S_IMODE(state_path().stat().st_mode)) == (130, 0o600)
    assert list(state_path().parent.iterdir()) == [state_path()]
    ui = ScriptedUi("Continue with them", "How it sounds", *["I don't know"] * 2)
    answers = answers_of(ui, "data_path", "depth", "budget", "priority")
    assert known(answers) == {"task": "generation", "data_path": "train.jsonl", "depth": "style"}
    assert "What should the model do for you? -> Write texts" in ui.said
    state_path().unlink(missing_ok=True)
    with pytest.raises(Stopped):
        answers_of(ScriptedUi("Write code", "", "I don't know", "", None))
    ui = ScriptedUi("Continue with them", "How it sounds", None)
    with pytest.raises(Stopped):
        answers_of(ui)
    assert ui.asked[1] == "5. What should change in the model?"


@pytest.mark.parametrize(
    ("replies", "flags", "expected"),
    [
        (["Start anew", "Write texts"], {}, {"task": "generation"}),
        # What is said on the command line now is newer than what was saved.
        (["Continue with them"], {"task": "qa"}, {"task": "qa", "budget": "low"}),
    ],
    ids=["anew", "flags"],
)
def test_what_was_saved_is_forgotten_or_gives_way(replies, flags, expected):
    """Start anew asks from the first question on; flags of this start win."""
    save(task="code", budget="low")
    assert known(answers_of(ScriptedUi(*replies), "none", earlier=told(**flags))) == expected


def test_only_what_was_asked_is_saved():
    """Answers from flags belong to the command line, not to the saved file."""
    answers = AnswerSet(known={**told(task="qa").known, **asked_set(budget="low").known})
    save_answers(Saved(answers=answers, asked=("budget",)))
    assert json.loads(state_path().read_text())["answers"] == {"budget": "low"}


def test_nothing_answered_saves_nothing():
    """Ctrl-C at the first question leaves no file."""
    with pytest.raises(Stopped, match="nothing had been answered yet"):
        answers_of(ScriptedUi(None))
    assert not state_path().exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (f'{{"version": "{__version__}", "answers": 3, "asked": []}}', "cannot be read"),
        ("\x00", "cannot be read"),
        (f'{{"version": "{__version__}"}}', "cannot be read"),
        # What a question may be answered with differs between versions.
        (
            '{"version": "0.0.1", "answers": {"task": "qa"}, "asked": ["task"]}',
            "The saved answers are those of another version; starting anew.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_said_and_ignored(content, said):
    """Saved answers that cannot be read never stop the wizard, and are not dropped silently."""
    state_path().parent.mkdir(parents=True)
    state_path().write_text(content)
    saved, problem = load_answers(FACTS)
    assert (saved, said in problem) == (None, True)


def test_saved_answers_belong_to_their_folder(tmp_path, monkeypatch):
    """The offer names task, data and date; in another folder nothing is offered."""
    (tmp_path / "support").mkdir()
    monkeypatch.chdir(tmp_path / "support")
    Path("tickets.csv").write_text("")
    save(task="customer_service", data_path="tickets.csv")
    monkeypatch.chdir(tmp_path)
    assert load_answers(FACTS) == (None, "")
    save(task="code", data_path="tickets.csv")
    monkeypatch.chdir(tmp_path / "support")
    ui = ScriptedUi("Continue with them")
    answers = answers_of(ui, "none")
    # Not made absolute: a plan made from these answers can still be carried with its data.
    assert known(answers) == {"task": "customer_service", "data_path": "tickets.csv"}
    pattern = (
        r"Answers from \d{4}-\d\d-\d\d \d\d:\d\d for this folder: Answer customers, tickets.csv"
    )
    assert re.fullmatch(rf"{pattern} \(2 questions\)\.", ui.asked[0])


def test_a_saved_card_is_shown_with_its_memory():
    """What is gone on with is shown as it was answered."""
    save(gpu="RTX 3080 Laptop", gpu_memory_gib=16.0, gpus=2)
    ui = ScriptedUi("Continue with them", "Write code")
    answers_of(ui, "none")
    assert any(text.endswith("-> 2 × RTX 3080 Laptop, 16 GiB") for text in ui.said)


def test_a_state_place_that_is_a_file_is_said(tmp_path, monkeypatch):
    """Where the answers cannot be saved, the message says so instead of promising it."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    with pytest.raises(Stopped, match="could not be saved"):
        answers_of(ScriptedUi("Write texts", None))
