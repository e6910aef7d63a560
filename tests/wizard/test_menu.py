"""What can be done with a recommendation."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from advisor.commands.wizard import PlanFile, first_ask
from advisor.ground.errors import Fault, InputError, MachineNotReady, Stopped
from advisor.ground.types import Answer, AnswerSet
from advisor.plan.model import Plan, PlanData, Stage
from advisor.wizard import Actions, Checks, Interview, WizardOutcome, run_wizard
from advisor.wizard.menu import MORE, folded, menu_options
from advisor.wizard.prompts import choice_lines
from advisor.wizard.saved import load_answers, state_path
from advisor.wizard.walk import applies, questions
from tests.render.example_advice import CPU, nothing_fits, remedy_alone, scenario_5
from tests.wizard.scripted import CARDS, FACTS, ScriptedUi, known

ACTIONS = ("show", "show_all", "next_steps", "why", "run", "trial", "bundle")
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
        "choose": lambda outcome, candidate: replace(
            outcome, advice=replace(outcome.advice, recommendation=candidate)
        ),
        "plan_text": lambda outcome: "PLAN TEXT",
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


def always(outcome: WizardOutcome) -> Any:
    return lambda answers: outcome


def watched(outcome_of=ready) -> tuple[Any, list[dict[str, Any]]]:
    """The same, and a list of the answers that were advised on."""
    seen: list[dict[str, Any]] = []
    return lambda answers: seen.append(known(answers)) or outcome_of(answers), seen


@pytest.mark.parametrize(
    ("outcome", "pressed", "called"),
    [
        (ready(), ["Run it now"], ["run"]),  # which ends the wizard
        (WizardOutcome(advice=remedy_alone()), ["What to do next", "The whole answer", QUIT],
         ["next_steps", "show_all"]),
        (ready(), ["Another method", "sft+full", "Back to the list", "sft+full", "Take it", QUIT],
         ["sft+full", "sft+full", "show"]),  # its reasons are shown first
        (ready(), ["Why this?", "Another method", "sft+full", "Back to the list", "Back", QUIT],
         ["why", "sft+full"]),
        (ready(), ["What would change it?", "Back", "Another method", "Back", CHANGE, "Back", QUIT],
         []),  # nothing changes by looking
    ],
)  # fmt: skip
def test_each_choice_does_what_it_says(outcome, pressed, called):
    """And leads back to the menu, from each of its lists."""
    assert menu(always(outcome), *pressed)[::2] == (0, ["show", *called])


def test_a_run_that_is_stopped_ends_the_wizard_with_the_command_that_resumes():
    """Ctrl-C in a run leaves the wizard, and its words are those of the run."""
    stopped = Mock(side_effect=Stopped("stage sft: stopped", hint="resume: advise run runs/shop"))
    with pytest.raises(Stopped, match="advise run runs/shop"):
        menu(ready, "Run it now", run=stopped)


def test_a_trial_leads_to_the_whole_run():
    """Try it on 50 rows comes after running it; then the whole run is named, and offered first."""
    code, ui, called = menu(always(ready(trial_steps=7)), "Try it on 50 rows", QUIT)
    assert (code, called) == (0, ["show", "trial"])
    assert ui.offered[1][:2] == ["Run it now", "Try it on 50 rows"]
    assert ui.helps[1][1] == "7 steps, to see that it works"
    assert "  advise run 'my plan.yaml'" in ui.said
    assert ui.offered[2][0] == "Run it now"


def test_a_plan_for_another_machine_is_packed_for_it():
    """Why it cannot be run here is said; the bundle comes first, and running it is not offered."""
    code, ui, called = menu(always(AWAY), TO_CARRY, QUIT)
    assert (code, called) == (0, ["show", "bundle"])
    assert ui.said[-4:] == [
        "Wrote it.",
        "  scp it HOST:",
        "The plan is in my plan.yaml. To go on later:",
        "  advise export 'my plan.yaml' --to bundle",
    ]
    assert ui.offered[1][0] == TO_CARRY
    assert not {"Run it now", "Try it on 50 rows"} & set(ui.offered[1])


@pytest.mark.parametrize(
    ("outcome", "pressed", "action", "done", "code", "said"),
    [
        (AWAY, TO_CARRY, "bundle", InputError("data.jsonl is not there"), 0,
         "data.jsonl is not there"),
        (ready(), "Show the plan", "plan_text", FileNotFoundError(2, "No such file or directory"),
         0, "No such file or directory"),
        # The code of a run is the wizard's when that is left.
        (ready(), "Run it now", "run",
         MachineNotReady("torch is not installed", hint="pip install torch"), 4,
         "torch is not installed\n  pip install torch"),
        (ready(), "Run it now", "run", [5, 5], 5, ""),
    ],
    ids=["bundle", "plan", "not ready", "run"],
)  # fmt: skip
def test_what_fails_is_no_end(outcome, pressed, action, done, code, said):
    """The reason is said, nothing is lost, and the menu comes back."""
    twice = (pressed, pressed, QUIT)
    ended, ui, called = menu(always(outcome), *twice, **{action: Mock(side_effect=done)})
    assert (ended, called, len(ui.offered)) == (code, ["show"], 4)
    assert any(said in text for text in ui.said)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        # Packages that are missing are named before anybody starts a run.
        (
            ready(
                lacking=(Fault(what="training needs packages: torch", hint="pip install torch"),),
                downloads=("model org/it: 3 GiB to download",),
            ),
            [
                "Model org/it: 3 GiB to download",
                "Before it can be run here: training needs packages: torch",
                "  pip install torch",
            ],
        ),
        (NO_DATA, ["It cannot be run yet; still open: Where are your examples?"]),
        (AWAY, [f"It cannot be run on this machine: {AWAY.other_machine}."]),
    ],
    ids=["packages", "answers", "machine"],
)
def test_what_a_run_lacks_is_said_with_the_line_that_mends_it(outcome, said):
    """What this machine lacks, each missing answer with its question, and another machine."""
    assert set(said) <= set(menu(always(outcome), QUIT)[1].said)


def test_a_method_that_was_taken_stays_while_answers_change():
    """It is taken again with the new answers; where it is no candidate any more, that is said."""
    without = replace(ready(), advice=replace(scenario_5(), alternatives=()))
    shown = []
    _, ui, _ = menu(
        lambda answers: without if answers.value("budget") == "medium" else ready(),
        *("Another method", "sft+full", "Take it"),
        *(CHANGE, COST, "Quality comes first"),
        *(CHANGE, COST, "A moderate amount"),
        QUIT,
        show=lambda outcome: shown.append(str(outcome.advice.recommendation.composition)),
    )
    assert shown == ["sft+qlora", "sft+full", "sft+full", "sft+qlora"]
    assert "With these answers sft+full cannot be taken any more." in ui.said


def test_what_must_not_be_taken_is_only_explained():
    """A candidate that a company forbids, or that cannot run, is shown and not offered."""
    forbidden = replace(scenario_5().alternatives[0], forced_ok=False)
    only = replace(ready(), advice=replace(scenario_5(), alternatives=(forbidden,)))
    name = str(forbidden.composition)
    _, ui, called = menu(always(only), "Another method", name, "Back", QUIT)
    assert called == ["show", name]
    assert not any("instead?" in message for message in ui.asked)


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
    """What is seldom wanted is behind "More choices", from which one comes back."""
    options = list(menu_options(ready(), skipped=12))
    near, further = folded(options)
    assert near[-1].value == "quit"
    assert len(near) <= 6
    assert {one.value for one in [*near, *further]} == {one.value for one in options} | {MORE}
    pressed = ("More choices", "Back", "More choices", "Show the plan", QUIT)
    code, ui, _ = menu(ready, *pressed, rows=24)
    assert (code, "PLAN TEXT" in ui.said) == (0, True)
    assert len(ui.offered[-1]) <= 6


def test_what_is_missing_can_be_answered():
    """Each missing answer has its question, put before or not; with it the plan is complete."""

    def advise(answers):
        needed = ("reward_model", "model")
        missing = tuple(name for name in needed if answers.value(name) is None)
        return WizardOutcome(advice=scenario_5(), missing=missing) if missing else ready(answers)

    _, ui, _ = menu(advise, MISSING, "scores", "<", MISSING, "Qwen/Qwen3-8B", QUIT)
    first = [offered[0] for offered in ui.offered if QUIT in offered]
    assert first == [MISSING, MISSING, "Run it now"]


NO_EXAMPLES = WizardOutcome(advice=scenario_5(), missing=("data.examples",))
EXAMPLES_QUESTION = FACTS["data_examples"].ask


def test_what_only_a_plan_needs_is_asked_where_the_plan_needs_it():
    """Examples beside documents are asked for when they are read, and can be changed later."""
    advise, seen = watched(lambda told: ready() if told.value("data_examples") else NO_EXAMPLES)
    again = (CHANGE, EXAMPLES_QUESTION.split(" (")[0], "train.jsonl")
    checks = Checks(data_examples=lambda text: None)
    _, ui, called = menu(advise, "train.jsonl", *again, QUIT, checks=checks)
    assert ui.asked[1] == EXAMPLES_QUESTION
    assert [one.get("data_examples") for one in seen] == [None, "train.jsonl", "train.jsonl"]
    assert called == ["show", "show"]
    state_path().unlink()
    _, ui, _ = menu(always(NO_EXAMPLES), "", MISSING, "<", QUIT)
    asked = [message for message in ui.asked if message.endswith(EXAMPLES_QUESTION)]
    assert asked == [EXAMPLES_QUESTION] * 2  # without a number: it is none of those counted


def test_what_decides_an_offer_is_asked_before_it():
    """Where a provider would be named, whether anything may leave the house, once."""
    asks = first_ask(remedy_alone())
    outcome = WizardOutcome(advice=remedy_alone(), first_ask=asks)
    for reply in ("Nothing leaves the house", "I don't know"):
        advise, seen = watched(always(outcome))
        _, ui, called = menu(advise, reply, QUIT)
        assert (ui.asked[1], called) == (FACTS["priority"].ask, ["show"])
        state_path().unlink()
    assert seen[-1].get("priority") is None


def test_a_what_if_is_tried_and_taken_back():
    """A change re-answers its question and recommends anew; the last counts at the next start."""
    advise, seen = watched()
    _, _, called = menu(
        advise,
        *("What would change it?", "If you trained on one A100 80GB"),
        *(CHANGE, "Which graphics card will be used?", "Use this machine"),
        *(CHANGE, COST, "Quality comes first", CHANGE, "Back", QUIT),
    )
    task = {"task": "generation"}
    assert seen == [task, {**task, "gpu": "A100 80GB"}, task, {**task, "budget": "high"}]
    assert called == ["show"] * 4
    assert load_answers(FACTS)[0].answers.value("budget") == "high"


def test_the_ways_out_are_lines_to_type():
    """Where nothing fits, each way out is shown with its line, and can be tried; quitting is 3."""
    advise, seen = watched(always(WizardOutcome(advice=nothing_fits())))
    way = nothing_fits().nothing_fits.ways_out[0]
    code, ui, _ = menu(advise, "What would fit", way.text[0].upper() + way.text[1:], QUIT)
    assert f"  {way.command}" in ui.said
    assert seen[-1] == {"task": "generation", "model": "Qwen/Qwen3-4B"}
    assert code == 3


def test_what_was_not_asked_can_be_answered():
    """Questions left out come in order; back from the first leaves them, Ctrl-C keeps answers."""
    told = AnswerSet(known={"task": Answer(value="generation", origin="asked")})
    left = [fact for fact in questions(FACTS) if applies(fact, told, FACTS)][1:]
    not_asked = "Answer what was not asked"
    _, ui, _ = menu(ready, not_asked, "<", not_asked, "train.jsonl", "Yes", None)
    assert f"{len(left)} questions; the method stays" in ui.helps[1]
    assert ui.asked[2].startswith("Where are your examples?")
    assert ui.asked[4:6] == [
        "Where are your examples? (a file or a folder)",
        FACTS["facts_change_often"].ask,
    ]
    saved = load_answers(FACTS)[0].answers
    assert saved.value("data_path") is not None
    assert saved.signals == ("facts_change_often",)


def test_a_flag_can_be_changed_in_the_menu():
    """An answer from a flag is listed and may be replaced by what is asked now."""
    flag = Answer(value="qa", origin="flag")
    advise = Mock(return_value=ready())
    change = (CHANGE, "What should the model do for you?", "Write code", QUIT)
    menu(advise, *change, earlier=AnswerSet(known={"task": flag}))
    seen = [call.args[0].known["task"] for call in advise.call_args_list]
    assert seen == [flag, Answer(value="code", origin="asked")]


def test_answers_that_cannot_be_used_may_be_changed():
    """A fault found only while advising is shown, and the answer can be given again."""

    def advise(answers):
        if answers.value("model") is None:
            raise InputError("model: this one has no config.json")
        return ready(answers)

    question = "Which model do you want to start from?"
    code, ui, _ = menu(advise, CHANGE, question, "Qwen/Qwen3-8B", QUIT)
    assert (code, any("no config.json" in text for text in ui.said)) == (0, True)
    state_path().unlink()
    with pytest.raises(InputError):
        menu(advise, QUIT)


def test_ctrl_c_in_the_menu_saves_too():
    """Ctrl-C after the questions: 130, and the answers are there at the next start."""
    code, ui, _ = menu(ready, None)
    assert (code, any("your answers are saved in" in text for text in ui.said)) == (130, True)
    assert load_answers(FACTS)[0].answers.value("task") == "generation"


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


def test_general_rows_are_offered_in_one_line_and_taken_back_in_another():
    """Where the model can answer them itself; the plan is written again, and the menu says so."""
    keep, alone = "Keep its general ability", "Train on your rows alone"
    with_rows, without = "stages.sft.replay={rows: 500}", "stages.sft.replay=null"
    seen = []

    def set_general(outcome):
        seen.append(outcome.general)
        return replace(outcome, general=without if outcome.general == with_rows else with_rows)

    _, ui, _ = menu(
        lambda answers: ready(general=with_rows), keep, alone, QUIT, set_general=set_general
    )
    assert seen == [with_rows, without]
    assert "mix in general questions, which it answers itself" in ui.helps[1]
