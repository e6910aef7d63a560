"""The interactive way: probe, questions, recommendation, plan, "run it now?". Joins the wizard with everything it calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.errors import AdviseError, InputError
from advisor.facts import load_facts

if TYPE_CHECKING:
    from advisor.types import Advice, Answers, Candidate

PLAN_FILE = "plan.yaml"


def wizard(rule_layers: tuple[str, ...]) -> int:
    """Ask, recommend, write ./plan.yaml and do what the person chooses. Returns the exit code.

    Raises InputError where there is no terminal to ask on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError("the wizard asks questions, and this is not a terminal", hint="for scripts: advise --json --task qa (flags), or advise --json --answers FILE")
    from advisor import cli
    from advisor.probe import probe
    from advisor.wizard import Actions, Checks, Outcome, run_wizard

    out = cli.console()
    hardware = probe()
    plans = _PlanFile()

    def advise(answers: Answers) -> Outcome:
        advice, ruleset = cli.advise_on(answers, [], rule_layers, probed=hardware, online=True)
        plan, comments, missing = cli.planned(advice, ruleset)
        if plan is None:
            return Outcome(advice=advice, missing=tuple(missing))
        return Outcome(advice=advice, plan=(plan, comments), plan_path=str(plans.write(plan, comments)))

    def show(outcome: Outcome) -> None:
        from advisor.render.terminal import print_advice

        print_advice(outcome.advice, out, plan_path=outcome.plan_path)

    def plan_text(outcome: Outcome) -> str:
        return Path(outcome.plan_path).read_text(encoding="utf-8") if outcome.plan_path else "there is no plan yet"

    def save_page(outcome: Outcome, path: Path) -> Path:
        return _save_page(outcome.advice, path, plan_text(outcome) if outcome.plan_path else None)

    def explain(outcome: Outcome, candidate: Candidate) -> None:
        from advisor.render.terminal import print_candidate

        print_candidate(candidate, out, methods=outcome.advice.methods)

    actions = Actions(
        show=show,
        run=lambda outcome: cli.run_plan_file(Path(str(outcome.plan_path)), {}),
        plan_text=plan_text,
        save_page=save_page,
        explain=explain,
    )
    checks = Checks(gpu=_refused(_known_gpu), model=_refused(_known_model))
    return run_wizard(facts=load_facts(), hardware=hardware, advise=advise, actions=actions, console=out, checks=checks)


class _PlanFile:
    """One launch file for the whole conversation; a file that was there before is left alone."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def write(self, plan: Any, comments: Any) -> Path:
        from advisor import cli

        if self.path is None:
            number = 1
            self.path = Path(PLAN_FILE)
            while self.path.exists():
                number += 1
                self.path = Path(f"plan-{number}.yaml")
        cli.write_plan_file(plan, comments, self.path)
        return self.path


def _save_page(advice: Advice, path: Path, plan_text: str | None) -> Path:
    from advisor.files import write_atomically
    from advisor.render.html import advice_page

    write_atomically(path, advice_page(advice, plan_text=plan_text))
    return path


def _refused(check: Callable[[str], object]) -> Callable[[str], str | None]:
    """A check that raises, as one that returns what is wrong or None."""

    def checked(text: str) -> str | None:
        try:
            check(text)
        except AdviseError as error:
            return error.text()
        return None

    return checked


def _known_gpu(name: str) -> None:
    from advisor.probe import stated_hardware

    stated_hardware(name, count=1, memory_gib=None, from_flag=True)


def _known_model(name: str) -> None:
    from advisor.shapes import model_shape

    model_shape(name)
