"""A wizard around hand-made advice, for the tests that drive it in a real terminal."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from rich.console import Console

from advisor.data import profile
from advisor.ground.types import AnswerSet
from advisor.render.terminal import print_advice, print_candidate, print_whole_answer
from advisor.ruleset.facts import load_facts
from advisor.wizard.menu import run_wizard
from advisor.wizard.outcome import Actions, Checks, Interview, WizardOutcome
from advisor.wizard.prompts import terminal_ui
from tests.render.example_advice import PROBED_4090, scenario_5
from tests.wizard.scripted import PROFILE

ASKED = ("data_path", "depth", "budget", "model", "gpu", "serve_with", "priority")


def main() -> int:
    """Run the wizard; prints the answers it handed to `advise`."""
    plan, console = "version: 1\nmodel: Qwen/Qwen3-8B\n", Console()

    def advise(answers: AnswerSet) -> WizardOutcome:
        print("ANSWERS", sorted((fact, answer.value) for fact, answer in answers.known.items()))
        return WizardOutcome(advice=scenario_5(), plan=plan, plan_path="plan.yaml")

    def run(outcome: WizardOutcome) -> int:
        print("RUNNING", outcome.plan_path)
        return 0

    actions = Actions(
        show=lambda outcome: print_advice(
            outcome.advice, console, plan_path=outcome.plan_path, read_in="menu"
        ),
        show_all=lambda outcome: print_whole_answer(outcome.advice, console),
        next_steps=lambda outcome: print("NEXT STEPS"),
        why=lambda outcome: print("WHY"),
        run=run,
        trial=run,
        bundle=lambda outcome: ["BUNDLE"],
        choose=lambda outcome, candidate: outcome,
        plan=lambda outcome: print(outcome.plan),
        explain=lambda outcome, candidate: print_candidate(
            candidate, console, methods=outcome.advice.methods
        ),
    )
    interview = Interview(
        facts=load_facts(),
        hardware=PROBED_4090,
        ui=terminal_ui(console),
        checks=Checks(profile=lambda path, *_: PROFILE if Path(path).exists() else profile(path)),
        relevant=lambda fact, *_: fact in ASKED,
    )
    return run_wizard(interview, advise, actions)


if __name__ == "__main__":
    sys.exit(main())
