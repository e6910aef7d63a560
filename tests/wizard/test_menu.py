"""What can be done with a recommendation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from advisor.advice.types import Infeasible, WayOut
from advisor.commands.wizard import PlanFile
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


def menu(
    outcome_of,
    *replies: str | None,
    actions: dict[str, Any] | None = None,
    checks: Checks = CARDS,
    rows: int = 100,
) -> tuple[int, ScriptedUi, list[Any]]:
    """The closing menu after the one question about the task; exit code, what was said, what was
    called.
    """
    called: list[Any] = []

    given = {
        "show": lambda outcome: called.append("show"),
        "show_all": lambda outcome: called.append("show_all"),
        "next_steps": lambda outcome: called.append("next_steps"),
        "why": lambda outcome: called.append("why"),
        "run": lambda outcome: called.append("run") or 0,
        "trial": lambda outcome: called.append("trial") or 0,
        "bundle": lambda outcome: called.append("bundle") or ["Wrote it.", "  scp it HOST:"],
        "choose": lambda outcome, candidate: replace(
            outcome, advice=replace(outcome.advice, recommendation=candidate)
        ),
        "plan_text": lambda outcome: "PLAN TEXT",
        "explain": lambda outcome, candidate: called.append(str(candidate.composition)),
        **(actions or {}),
    }
    ui = ScriptedUi("Write texts", *replies, rows=rows)
    interview = Interview(
        facts=FACTS, hardware=CPU, ui=ui, checks=checks, relevant=lambda fact, answers, opened: False
    )  # fmt: skip
    code = run_wizard(interview, outcome_of, Actions(**given))
    return code, ui, called


def ready(answers: AnswerSet) -> WizardOutcome:
    """A recommendation that can be run."""
    return WizardOutcome(advice=scenario_5(), plan=object(), plan_path="plan.yaml")


def test_a_run_that_ends_well_ends_the_wizard():
    """Run it now hands over to the run; with its result the wizard is done."""
    code, _, called = menu(ready, "Run it now")
    assert (code, called) == (0, ["show", "run"])


def test_a_run_that_fails_comes_back_to_the_menu():
    """Its words are shown and nothing is lost; its code is the wizard's when that is left."""

    def refuse(outcome):
        raise MachineNotReady("torch is not installed", hint="pip install torch")

    code, ui, called = menu(ready, "Run it now", "Quit", actions={"run": refuse})
    assert "torch is not installed\n  pip install torch" in ui.said
    assert (code, called) == (4, ["show"])
    state_path().unlink()
    code, ui, _ = menu(ready, "Run it now", "Run it now", "Quit", actions={"run": lambda _: 5})
    assert code == 5
    assert len(ui.offered) == 4


def test_a_run_that_is_stopped_ends_the_wizard_with_the_command_that_resumes():
    """Ctrl-C in a run leaves the wizard, and its words are those of the run."""

    def stop(outcome):
        raise Stopped("stage sft: stopped", hint="resume: advise run runs/shop")

    with pytest.raises(Stopped, match="advise run runs/shop"):
        menu(ready, "Run it now", actions={"run": stop})


def test_a_trial_leads_to_the_whole_run():
    """Try it on 50 rows comes after running it; then the whole run is named, and offered first."""
    tried = replace(ready(AnswerSet()), trial_steps=7)
    code, ui, called = menu(lambda answers: tried, "Try it on 50 rows", "Quit")
    assert (code, called) == (0, ["show", "trial"])
    assert ui.offered[1][:2] == ["Run it now", "Try it on 50 rows"]
    assert ui.helps[1][1] == "7 steps, to see that it works"
    assert "  advise run plan.yaml" in ui.said
    assert ui.offered[2][0] == "Run it now"


def test_a_plan_for_another_machine_is_packed_for_it():
    """Why it cannot be run here is said; the bundle comes first, and running it is not offered."""
    away = replace(
        ready(AnswerSet()), other_machine="the plan is for an NVIDIA GPU, and none is here"
    )
    code, ui, called = menu(lambda answers: away, "Make a bundle to carry to that machine", "Quit")
    assert (code, called) == (0, ["show", "bundle"])
    assert ui.said[-4:] == [
        "Wrote it.",
        "  scp it HOST:",
        "The plan is in plan.yaml. To go on later:",
        "  advise export plan.yaml --to bundle",
    ]
    assert (
        "It cannot be run on this machine: the plan is for an NVIDIA GPU, and none is here."
        in ui.said
    )
    assert ui.offered[1][0] == "Make a bundle to carry to that machine"
    assert not {"Run it now", "Try it on 50 rows"} & set(ui.offered[1])


def test_a_bundle_that_cannot_be_written_is_no_end():
    """The reason is said and the menu comes back."""

    def refuse(outcome):
        raise InputError("data.jsonl is not there")

    away = replace(ready(AnswerSet()), other_machine="it is for another one")
    code, ui, _ = menu(
        lambda answers: away,
        "Make a bundle to carry to that machine",
        "Quit",
        actions={"bundle": refuse},
    )
    assert code == 0
    assert "data.jsonl is not there" in ui.said


def test_a_plan_that_was_deleted_meanwhile_is_no_end():
    """What the system says of the file is shown, and the menu comes back."""

    def gone(outcome):
        return Path("gone/plan.yaml").read_text()

    code, ui, _ = menu(ready, "Show the plan", "Quit", actions={"plan_text": gone})
    assert code == 0
    assert any("No such file or directory" in text for text in ui.said)


def test_what_this_machine_lacks_is_said_with_the_line_that_mends_it():
    """Packages that are missing are named before anybody starts a run."""
    fault = Fault(what="training needs packages: torch", hint="pip install torch")
    needed = {"lacking": (fault,), "downloads": ("model org/it: 3 GiB to download",)}
    _, ui, _ = menu(lambda answers: replace(ready(answers), **needed), "Quit")
    assert "Model org/it: 3 GiB to download" in ui.said
    assert "Before it can be run here: training needs packages: torch" in ui.said
    assert "  pip install torch" in ui.said


def test_a_model_that_is_sharded_over_gpus_can_be_started():
    """It is offered like any other: `advise run` starts it."""
    advice = scenario_5()
    stage = advice.recommendation.stages[0]
    split = replace(stage, reasons={**stage.reasons, "sharding": SimpleNamespace(value="fsdp")})
    recommendation = replace(advice.recommendation, stages=(split,))
    outcome = replace(ready(AnswerSet()), advice=replace(advice, recommendation=recommendation))
    _, ui, _ = menu(lambda answers: outcome, "Quit")
    assert ui.offered[1][0] == "Run it now"


def test_where_nothing_is_trained_the_next_steps_are_offered():
    """Neither running nor a plan, but what to do next; the whole answer is there as always."""
    remedy = WizardOutcome(advice=remedy_alone())
    _, ui, called = menu(lambda answers: remedy, "What to do next", "The whole answer", "Quit")
    assert called == ["show", "next_steps", "show_all"]
    assert ui.offered[1][0] == "What to do next"
    assert not {"Run it now", "Show the plan", "Try it on 50 rows"} & set(ui.offered[1])


def test_another_method_can_be_taken_and_taken_back():
    """Its reasons are shown first; taken, it is the recommendation until another one is."""
    pressed = ("Another method", "sft+full", "Back to the list", "sft+full", "Take it", "Quit")
    _, _, called = menu(ready, *pressed)
    assert called == ["show", "sft+full", "sft+full", "show"]


def test_a_method_that_was_taken_stays_while_answers_change():
    """It is taken again with the new answers; where it is no candidate any more, that is said."""
    advice = scenario_5()

    def advise(answers):
        gone = answers.value("budget") == "medium"
        return replace(ready(answers), advice=replace(advice, alternatives=()) if gone else advice)

    shown = []
    _, ui, _ = menu(
        advise,
        *("Another method", "sft+full", "Take it"),
        *("Change an answer", "How much may it cost?", "Quality comes first"),
        *("Change an answer", "How much may it cost?", "A moderate amount"),
        "Quit",
        actions={
            "show": lambda outcome: shown.append(str(outcome.advice.recommendation.composition))
        },
    )
    assert shown == ["sft+qlora", "sft+full", "sft+full", "sft+qlora"]
    assert "With these answers sft+full cannot be taken any more." in ui.said


def test_what_must_not_be_taken_is_only_explained():
    """A candidate that a company forbids, or that cannot run, is shown and not offered."""
    advice = scenario_5()
    forbidden = replace(advice.alternatives[0], forced_ok=False)
    only = replace(advice, alternatives=(forbidden,))
    _, ui, called = menu(
        lambda answers: replace(ready(answers), advice=only),
        "Another method",
        str(forbidden.composition),
        "Back",
        "Quit",
    )
    assert called == ["show", str(forbidden.composition)]
    assert not any("instead?" in message for message in ui.asked)


@pytest.mark.parametrize(
    "outcome",
    [
        WizardOutcome(advice=scenario_5(), plan=object(), plan_path="plan-12.yaml", trial_steps=13,
                first="downloads about 15.3 GiB first"),
        WizardOutcome(advice=scenario_5(), plan=object(), plan_path="p", other_machine="it is away"),
        WizardOutcome(advice=scenario_5(), missing=("data.path",)),
        WizardOutcome(advice=remedy_alone()),
        WizardOutcome(advice=nothing_fits()),
    ],
)  # fmt: skip
def test_the_menu_fits_one_screen(outcome):
    """With everything that can be offered it takes a line for each choice, and fewer than 24."""
    options = menu_options(outcome, askable=3, skipped=12, mattering=10)
    lines = [choice_lines(option, 80) for option in options]
    assert not [line for line in lines if "\n" in line]
    assert len(lines) < 22


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (WizardOutcome(advice=remedy_alone()), "a remedy trains nothing"),
        (
            WizardOutcome(advice=remedy_alone(), plan=object()),
            "a remedy trains nothing, plan or not",
        ),
        (WizardOutcome(advice=nothing_fits(), plan=object()), "nothing fits"),
        (WizardOutcome(advice=scenario_5(), missing=("data.path",)), "no data"),
        (WizardOutcome(advice=scenario_5(), plan=object(), missing=("model",)), "no model"),
    ],
)
def test_what_cannot_run_is_never_offered(outcome, why):
    """Run it now is offered only for a complete plan that trains and fits."""
    assert "Run it now" not in [option.label for option in menu_options(outcome)], why
    assert "Run it now" in [option.label for option in menu_options(ready(AnswerSet()))]


def test_on_a_small_screen_the_menu_leaves_room_for_the_answer():
    """What is seldom wanted is behind "More choices", from which one comes back."""
    options = list(menu_options(ready(AnswerSet()), skipped=12))
    near, further = folded(options)
    assert near[-1].value == "quit"
    assert len(near) <= 6
    assert {one.value for one in [*near, *further]} == {one.value for one in options} | {MORE}
    pressed = ("More choices", "Back", "More choices", "Show the plan", "Quit")
    code, ui, _ = menu(ready, *pressed, rows=24)
    assert code == 0
    assert "PLAN TEXT" in ui.said
    assert len(ui.offered[-1]) <= 6


def test_what_is_missing_for_a_run_is_said():
    """Without data the menu says what the run still needs, in the words of the question."""
    _, ui, _ = menu(
        lambda answers: WizardOutcome(advice=scenario_5(), missing=("data.path",)), "Quit"
    )
    assert "It cannot be run yet; missing: data.path (Where are your examples?)" in ui.said


def test_what_is_missing_can_be_answered():
    """Each missing answer has its question, put before or not; with it the plan is complete."""

    def advise(answers):
        missing = tuple(
            name
            for fact, name in (("reward_model", "reward_model"), ("model", "model"))
            if answers.value(fact) is None
        )
        return WizardOutcome(advice=scenario_5(), missing=missing) if missing else ready(answers)

    _, ui, _ = menu(
        advise,
        "Answer what is missing",
        "scores",
        "<",
        "Answer what is missing",
        "Qwen/Qwen3-8B",
        "Quit",
    )
    assert [offered[0] for offered in ui.offered if "Quit" in offered] == [
        "Answer what is missing",
        "Answer what is missing",
        "Run it now",
    ]


def test_what_only_a_plan_needs_is_asked_where_the_plan_needs_it():
    """Examples beside documents are asked for once it is clear that they are read; the answer can
    be changed later.
    """
    seen = []

    def advise(answers):
        seen.append(answers.value("data_examples"))
        return (
            ready(answers)
            if answers.value("data_examples")
            else WizardOutcome(advice=scenario_5(), missing=("data.examples",))
        )

    question = FACTS["data_examples"].ask
    _, ui, called = menu(
        advise,
        "train.jsonl",
        "Change an answer",
        question.split(" (")[0],
        "train.jsonl",
        "Quit",
        checks=Checks(data_examples=lambda text: None),
    )
    assert ui.asked[1] == f"2. {question}"
    assert seen == [None, "train.jsonl", "train.jsonl"]
    assert called == ["show", "show"]


def test_not_knowing_what_a_plan_needs_is_no_dead_end():
    """I don't know leads to the menu, which offers the question again."""
    _, ui, _ = menu(
        lambda answers: WizardOutcome(advice=scenario_5(), missing=("data.examples",)),
        "",
        "Answer what is missing",
        "<",
        "Quit",
    )
    assert [message for message in ui.asked if message.endswith(FACTS["data_examples"].ask)] == [
        f"2. {FACTS['data_examples'].ask}",
        f"3. {FACTS['data_examples'].ask}",
    ]


def test_quitting_tells_whether_anything_fits():
    """Quit is 0, or 3 where nothing fits."""
    assert menu(ready, "Quit")[0] == 0
    state_path().unlink()
    assert menu(lambda answers: WizardOutcome(advice=nothing_fits()), "Quit")[0] == 3


def test_the_plan_is_shown():
    """The menu comes back after it."""
    code, ui, _ = menu(ready, "Show the plan", "Quit")
    assert code == 0
    assert "PLAN TEXT" in ui.said


def test_why_and_why_not_come_back_to_the_menu():
    """Why shows the recommendation's reasons; why not lists every alternative, as often as
    wanted.
    """
    _, ui, called = menu(
        ready, "Why this?", "Another method", "sft+full", "Back to the list", "Back", "Quit"
    )
    assert called == ["show", "why", "sft+full"]
    assert ui.offered[-2] == [
        *(str(candidate.composition) for candidate in scenario_5().alternatives),
        "Back",
    ]


def test_a_what_if_is_tried_and_taken_back():
    """Choosing a change re-answers its question and recommends anew, as another answer does."""
    seen = []

    def advise(answers):
        seen.append(known(answers))
        return ready(answers)

    _, _, called = menu(
        advise,
        *("What would change it?", "If you trained on one A100 80GB"),
        *("Change an answer", "Which graphics card will be used?", "Use this machine"),
        "Quit",
    )
    assert seen == [
        {"task": "generation"},
        {"task": "generation", "gpu": "A100 80GB"},
        {"task": "generation"},
    ]
    assert called == ["show"] * 3


def test_nothing_changes_by_looking():
    """Back from each list leaves the recommendation as it is."""
    _, _, called = menu(
        ready,
        "What would change it?",
        "Back",
        "Another method",
        "Back",
        "Change an answer",
        "Back",
        "Quit",
    )
    assert called == ["show"]


def test_the_ways_out_are_lines_to_type():
    """Where nothing fits, each way out is shown with its line, and can be tried."""
    way = WayOut(
        text="a smaller model fits",
        change={"model": "Qwen/Qwen3-4B"},
        to=nothing_fits().recommendation.composition,
        command="advise run --model Qwen/Qwen3-4B",
    )
    stuck = replace(
        nothing_fits(),
        nothing_fits=Infeasible(nearest=nothing_fits().recommendation, blame=(), ways_out=(way,)),
    )
    seen = []

    def advise(answers):
        seen.append(known(answers))
        return WizardOutcome(advice=stuck)

    code, ui, _ = menu(advise, "What would fit", "A smaller model fits", "Quit")
    assert "  advise run --model Qwen/Qwen3-4B" in ui.said
    assert seen[-1] == {"task": "generation", "model": "Qwen/Qwen3-4B"}
    assert code == 3


def test_what_was_not_asked_can_be_answered():
    """The questions left out are put in order; back from the first of them leaves them."""
    seen = []

    def advise(answers):
        seen.append(known(answers))
        return ready(answers)

    left = [
        fact
        for fact in questions(FACTS)
        if applies(
            fact, AnswerSet(known={"task": Answer(value="generation", origin="asked")}), FACTS
        )
    ][1:]
    _, ui, _ = menu(
        advise,
        "Answer what was not asked",
        "<",
        "Answer what was not asked",
        "train.jsonl",
        "Yes",
        None,
    )
    assert f"{len(left)} questions; the method stays" in ui.helps[1]
    assert ui.asked[2].startswith("2. Where are your examples?")
    assert ui.asked[4:6] == [
        "2. Where are your examples? (a file or a folder)",
        f"3. {FACTS['facts_change_often'].ask}",
    ]
    saved = load_answers(FACTS)[0]
    assert saved.answers.value("data_path") is not None
    assert saved.answers.signals == ("facts_change_often",)


def test_a_changed_answer_is_advised_on_again():
    """Change an answer asks which, puts that question, and recommends anew with it."""
    seen = []

    def advise(answers):
        seen.append(known(answers))
        return ready(answers)

    _, _, called = menu(
        advise,
        "Change an answer",
        "How much may it cost?",
        "Quality comes first",
        "Change an answer",
        "Back",
        "Quit",
    )
    assert seen == [{"task": "generation"}, {"task": "generation", "budget": "high"}]
    assert called == ["show", "show"]
    assert load_answers(FACTS)[0].answers.value("budget") == "high"  # also for the next start


def test_a_flag_can_be_changed_in_the_menu():
    """An answer from a flag is listed and may be replaced by what is asked now."""
    seen = []

    def advise(answers):
        seen.append(answers.known["task"])
        return ready(answers)

    ui = ScriptedUi("Change an answer", "What should the model do for you?", "Write code", "Quit")
    actions = Actions(
        show=lambda _: None,
        show_all=lambda _: None,
        next_steps=lambda _: None,
        why=lambda _: None,
        run=lambda _: 0,
        trial=lambda _: 0,
        bundle=lambda _: [],
        choose=lambda outcome, _: outcome,
        plan_text=lambda _: "",
        explain=lambda *_: None,
    )
    earlier = AnswerSet(known={"task": Answer(value="qa", origin="flag")})
    interview = Interview(facts=FACTS, hardware=CPU, ui=ui, relevant=lambda *_: False)
    run_wizard(interview, advise, actions, earlier=earlier)
    assert seen == [Answer(value="qa", origin="flag"), Answer(value="code", origin="asked")]


def test_answers_that_cannot_be_used_may_be_changed():
    """A fault found only while advising is shown, and the answer can be given again."""

    def advise(answers):
        if answers.value("model") is None:
            raise InputError("model: this one has no config.json")
        return ready(answers)

    code, ui, _ = menu(
        advise,
        "Change an answer",
        "Which model do you want to start from?",
        "Qwen/Qwen3-8B",
        "Quit",
    )
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


def test_the_plan_of_a_conversation_replaces_nobody_elses_file(tmp_path, monkeypatch):
    """The wizard writes its own launch file anew after every answer; a file that was there, and its
    own once it was edited, is left alone.
    """
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("somebody's")
    plan = Plan(
        model="Qwen/Qwen3-8B",
        data=PlanData(path="train.jsonl"),
        stages=(Stage(name="sft", objective="sft", update="lora", learning_rate=2e-4),),
    )
    plans = PlanFile()
    assert [str(plans.write(replace(plan, name=name), {})) for name in ("first", "second")] == [
        "plan-2.yaml"
    ] * 2
    edited = Path("plan-2.yaml").read_text().replace("0.0002", "0.0003")
    Path("plan-2.yaml").write_text(edited)
    assert str(plans.write(plan, {})) == "plan-3.yaml"
    # Another conversation that comes to the same plan finds its file; a change leaves that alone.
    others = PlanFile()
    assert str(others.write(plan, {})) == "plan-3.yaml"
    assert str(others.write(replace(plan, name="other"), {})) == "plan-4.yaml"
    assert "name: finetune" in Path("plan-3.yaml").read_text()
    assert (Path("plan.yaml").read_text(), Path("plan-2.yaml").read_text()) == (
        "somebody's",
        edited,
    )
