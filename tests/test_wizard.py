"""The wizard without a terminal: which question comes next, how answers are read and kept, what the menu offers."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from advisor.errors import InputError, Stopped
from advisor.facts import Fact, Value, load_facts
from advisor.types import Answer, Answers
from advisor.wizard import BACK, DONT_KNOW, Actions, Checks, Outcome, Several, ask_answers, run_wizard, walk
from advisor.wizard.asking import machine_lines, number_of, path_exists
from advisor.wizard.menu import menu_options
from advisor.wizard.prompts import Option, QuestionaryUi, choice_lines, prompt_lines, terminal_ui
from advisor.wizard.saved import Saved, load_answers, save_answers, state_path
from advisor.wizard.walk import questions
from tests.render.example_advice import CPU, PROBED_4090, UNKNOWN_HARDWARE, nothing_fits, remedy_alone, scenario_5

FACTS = load_facts()
ENTER, DOWN, UP, CTRL_C = "\r", "\x1b[B", "\x1b[A", "\x03"


class ScriptedUi:
    """A Ui that answers from a list; a reply is matched to the label of a choice, or typed. None raises Ctrl-C."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.offered: list[list[str]] = []

    def say(self, text: str, *, tone: str = "plain") -> None:
        self.said.append(text)

    def answered(self, question: str, answer: str) -> None:
        self.said.append(f"{question} -> {answer}")

    def _next(self) -> str:
        reply = self.replies.pop(0)
        if reply is None:
            raise KeyboardInterrupt
        return reply

    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        self.asked.append(message)
        self.offered.append([option.label for option in options])
        wanted = self._next()
        return next(option.value for option in options if option.label == wanted)

    def enter(self, message: str, *, hint: str = "", default: str = "", path: bool = False) -> str:
        self.asked.append(message)
        return self._next()


def known(answers: Answers) -> dict[str, Any]:
    """Fact id -> value."""
    return {fact: answer.value for fact, answer in answers.known.items()}


def walked(replies: dict[str, Any], answers: Answers | None = None, **more: Any) -> tuple[Answers, list[str]]:
    """Walk with fixed replies (everything else: I don't know); the answers and the order of questions."""
    order: list[str] = []

    def ask(question):
        order.append(question.fact.id)
        return replies.get(question.fact.id, DONT_KNOW)

    return walk(FACTS, ask, answers or Answers(), **more), order


# --------------------------------------------------------------------------- the questions themselves


def test_no_question_needs_knowledge_of_the_trade():
    """Neither a question nor a choice names a method or a term of machine learning."""
    texts = [fact.ask for fact in questions(FACTS)]
    texts += [part for fact in questions(FACTS) for value in fact.values.values() for part in (value.label, value.help)]
    texts += [fact.unknown for fact in questions(FACTS)]
    assert len(texts) > 100
    jargon = (
        "lora", "adapter", "prefix", "rlhf", "ppo", "sft", "dpo", "fine-tun", "finetun", "quantiz", "quantis", "token", "gpu", "vram", "epoch", "hyperparam",
        "gradient", "checkpoint", "inference", "parameter", "nf4", "bf16", "embedding", "corpus", "rag ", "llm", "supervised", "reward", "dataset",
    )  # fmt: skip
    for text in texts:
        for word in jargon:
            assert not re.search(rf"\b{word}", text.lower()), f"{word!r} in {text!r}"


def test_every_choice_has_a_line_of_help():
    """Each value of an asked choice says in plain words what it means."""
    for fact in questions(FACTS):
        for name, value in fact.values.items():
            assert value.label != name or value.help, f"{fact.id}: {name}"
            assert value.help, f"{fact.id}: {name}"


def test_every_question_but_the_task_says_what_not_knowing_means():
    """Except for the task and plain yes-or-no questions, each question says what is assumed without an answer."""
    for fact in questions(FACTS):
        assert fact.required or fact.signal or fact.unknown, fact.id


# --------------------------------------------------------------------------- the walk


def test_questions_come_in_the_order_of_the_facts_file():
    """The walk follows `order`, whatever the order in the file."""
    _, order = walked({"task": "qa"})
    numbers = [FACTS[fact].order for fact in order]
    assert numbers == sorted(numbers)
    assert order[0] == "task"
    assert len(order) > 10


def test_a_question_is_asked_only_where_it_applies():
    """The number of teams is asked for several teams alone; citations for questions about a business."""
    assert "n_tasks" in walked({"task": "multi_department"})[1]
    assert "n_tasks" not in walked({"task": "qa"})[1]
    assert "needs_citations" in walked({"task": "qa"})[1]
    assert "needs_citations" not in walked({"task": "code"})[1]


def test_a_data_file_spares_the_questions_about_data():
    """Kind and number of examples are asked only where there is no file to look into."""
    assert not {"data_kind", "data_rows"} & set(walked({"task": "qa", "data_path": "x.jsonl"})[1])
    assert {"data_kind", "data_rows"} <= set(walked({"task": "qa"})[1])


def test_nobody_without_examples_is_asked_how_many():
    """Nothing yet: no number. Not known what they look like: the number may still be known."""
    assert "data_rows" not in walked({"task": "qa", "data_kind": "none"})[1]
    assert "data_rows" in walked({"task": "qa", "data_kind": "paired"})[1]
    assert "data_rows" in walked({"task": "qa"})[1]


def test_not_knowing_states_nothing():
    """I don't know leaves the fact out of the answers."""
    answers, _ = walked({"task": "qa"})
    assert known(answers) == {"task": "qa"}


def test_yes_is_a_signal_and_no_is_none():
    """Yes to a yes-or-no question lists the signal; no is kept as said and lists nothing."""
    answers, _ = walked({"task": "qa", "facts_change_often": True, "prompting_tried": False})
    assert answers.signals == ("facts_change_often",)
    assert answers.value("prompting_tried") is False


def test_a_question_may_follow_from_an_answer():
    """Whether the answers were good enough is asked only after good instructions were tried."""
    assert "prompt_meets_quality_bar" in walked({"task": "qa", "prompting_tried": True})[1]
    assert "prompt_meets_quality_bar" not in walked({"task": "qa", "prompting_tried": False})[1]


def test_flags_and_files_are_not_asked_again():
    """What a flag or a file said stands and keeps its origin."""
    given = Answers(known={"task": Answer(value="qa", origin="flag"), "signals": Answer(value=("needs_citations",), origin="file")})
    answers, order = walked({"budget": "low"}, given)
    assert not {"task", "needs_citations"} & set(order)
    assert answers.known["task"].origin == "flag"
    assert answers.known["budget"].origin == "asked"
    assert answers.signals == ("needs_citations",)


def test_back_asks_the_question_before_with_its_answer():
    """Back re-asks the last question, its old answer preselected; the new one counts."""
    script = iter([("task", "multi_department"), ("n_tasks", BACK), ("task", "qa"), ("data_path", BACK), ("task", "code")])
    seen = []

    def ask(question):
        seen.append((question.fact.id, question.current, question.can_go_back))
        step = next(script, None)
        if step is None:
            return DONT_KNOW
        assert step[0] == question.fact.id
        return step[1]

    answers = walk(FACTS, ask, Answers())
    assert seen[:5] == [("task", None, False), ("n_tasks", None, True), ("task", "multi_department", False), ("data_path", None, True), ("task", "qa", False)]
    assert known(answers) == {"task": "code"}


def test_an_answer_that_no_longer_applies_is_dropped():
    """Going back and taking another task drops what was only asked for the old one."""
    replies = iter(["multi_department", 12, BACK, BACK, "qa"])
    answers = walk(FACTS, lambda question: next(replies, DONT_KNOW), Answers())
    assert known(answers) == {"task": "qa"}


def test_irrelevant_questions_are_left_out():
    """A question whose answer cannot change the outcome is not put; the task always is."""
    _, order = walked({"task": "qa"}, relevant=lambda fact, answers: fact == "budget")
    assert order == ["task", "budget"]


def test_a_new_fact_is_a_new_question():
    """A question is one entry of the facts: nothing else has to know it."""
    extra = Fact(id="colour", type="choice", origin="asked", values={"red": Value(label="Red", help="like blood")}, order=5, ask="Which colour?")
    order = []
    walk({**FACTS, "colour": extra}, lambda question: order.append(question.fact.id) or ("qa" if question.fact.id == "task" else DONT_KNOW), Answers())
    assert order[:2] == ["colour", "task"]


# --------------------------------------------------------------------------- numbers, paths, cards


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5000", 5000),
        ("5,000", 5000),
        ("5 000", 5000),
        ("5k", 5000),
        ("5 K", 5000),
        ("1.5k", 1500),
        ("about 200", 200),
        ("~2m", 2_000_000),
        ("1,234,567", 1_234_567),
        ("5'000", 5000),
        ("0", 0),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    """Thousands signs, k and m are understood."""
    assert number_of(text, FACTS["data_rows"]) == number


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5.000", "two ways"),
        ("many", "not a number"),
        ("2.5", "not a whole number"),
        ("-3", "not a number"),
        ("5,00", "not a number"),
        ("1e3", "not a number"),
        ("nan", "not a number"),
        ("10 20", "not a number"),
    ],
)
def test_numbers_that_can_mean_two_things_are_not_guessed(text, why):
    """What is no number, or could be two, is asked for again with the reason."""
    with pytest.raises(ValueError, match=why):
        number_of(text, FACTS["data_rows"])


def test_a_number_below_its_minimum_is_refused():
    """No team at all is not possible."""
    with pytest.raises(ValueError, match="at least 1"):
        number_of("0", FACTS["n_tasks"])


def test_a_wrong_path_is_told_at_once_with_near_names(tmp_path):
    """A path that does not exist names the files that were probably meant."""
    (tmp_path / "train.jsonl").write_text("{}")
    assert path_exists(str(tmp_path / "train.jsonl")) is None
    assert "Did you mean" in path_exists(str(tmp_path / "trian.jsonl"))
    assert "train.jsonl?" in path_exists(str(tmp_path / "trian.jsonl"))
    assert "no folder" in path_exists(str(tmp_path / "missing" / "x.jsonl"))


CARDS = Checks(data_path=lambda text: None if text == "train.jsonl" else f"There is no {text}.", gpu=lambda name: None if name == "RTX 4090" else f"No card is called {name}.")


def asked_about_gpu(*replies: str, hardware=PROBED_4090) -> tuple[dict[str, Any], ScriptedUi]:
    """The answers about the card, with every other question left out."""
    ui = ScriptedUi("Write texts", *replies)
    answers = ask_answers(FACTS, hardware=hardware, earlier=None, ui=ui, checks=CARDS, relevant=lambda fact, answers: fact == "gpu")
    return {fact: value for fact, value in known(answers).items() if fact.startswith("gpu")}, ui


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (["Use this machine"], {}),
        (["No graphics card"], {"gpu": "none"}),
        (["I don't know"], {"gpu": "unknown"}),
        (["Another card", "RTX 4090"], {"gpu": "RTX 4090"}),
        (["Another card", "4 x RTX 4090"], {"gpu": "RTX 4090", "gpus": 4}),
        (["Another card", "Mystery 9000 24 GB"], {"gpu": "Mystery 9000", "gpu_memory_gib": 24.0}),
        (["Another card", "Mystery 9000", "RTX 4090"], {"gpu": "RTX 4090"}),
        (["Another card", ""], {"gpu": "unknown"}),
        (["Another card", "<", "Use this machine"], {}),
    ],
)
def test_the_card_is_this_one_another_none_or_not_known(replies, expected):
    """This machine leaves the card to the probe; a name, a count and a memory size are read from one line."""
    assert asked_about_gpu(*replies)[0] == expected


def test_a_machine_without_a_card_is_not_asked_twice():
    """Where the probe found no card, "no graphics card" is no choice of its own; where nothing is known, "this machine" is none."""
    assert asked_about_gpu("Use this machine", hardware=CPU)[1].offered[-1] == ["Use this machine", "Another card", "I don't know", "Back"]
    state_path().unlink()
    assert asked_about_gpu("I don't know", hardware=UNKNOWN_HARDWARE)[1].offered[-1] == ["Another card", "No graphics card", "I don't know", "Back"]


def test_an_unknown_card_names_the_near_ones():
    """A card that is not in the catalogue is told at once, with what to add if the name is right."""
    _, ui = asked_about_gpu("Another card", "Mystery", "RTX 4090")
    assert any("No card is called Mystery." in text and "Mystery 24 GB" in text for text in ui.said)


def test_the_probe_is_shown_before_the_first_question():
    """The machine comes first, in one or two lines."""
    assert machine_lines(PROBED_4090) == [
        "This machine has NVIDIA GeForce RTX 4090 with 24.0 GiB (22.5 GiB free).",
        "Besides: 16 processor cores, 64.0 GiB of main memory, 200 GiB of free disk.",
    ]
    assert machine_lines(CPU)[0] == "This machine has no graphics card that can be used for training."
    assert machine_lines(CPU)[-1] == "no NVIDIA driver found"
    _, ui = asked_about_gpu("Use this machine")
    assert ui.said[0].startswith("This machine has NVIDIA GeForce RTX 4090")


# --------------------------------------------------------------------------- saved answers


def test_ctrl_c_saves_the_answers_and_the_next_start_offers_them():
    """Stopped in the middle: exit 130, a private file, and the next round goes on where this one was."""
    with pytest.raises(Stopped, match="your answers are saved in") as stopped:
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi("Write texts", "train.jsonl", None), checks=CARDS)
    assert stopped.value.exit_code == 130
    assert stat.S_IMODE(state_path().stat().st_mode) == 0o600
    assert list(state_path().parent.iterdir()) == [state_path()]
    ui = ScriptedUi("Continue with them", "How it sounds", *["I don't know"] * 2)
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, checks=CARDS, relevant=lambda fact, _: fact in ("data_path", "depth", "budget", "priority"))
    assert known(answers) == {"task": "generation", "data_path": "train.jsonl", "depth": "style"}
    assert "What should the model do for you? -> Write texts" in ui.said


def test_starting_anew_forgets_what_was_saved():
    """Start anew asks from the first question on."""
    save_answers(Saved(answers=Answers(known={"task": Answer(value="code", origin="asked")}), asked=("task",)))
    ui = ScriptedUi("Start anew", "Write texts")
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, relevant=lambda fact, _: False)
    assert known(answers) == {"task": "generation"}


def test_i_dont_know_is_remembered_too():
    """A question answered by "I don't know" is not put again after a Ctrl-C."""
    with pytest.raises(Stopped):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi("Write texts", "", "I don't know", "", None), checks=CARDS)
    ui = ScriptedUi("Continue with them", "How it sounds", None)
    with pytest.raises(Stopped):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, checks=CARDS)
    assert ui.asked[1] == "5. What should change in the model?"


def test_flags_of_this_start_win_over_saved_answers():
    """What is said on the command line now is newer than what was saved."""
    save_answers(Saved(answers=Answers(known={"task": Answer(value="code", origin="asked"), "budget": Answer(value="low", origin="asked")}), asked=("task", "budget")))
    earlier = Answers(known={"task": Answer(value="qa", origin="flag")})
    answers = ask_answers(FACTS, hardware=CPU, earlier=earlier, ui=ScriptedUi("Continue with them"), relevant=lambda fact, _: False)
    assert known(answers) == {"task": "qa", "budget": "low"}


def test_only_what_was_asked_is_saved():
    """Answers from flags belong to the command line, not to the saved file."""
    save_answers(Saved(answers=Answers(known={"task": Answer(value="qa", origin="flag"), "budget": Answer(value="low", origin="asked")}), asked=("budget",)))
    assert json.loads(state_path().read_text())["answers"] == {"budget": "low"}


def test_nothing_answered_saves_nothing():
    """Ctrl-C at the first question leaves no file."""
    with pytest.raises(Stopped, match="nothing had been answered yet"):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi(None))
    assert not state_path().exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9, "answers": {}, "asked": []}', '{"version": 1, "answers": 3, "asked": []}', "\x00", '{"version": 1}'])
def test_a_broken_file_is_said_and_ignored(content):
    """Saved answers that cannot be read never stop the wizard, and are never dropped without a word."""
    state_path().parent.mkdir(parents=True)
    state_path().write_text(content)
    saved, problem = load_answers(FACTS)
    assert saved is None
    assert "cannot be read" in problem


def test_saved_answers_that_no_longer_exist_are_named():
    """A value or fact that is gone is left out by name, the rest stays."""
    state_path().parent.mkdir(parents=True)
    answers = {"task": "qa", "budget": "gigantic", "flavour": "sweet", "signals": ["facts_change_often"], "gpus": -2}
    state_path().write_text(json.dumps({"version": 1, "saved_at": "now", "answers": answers, "asked": ["task", "budget", "flavour"]}))
    saved, problem = load_answers(FACTS)
    assert known(saved.answers) == {"task": "qa", "signals": ("facts_change_often",)}
    assert saved.asked == ("task",)
    assert all(name in problem for name in ("budget", "flavour", "gpus"))


def test_a_saved_path_holds_from_another_folder(tmp_path, monkeypatch):
    """Paths are saved absolute; one that is gone is said and asked for again."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    Path("train.jsonl").write_text("{}")
    progress = Saved(answers=Answers(known={"task": Answer(value="qa", origin="asked"), "data_path": Answer(value="train.jsonl", origin="asked")}), asked=("task", "data_path"))
    save_answers(progress)
    monkeypatch.chdir(tmp_path)
    assert load_answers(FACTS)[0].answers.value("data_path") == str(tmp_path / "a" / "train.jsonl")
    (tmp_path / "a" / "train.jsonl").unlink()
    ui = ScriptedUi("Continue with them", "")
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=ui, relevant=lambda fact, _: fact == "data_path")
    assert known(answers) == {"task": "qa"}
    assert any("one no longer holds" in text for text in ui.said)


def test_a_state_place_that_is_a_file_is_said(tmp_path, monkeypatch):
    """Where the answers cannot be saved, the message says so instead of promising it."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    with pytest.raises(Stopped, match="could not be saved"):
        ask_answers(FACTS, hardware=CPU, earlier=None, ui=ScriptedUi("Write texts", None))


# --------------------------------------------------------------------------- the menu


def menu(outcome_of, *replies: str | None, actions: dict[str, Any] | None = None) -> tuple[int, ScriptedUi, list[Any]]:
    """The closing menu after the one question about the task; exit code, what was said, what was called."""
    called: list[Any] = []

    def save_page(outcome, path):
        path.write_text("page")
        return path

    given = {
        "show": lambda outcome: called.append("show"),
        "run": lambda outcome: called.append("run") or 7,
        "plan_text": lambda outcome: "PLAN TEXT",
        "save_page": save_page,
        "explain": lambda outcome, candidate: called.append(str(candidate.composition)),
        **(actions or {}),
    }
    ui = ScriptedUi("Write texts", *replies)
    code = run_wizard(
        facts=FACTS, hardware=CPU, advise=outcome_of, actions=Actions(**given), console=Console(), ui=ui, checks=CARDS, relevant=lambda fact, answers: False
    )  # fmt: skip
    return code, ui, called


def ready(answers: Answers) -> Outcome:
    """A recommendation that can be run."""
    return Outcome(advice=scenario_5(), plan=object(), plan_path="plan.yaml")


def test_running_it_ends_the_wizard_with_the_runs_code():
    """Run it now hands over to the run, whose exit code is the wizard's."""
    code, _, called = menu(ready, "Run it now")
    assert (code, called) == (7, ["show", "run"])


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (Outcome(advice=remedy_alone()), "a remedy trains nothing"),
        (Outcome(advice=remedy_alone(), plan=object()), "a remedy trains nothing, plan or not"),
        (Outcome(advice=nothing_fits(), plan=object()), "nothing fits"),
        (Outcome(advice=scenario_5(), missing=("data.path",)), "no data"),
        (Outcome(advice=scenario_5(), plan=object(), missing=("model",)), "no model"),
    ],
)
def test_what_cannot_run_is_never_offered(outcome, why):
    """Run it now is offered only for a complete plan that trains and fits."""
    assert "Run it now" not in [option.label for option in menu_options(outcome)], why
    assert "Run it now" in [option.label for option in menu_options(ready(Answers()))]


def test_what_is_missing_for_a_run_is_said():
    """Without data the menu says what the run still needs, in the words of the question."""
    _, ui, _ = menu(lambda answers: Outcome(advice=scenario_5(), missing=("data.path",)), "Quit")
    assert "It cannot be run yet; missing: data.path (Where are your examples?)" in ui.said


def test_quitting_tells_whether_anything_fits():
    """Quit is 0, or 3 where nothing fits."""
    assert menu(ready, "Quit")[0] == 0
    state_path().unlink()
    assert menu(lambda answers: Outcome(advice=nothing_fits()), "Quit")[0] == 3


def test_the_plan_is_shown_and_the_page_saved(tmp_path, monkeypatch):
    """The menu comes back after each; an existing file is replaced only when told to."""
    monkeypatch.chdir(tmp_path)
    Path("mine.html").write_text("mine")
    code, ui, _ = menu(ready, "Show the plan", "Save as a page", "", "Save as a page", "mine.html", "Leave it as it is", "Save as a page", "<", "Quit")
    assert code == 0
    assert "PLAN TEXT" in ui.said
    assert Path("advice.html").read_text() == "page"
    assert Path("mine.html").read_text() == "mine"


def test_a_page_that_cannot_be_written_is_no_crash(tmp_path, monkeypatch):
    """The reason is said and the menu comes back."""
    monkeypatch.chdir(tmp_path)

    def refuse(outcome, path):
        raise OSError(28, "No space left on device")

    code, ui, _ = menu(ready, "Save as a page", "", "Quit", actions={"save_page": refuse})
    assert code == 0
    assert any("No space left on device" in text for text in ui.said)


def test_the_reasons_can_be_walked_through():
    """Why lists the recommendation and every alternative, as often as wanted."""
    _, ui, called = menu(ready, "Why?", "Why sft+qlora", "Why not sft+full", "Back", "Quit")
    assert called == ["show", "sft+qlora", "sft+full"]
    assert [label for label in ui.offered[-2] if label.startswith("Why not")] == [f"Why not {candidate.composition}" for candidate in scenario_5().alternatives]


def test_a_changed_answer_is_advised_on_again():
    """Change an answer asks which, puts that question, and recommends anew with it."""
    seen = []

    def advise(answers):
        seen.append(known(answers))
        return ready(answers)

    _, _, called = menu(advise, "Change an answer", "How much may it cost?", "Quality comes first", "Change an answer", "Back", "Quit")
    assert seen == [{"task": "generation"}, {"task": "generation", "budget": "high"}]
    assert called == ["show", "show"]


def test_a_flag_can_be_changed_in_the_menu():
    """An answer from a flag is listed and may be replaced by what is asked now."""
    seen = []

    def advise(answers):
        seen.append(answers.known["task"])
        return ready(answers)

    ui = ScriptedUi("Change an answer", "What should the model do for you?", "Write code", "Quit")
    actions = Actions(show=lambda _: None, run=lambda _: 0, plan_text=lambda _: "", save_page=lambda _, path: path, explain=lambda *_: None)
    earlier = Answers(known={"task": Answer(value="qa", origin="flag")})
    run_wizard(facts=FACTS, hardware=CPU, advise=advise, actions=actions, console=Console(), earlier=earlier, ui=ui, relevant=lambda *_: False)
    assert seen == [Answer(value="qa", origin="flag"), Answer(value="code", origin="asked")]


def test_answers_that_cannot_be_used_may_be_changed():
    """A fault found only while advising is shown, and the answer can be given again."""

    def advise(answers):
        if answers.value("model") is None:
            raise InputError("model: this one has no config.json")
        return ready(answers)

    code, ui, _ = menu(advise, "Change an answer", "Which model do you want to start from?", "Qwen/Qwen3-8B", "Quit")
    assert code == 0
    assert any("no config.json" in text for text in ui.said)
    state_path().unlink()
    with pytest.raises(InputError):
        menu(advise, "Quit")


def test_ctrl_c_in_the_menu_saves_too():
    """Ctrl-C after the questions: 130, and the answers are there at the next start."""
    code, ui, _ = menu(ready, None)
    assert code == 130
    assert any("your answers are saved in" in text for text in ui.said)
    assert load_answers(FACTS)[0].answers.value("task") == "generation"


# --------------------------------------------------------------------------- questionary behind it, through a pipe


def through_pipe(keys: str, relevant, hardware=CPU) -> Answers:
    """The answers that these keys give in the real prompts, without a screen."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        return ask_answers(FACTS, hardware=hardware, earlier=None, ui=QuestionaryUi(Console(file=open(os.devnull, "w"))), checks=CARDS, relevant=relevant)


def test_arrow_keys_and_enter_choose():
    """Down and Enter take the choice that is pointed at."""
    answers = through_pipe(DOWN * 5 + ENTER + UP * 2 + ENTER, lambda fact, _: fact == "budget")
    # Six of the tasks is `generation`; two up from the first of five choices is "I don't know".
    assert known(answers) == {"task": "generation"}


def test_typed_answers_are_asked_again_until_they_can_be_read():
    """A wrong number stays in the line to be mended; the mended one counts."""
    answers = through_pipe(ENTER + "5x" + ENTER + "\x15" + "5k" + ENTER, lambda fact, _: fact == "data_rows")
    assert known(answers) == {"task": "customer_service", "data_rows": 5000}


def test_back_in_a_typed_question():
    """< and Enter go back from a line, Back from a list; the old answer is preselected."""
    keys = DOWN * 5 + ENTER + "<" + ENTER + DOWN + ENTER + "train.jsonl" + ENTER
    answers = through_pipe(keys, lambda fact, _: fact == "data_path")
    assert known(answers) == {"task": "classification", "data_path": "train.jsonl"}


def test_ctrl_c_in_a_real_prompt():
    """Ctrl-C in a list and in a line both save and stop."""
    with pytest.raises(Stopped, match="saved"):
        through_pipe(ENTER + CTRL_C, lambda fact, _: fact == "budget")
    state_path().unlink()
    with pytest.raises(Stopped, match="saved"):
        through_pipe(ENTER + "tr" + CTRL_C, lambda fact, _: fact == "data_path")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_choice_is_wider_than_the_terminal(width):
    """Long choices continue on the next line instead of being cropped."""
    for fact in questions(FACTS):
        for value in fact.values.values():
            lines = choice_lines(Option(value=1, label=value.label, help=value.help), width).split("\n")
            assert max(len(line) + (3 if place == 0 else 0) for place, line in enumerate(lines)) <= max(width, 24)
            assert " ".join(" ".join(lines).split()) == f"{value.label} – {value.help}"
        assert max(len(line) for line in prompt_lines(f"10. {fact.ask}", width).split("\n")) <= max(width, 22)


def test_a_dumb_terminal_gets_numbered_lists(monkeypatch):
    """Where the cursor cannot move, the same questions come as numbers and lines."""
    monkeypatch.setenv("TERM", "dumb")
    assert type(terminal_ui(Console())).__name__ == "PlainUi"
    lines = iter(["99", "six", "6", "train.jsonl"])
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    answers = ask_answers(FACTS, hardware=CPU, earlier=None, ui=terminal_ui(Console()), checks=CARDS, relevant=lambda fact, _: fact == "data_path")
    assert known(answers) == {"task": "generation", "data_path": "train.jsonl"}


def test_the_first_question_needs_nothing_heavy():
    """Up to the first prompt neither torch nor numpy nor anything of that kind is imported."""
    code = (
        "import sys\n"
        "from prompt_toolkit.application import create_app_session\n"
        "from prompt_toolkit.input import create_pipe_input\n"
        "from prompt_toolkit.output import DummyOutput\n"
        "from rich.console import Console\n"
        "from advisor.errors import Stopped\n"
        "from advisor.facts import load_facts\n"
        "from advisor.types import Hardware\n"
        "from advisor.wizard import ask_answers\n"
        "from advisor.wizard.prompts import QuestionaryUi\n"
        "with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):\n"
        "    keyboard.send_text('\\x03')\n"
        "    try: ask_answers(load_facts(), hardware=Hardware(kind='cpu', origin='probed'), earlier=None, ui=QuestionaryUi(Console(stderr=True)))\n"
        "    except Stopped: print([name for name in ('numpy', 'torch', 'transformers', 'datasets', 'peft', 'pandas', 'pydantic') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "This machine has no graphics card" in done.stderr


def test_several_facts_can_be_answered_at_once():
    """A reply for several facts sets and clears them together."""
    before = Answers(known={"gpu": Answer(value="RTX 4090", origin="asked"), "gpus": Answer(value=2, origin="asked")})
    answers = walk(FACTS, lambda question: Several(values={"gpu": None, "gpus": None}) if question.fact.id == "gpu" else DONT_KNOW, before)
    assert known(answers) == {}
