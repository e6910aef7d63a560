"""The chat with results: who answers, what interrupts it, what is no chat."""

import io
import json
from pathlib import Path
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from advisor.ground.errors import InputError
from tests.trainers.ppo.conftest import save_module
from tests.trainers.test_results import lora_run, plan_of
from trainers.tools import chat
from trainers.tools.results import load_results, record_of, results_of


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def person(run):
    """The session of a person at a terminal."""
    loaded = load_results(results_of(run), torch.device("cpu"))
    return chat.ChatSession(loaded, max_new_tokens=4, is_interactive=True)


@pytest.fixture
def types(monkeypatch):
    """`types(*lines)`: what the person writes at the prompt."""

    return lambda *lines: monkeypatch.setattr(chat, "read_line", Mock(side_effect=lines))


def test_result_and_base_answer_a_person_one_after_the_other(person, monkeypatch, capsys):
    """Each behind its name, the result first; an answer that the limit of the command cuts is said."""
    monkeypatch.setattr(chat, "stop_ids", lambda model: [])
    person.ask("hello")
    said = capsys.readouterr()
    assert said.out.startswith("[legal] ")
    assert "\n[base] " in said.out
    assert "legal: cut at 4 tokens; --max-new-tokens allows more" in said.err


def test_a_pipe_gets_the_plain_answers_of_the_result(run, monkeypatch, capsys):
    """One question a line; an empty line is nothing, `exit` ends."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nhello again\nexit\nmore\n"))
    assert chat.main([str(run), "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "[" not in out.replace("[PAD", "")
    assert out.count("\n") == 2


def test_an_interrupted_question_leaves_the_conversation_as_it_was(
    person, types, monkeypatch, capsys
):
    """Ctrl-C in an answer ends it alone: what was said before stays, for both models."""
    person.ask("hello")
    before = json.loads(json.dumps(person.history))
    types("hello again", "/new", "exit")
    answers = []

    def press(self, name, asked, title):
        answers.append(json.loads(json.dumps(person.history)))
        if len(answers) == 2:
            raise KeyboardInterrupt
        return "an answer", ""

    monkeypatch.setattr(chat.ChatSession, "_answer", press)
    assert chat.talk(person, is_interactive=True) == 0
    assert answers == [before, before]
    said = capsys.readouterr().err
    assert "interrupted: this question and what was answered do not count" in said
    assert "a new conversation" in said
    assert person.history == {}


def test_ctrl_c_at_the_prompt_says_how_to_leave(person, monkeypatch, capsys):
    """Once it says so, a second time it leaves; Ctrl-D leaves at once."""
    with monkeypatch.context() as patch:
        patch.setattr(chat, "read_line", press := Mock(side_effect=KeyboardInterrupt))
        assert chat.talk(person, is_interactive=True) == 130
    assert press.call_count == 2
    assert "exit or Ctrl-D ends the chat" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat.talk(person, is_interactive=True) == 0


@pytest.mark.parametrize("word", ["exit", "quit", "Exit", "/exit", "/quit", "/q"])
def test_words_that_leave_are_no_questions(person, types, word):
    """`exit` was sent to the model once."""
    types(word)
    assert chat.talk(person, is_interactive=True) == 0
    assert person.history == {}


def test_a_full_context_is_said_and_the_chat_goes_on(person, types, monkeypatch, capsys):
    """An answer that it cuts, and a conversation that is longer; a pipe ends with an error."""
    monkeypatch.setattr(chat, "context_of", lambda model: 30)
    types("hello", "hello " * 40, "/new", "exit")
    person.max_new_tokens = 64
    monkeypatch.setattr(chat, "stop_ids", lambda model: [])
    assert chat.talk(person, is_interactive=True) == 0
    said = capsys.readouterr().err
    assert "base: the context of 30 tokens is full; /new starts a new conversation" in said
    assert "the conversation is longer than the model's context of 30 tokens" in said
    with pytest.raises(InputError, match="longer than the model's context"):
        person.ask("hello " * 40)


def test_a_person_is_greeted_with_run_and_base(run, tmp_path):
    """What it is, in a line; the verdict was said by `advise chat`, and is not said again."""
    record = json.loads((run / "run.json").read_text())
    verdict = {"ok": True, "task": {"status": "better", "text": "held-out loss 4.5 -> 3.1"}}
    (tmp_path / "run.json").write_text(json.dumps(record | {"max_steps": 6, "verdict": verdict}))
    base = Path(record["model"]).name
    assert chat.greeting(tmp_path, record_of(tmp_path)) == (
        f"{tmp_path}: sft with lora on {base}, a trial of at most 6 steps"
    )
    assert chat.greeting(run, record_of(run)) == f"{run}: sft with lora on {base}"


def scoring_run(folder, tiny_model, *, names):
    """A run folder with a head of random weights: one score, or a class for each name."""
    save_module(tiny_model, folder / "stages" / "sft", "lora", seed=1, scores=len(names) or 1)
    found = {"confusion": {"labels": names, "counts": [[1, 0], [0, 1]]}} if names else {}
    stage = {
        "name": "sft", "objective": "sft" if names else "rm", "update": "lora", "status": "done",
        "folder": "stages/sft", "evaluation": found,
    }  # fmt: skip
    record = {
        "schema_version": 1, "status": "done", "model": str(tiny_model), "stages": [stage],
        "resolved": {"sft": {"options": {"head": "classes"}}} if names else {},
        "hardware": {"kind": "cpu"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    kind = "objective: sft, head: classes" if names else "objective: rm"
    (folder / "plan.yaml").write_text(plan_of(tiny_model).replace("objective: sft", kind))
    return folder


def test_a_classifier_names_the_class_of_each_line(tmp_path, tiny_model, monkeypatch, capsys):
    """With the share of each class."""
    folder = scoring_run(tmp_path, tiny_model, names=["ham", "spam"])
    monkeypatch.setattr("sys.stdin", io.StringIO("free prize\nlunch on friday\n"))
    assert chat.main([str(folder)]) == 0
    found = capsys.readouterr()
    assert "sft names the class of each line: 2 classes" in found.err
    assert found.out.count("\n") == 2
    for line in found.out.splitlines():
        (one, share), (other, rest) = (part.split() for part in line.split(", "))
        assert {one, other} == {"ham", "spam"}
        assert 0.99 < float(share) + float(rest) < 1.01
        assert float(share) >= float(rest)


def test_a_reward_model_scores_the_answer_behind_each_question(
    tmp_path, tiny_model, monkeypatch, capsys
):
    """As the loaded model does; the same answer gets the same score."""
    folder = scoring_run(tmp_path, tiny_model, names=[])
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nGood morning!\nhi\nGo away\nhi\nGo away\n"))
    assert chat.main([str(folder)]) == 0
    first, second, third = capsys.readouterr().out.split()
    assert first != second == third
    assert float(first) < 100
