"""The menu after the answer, and answers that a later start offers again."""

import io
import json
import re
import stat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.structs import replace
from rich.console import Console

from advisor.commands.wizard import LEAVE, Menu, PlanFile, first_ask, headline
from advisor.ground.errors import Fault, InputError, MachineNotReady, Stopped
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.version import __version__
from advisor.plan.model import Plan, PlanData, Stage
from advisor.ruleset.load import load_rules
from advisor.wizard.menu import MORE, folded, menu_options, run_wizard
from advisor.wizard.outcome import Actions, Checks, Interview, WizardOutcome
from advisor.wizard.prompts import choice_lines
from advisor.wizard.saved import Saved, load_answers, save_answers, state_path
from tests.advice.situations import advised
from tests.render.example_advice import CPU, nothing_fits, remedy_alone, scenario_5
from tests.wizard.scripted import CARDS, FACTS, ScriptedUi, answers_of, asked_set, known

ACTIONS = ("show_all", "next_steps", "why", "run", "trial", "bundle", "plan")
TO_CARRY = "Make a bundle to carry to that machine"
CHANGE, MISSING, QUIT = "Change an answer", "Answer what is missing", "Quit"
COST = "How much may it cost?"


def menu(
    outcome_of,
    *replies: str | None,
    checks: Checks = CARDS,
    rows: int = 100,
    earlier: AnswerSet | None = None,
    **actions: Any,
) -> tuple[int, ScriptedUi, list[Any]]:
    """The closing menu, after the task's question if needed: exit code, words and calls."""
    called: list[Any] = []
    results = {"run": 0, "trial": 0, "bundle": ["Wrote it.", "  scp it HOST:"]}
    given = {
        **{name: lambda _, name=name: called.append(name) or results.get(name) for name in ACTIONS},
        "show": lambda outcome: called.append(f"show {outcome.advice.recommendation.composition}"),
        "choose": lambda outcome, candidate: replace(
            outcome, advice=replace(outcome.advice, recommendation=candidate)
        ),
        "explain": lambda outcome, candidate: called.append(str(candidate.composition)),
        **actions,
    }
    ui = ScriptedUi(*([] if earlier else ["Write texts"]), *replies, rows=rows)
    asking = {"hardware": CPU, "ui": ui, "checks": checks, "relevant": lambda *_: False}
    interview = Interview(facts=FACTS, **asking)
    return run_wizard(interview, outcome_of, Actions(**given), earlier=earlier), ui, called


def ready(answers: AnswerSet | None = None, **more: Any) -> WizardOutcome:
    """A recommendation that can be run."""
    return WizardOutcome(advice=scenario_5(), plan=object(), plan_path="my plan.yaml", **more)


NO_DATA = WizardOutcome(advice=scenario_5(), missing=("data.path",))
AWAY = ready(other_machine="the plan is for an NVIDIA GPU, and none is here")


def raising(error: Exception) -> Mock:
    return Mock(side_effect=error)


def unusable(answers):
    if answers.value("model") is None:
        raise InputError("model: this one has no config.json")
    return ready(answers)


def in_need(answers):
    """What a plan lacks, until it is answered."""
    missing = tuple(name for name in ("reward_model", "model") if answers.value(name) is None)
    return WizardOutcome(advice=scenario_5(), missing=missing) if missing else ready(answers)


def fewer(answers):
    """Nothing but what is recommended, once more may be paid."""
    alone = replace(ready(), advice=replace(scenario_5(), alternatives=()))
    return alone if answers.value("budget") == "medium" else ready()


def with_examples(answers):
    return ready() if answers.value("data_examples") else NO_EXAMPLES


def set_general(outcome):
    other = "stages.sft.replay=null"
    return replace(outcome, general=other if outcome.general == WITH_ROWS else WITH_ROWS)


NO_EXAMPLES = WizardOutcome(advice=scenario_5(), missing=("data.examples",))
WITH_ROWS = "stages.sft.replay={rows: 500}"
FORBIDDEN = replace(scenario_5().alternatives[0], forced_ok=False)
LACKING = ready(
    lacking=(Fault(what="training needs packages: torch", hint="pip install torch"),),
    downloads=("model org/it: 3 GiB to download",),
)
LOCAL = WizardOutcome(advice=remedy_alone(), first_ask=first_ask(remedy_alone()))
NOT_READY = MachineNotReady("torch is not installed", hint="pip install torch")
MODEL = "Which model do you want to start from?"
NOT_ASKED, METHOD = "Answer what was not asked", "Another method"
EXAMPLES_QUESTION = FACTS["data_examples"].ask.split(" (")[0]
WAY = nothing_fits().nothing_fits.ways_out[0].text
MENUS = {  # what is advised, what is pressed, and what else there is
    "run, which ends the wizard": (ready(), ["Run it now"]),
    "what to do next": (
        WizardOutcome(advice=remedy_alone()), ["What to do next", "The whole answer", QUIT],
    ),
    "another method, its reasons first": (
        ready(), [METHOD, "sft+full", "Back to the list", "sft+full", "Take it", QUIT],
    ),
    "back from reasons": (
        ready(), ["Why this?", METHOD, "sft+full", "Back to the list", "Back", QUIT],
    ),
    "nothing changes by looking": (
        ready(), ["What would change it?", "Back", METHOD, "Back", CHANGE, "Back", QUIT],
    ),
    "a trial leads to the whole run": (ready(trial_steps=7), ["Try it on 50 rows", QUIT]),
    "a plan for another machine": (AWAY, [TO_CARRY, QUIT]),
    # What fails is no end: the reason is said, and the menu comes back.
    "no bundle": (
        AWAY, [TO_CARRY, TO_CARRY, QUIT], {"bundle": raising(InputError("data.jsonl is not there"))},
    ),
    "no plan": (
        ready(), ["Show the plan", QUIT], {"plan": raising(FileNotFoundError(2, "No such file"))},
    ),
    # The code of a run is the wizard's when that is left.
    "not ready": (ready(), ["Run it now", QUIT], {"run": raising(NOT_READY)}),
    "a run that fails": (ready(), ["Run it now", QUIT], {"run": lambda _: 5}),
    "packages are missing": (LACKING, [QUIT]),
    "answers are missing": (NO_DATA, [QUIT]),
    "answers are given": (in_need, [MISSING, "scores", "<", MISSING, "Qwen/Qwen3-8B", QUIT]),
    # It is taken again with the new answers; where it is no candidate any more, that is said.
    "a method that was taken stays": (
        fewer,
        [METHOD, "sft+full", "Take it", CHANGE, COST, "Quality comes first",
         CHANGE, COST, "A moderate amount", QUIT],
    ),
    "what must not be taken is only explained": (
        replace(ready(), advice=replace(scenario_5(), alternatives=(FORBIDDEN,))),
        [METHOD, str(FORBIDDEN.composition), "Back", QUIT],
    ),
    "on a small screen": (
        ready(), ["More choices", "Back", "More choices", "Show the plan", QUIT], {"rows": 24},
    ),
    # Examples beside documents are asked for when they are read, and can be changed later.
    "examples": (
        with_examples, ["train.jsonl", CHANGE, EXAMPLES_QUESTION, "train.jsonl", QUIT],
        {"checks": Checks(data_examples=lambda text: None)},
    ),
    "no examples": (NO_EXAMPLES, ["", MISSING, "<", QUIT]),
    # Whether anything may leave the house, once, where a provider would be named.
    "at home": (LOCAL, ["Nothing leaves the house", QUIT]),
    "at home or not": (LOCAL, ["I don't know", QUIT]),
    "a what-if is tried and taken back": (
        ready(),
        ["What would change it?", "If you trained on one A100 80GB",
         CHANGE, "Which graphics card will be used?", "Use this machine",
         CHANGE, COST, "Quality comes first", CHANGE, "Back", QUIT],
    ),
    "a way out, and 3 where nothing fits": (
        WizardOutcome(advice=nothing_fits()), ["What would fit", WAY[0].upper() + WAY[1:], QUIT],
    ),
    # Back from the first leaves them, Ctrl-C keeps answers.
    "what was not asked": (ready(), [NOT_ASKED, "<", NOT_ASKED, "train.jsonl", "Yes", None]),
    "answers that cannot be used": (unusable, [CHANGE, MODEL, "Qwen/Qwen3-8B", QUIT]),
    "Ctrl-C": (ready(), [None]),
    "general rows": (
        ready(general=WITH_ROWS), ["Keep its general ability", "Train on your rows alone", QUIT],
        {"set_general": set_general},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MENUS)
def test_each_choice_does_what_it_says(approved, case):
    """What is shown and asked, what is called, and what is advised on and saved for the next time."""
    outcome, pressed, *more = MENUS[case]
    seen: list[dict[str, Any]] = []

    def advise(answers):
        seen.append(known(answers))
        return outcome(answers) if callable(outcome) else outcome

    code, ui, called = menu(advise, *pressed, **dict(*more))
    saved = load_answers(FACTS)[0]
    offered = zip(ui.offered[1:], ui.helps[1:], strict=True)
    menus = [
        [": ".join(pair) for pair in zip(*menu, strict=True) if pair[1] != "not asked"]
        for menu in offered
    ]
    text = json.dumps(
        {
            "code": code, "called": called, "seen": seen, "saved": saved and known(saved.answers),
            "said": [line for line in ui.said if line[:4] != "  - "], "asked": ui.asked,
            "offered": menus,
        },
        ensure_ascii=False,
    )  # fmt: skip
    approved(json.loads(re.sub(r"answers-\w+", "N", text)))


def test_a_run_that_is_stopped_ends_the_wizard_with_the_command_that_resumes():
    """Ctrl-C in a run leaves the wizard, and its words are those of the run."""
    stopped = Mock(side_effect=Stopped("stage sft: stopped", hint="resume: advise run runs/shop"))
    with pytest.raises(Stopped, match="advise run runs/shop"):
        menu(ready, "Run it now", run=stopped)


EVERYTHING = {"trial_steps": 13, "first": "downloads about 15.3 GiB first"}


@pytest.mark.parametrize(
    ("outcome", "can_run"),
    [
        (ready(**EVERYTHING), True),
        (AWAY, False),
        (NO_DATA, False),
        (WizardOutcome(advice=remedy_alone()), False),
        (WizardOutcome(advice=remedy_alone(), plan=object()), False),  # trains nothing, plan or not
        (WizardOutcome(advice=nothing_fits()), False),
        (WizardOutcome(advice=nothing_fits(), plan=object()), False),
        (WizardOutcome(advice=scenario_5(), plan=object(), missing=("model",)), False),
    ],
)
def test_the_menu_fits_one_screen_and_offers_a_run_where_there_is_one(outcome, can_run):
    """Each choice is a line, under 24 in all; Run it now needs a whole plan that fits here."""
    options = list(menu_options(outcome, askable=3, skipped=12, mattering=10))
    assert not [one for one in options if "\n" in choice_lines(one, 80)]
    assert len(options) < 22
    assert ("Run it now" in [option.label for option in options]) is can_run


def test_on_a_small_screen_the_menu_leaves_room_for_the_answer():
    """What is seldom wanted is behind "More choices"."""
    options = list(menu_options(ready(), skipped=12))
    near, further = folded(options)
    assert near[-1].value == "quit"
    assert len(near) <= 6
    assert {one.value for one in [*near, *further]} == {one.value for one in options} | {MORE}


def test_a_flag_can_be_changed_in_the_menu():
    """An answer from a flag is listed and may be replaced by what is asked now."""
    flag, advise = Answer(value="qa", origin="flag"), Mock(return_value=ready())
    change = (CHANGE, "What should the model do for you?", "Write code", QUIT)
    menu(advise, *change, earlier=AnswerSet(known={"task": flag}))
    seen = [call.args[0].known["task"] for call in advise.call_args_list]
    assert seen == [flag, Answer(value="code", origin="asked")]


def test_answers_that_cannot_be_used_end_the_wizard_where_nobody_changes_them():
    """A fault found only while advising is shown first, and the answer can be given again."""
    with pytest.raises(InputError, match="no config"):
        menu(unusable, QUIT)


def test_the_plan_of_a_conversation_replaces_nobody_elses_file(tmp_path, monkeypatch):
    """It writes its own plan after every answer, but no older file, nor its own once edited."""
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("somebody's")
    plan = Plan(
        model="Qwen/Qwen3-8B",
        data=PlanData(path="train.jsonl"),
        stages=(Stage(name="sft", objective="sft", update="lora", learning_rate=2e-4),),
    )
    plans = PlanFile()
    written = {str(plans.write(replace(plan, name=name), {})) for name in ("first", "second")}
    assert written == {"plan-2.yaml"}
    edited = Path("plan-2.yaml").read_text().replace("0.0002", "0.0003")
    Path("plan-2.yaml").write_text(edited)
    assert str(plans.write(plan, {})) == "plan-3.yaml"
    # Another conversation that comes to the same plan finds its file; a change leaves that alone.
    others = PlanFile()
    assert str(others.write(plan, {})) == "plan-3.yaml"
    assert str(others.write(replace(plan, name="other"), {})) == "plan-4.yaml"
    assert "name: finetune" in Path("plan-3.yaml").read_text()
    assert Path("plan.yaml").read_text() == "somebody's"
    assert Path("plan-2.yaml").read_text() == edited


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
    """Ctrl-C at the first question leaves no file, or the one that was there."""
    with pytest.raises(Stopped, match="nothing had been answered yet"):
        answers_of(ScriptedUi(None))
    assert not state_path().exists()
    save(task="code")
    with pytest.raises(Stopped, match="the saved answers stay"):  # at the offer of them
        answers_of(ScriptedUi(None))
    assert load_answers(FACTS)[0] is not None


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


def test_saved_answers_are_shown_as_they_were_given():
    """A card with its memory, a limit, and also what nobody knew."""
    answers = asked_set(gpu="RTX 3080 Laptop", gpu_memory_gib=16.0, gpus=2, budget_usd=30)
    save_answers(Saved(answers=answers, asked=("budget", "depth", "gpu")))
    ui = ScriptedUi("Continue with them", "Write code")
    answers_of(ui, "none")
    shown = [text.partition(" -> ")[2] for text in ui.said if " -> " in text]
    unknown = "I don't know (the task alone decides)"
    assert shown == ["$30", unknown, "2 × RTX 3080 Laptop, 16 GiB", "Write code"]


def test_a_state_place_that_is_a_file_is_said(tmp_path, monkeypatch):
    """Where the answers cannot be saved, the message says so instead of promising it."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    with pytest.raises(Stopped, match="could not be saved"):
        answers_of(ScriptedUi("Write texts", None))


@pytest.mark.parametrize(("rows", "begins"), [(24, "Teach Qwen/Qwen3-8B"), (40, "What now?")])
def test_a_low_screen_has_the_answer_above_its_menu(rows, begins):
    """In one sentence, since the answer itself has scrolled off; a high one shows both."""
    said = headline(scenario_5())
    _, ui, _ = menu(lambda _: ready(headline=said), QUIT, rows=rows)
    assert ui.asked[-1].startswith(begins)
    assert (said.endswith("."), ";" in said, said.count(".")) == (True, False, 1)


@pytest.mark.parametrize(("height", "is_paged"), [(24, True), (2000, False)])
def test_what_is_longer_than_the_screen_is_shown_page_by_page(
    tmp_path, monkeypatch, height, is_paged
):
    """The whole answer does not scroll by, and the first line says how to come back."""
    pages, file = list[str](), io.StringIO()
    monkeypatch.setattr("click.echo_via_pager", pages.append)
    out = Console(file=file, width=80, height=height, force_terminal=True)
    Menu(out, load_rules(), CPU).actions().show_all(ready())
    assert bool(pages) is is_paged
    assert ("\x1b[1m" in file.getvalue()) is not is_paged
    assert all(page.startswith(LEAVE) and "Why not the others" in page for page in pages)
    (tmp_path / "plan.yaml").write_text("key: [value]  # because\n" * 30)
    plan = replace(ready(), plan_path=str(tmp_path / "plan.yaml"))
    Menu(out, load_rules(), CPU).actions().plan(plan)
    assert "key: [value]  # because\n" * 30 in (pages[-1] if is_paged else file.getvalue())


@pytest.mark.parametrize("model", ["GPT-4o", "Qwen/Qwen3-8B"])
def test_a_closed_model_has_no_choices_of_open_weights(model):
    """No other method is taken for it, and no question can change that."""
    advice = advised(task="customer_service", model=model, gpu="RTX 4090", data_kind="paired",
                     data_rows=5000)  # fmt: skip
    offered = {one.value for one in menu_options(WizardOutcome(advice=advice), skipped=8)}
    assert bool(offered & {"other", "what_if", "skipped"}) is (model != "GPT-4o")
    assert {"whole", "why", "change", "quit"} <= offered
