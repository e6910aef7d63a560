"""What the wizard's menu does: shows the answer, writes the plan, runs it, packs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.advice.types import Advice, Candidate
from advisor.commands.choice import choose_candidate
from advisor.commands.session import resolve_plan
from advisor.commands.tools import run_tool
from advisor.export.exporter import Wanted, exporters
from advisor.ground.errors import MachineNotReady
from advisor.ground.files import PLAN_FILE
from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.launch.here import look_here
from advisor.plan.model import Comments, Plan
from advisor.plan.trial import trial_steps
from advisor.plan.write import plan_text as text_of
from advisor.plan.write_target import write_plan_file
from advisor.render.answer.page import page_of
from advisor.render.answer.steps import steps_section
from advisor.render.terminal import (
    print_advice,
    print_candidate,
    print_page,
    print_whole_answer,
)
from advisor.ruleset.model import Ruleset
from advisor.wizard import Actions, Outcome

if TYPE_CHECKING:
    from rich.console import Console


class Menu:
    """The actions of one conversation, around its launch file."""

    def __init__(self, out: Console, ruleset: Ruleset, hardware: Hardware) -> None:
        self.out, self.ruleset, self.hardware = out, ruleset, hardware
        self.plans = PlanFile()

    def actions(self) -> Actions:
        """What the menu calls."""
        return Actions(
            show=self.show,
            show_all=lambda outcome: print_whole_answer(
                outcome.advice, self.out, plan_path=outcome.plan_path
            ),
            next_steps=self.next_steps,
            run=lambda outcome: self.train(outcome, {}),
            trial=self.trial,
            bundle=self.bundle,
            choose=self.choose,
            plan_text=self.plan_text,
            explain=lambda outcome, candidate: print_candidate(
                candidate, self.out, methods=outcome.advice.methods
            ),
        )

    def outcome(self, advice: Advice) -> Outcome:
        """The advice with its plan, which is written, and what this machine can do with it."""
        plan, comments, missing = resolve_plan(advice, self.ruleset)
        if plan is None:
            return Outcome(advice=advice, ruleset=self.ruleset, missing=tuple(missing))
        path = self.plans.write(plan, comments)
        here = look_here(plan, Path(PLAN_FILE), self.hardware)
        size = here.download_bytes
        return Outcome(
            advice=advice,
            ruleset=self.ruleset,
            plan=(plan, comments),
            plan_path=str(path),
            other_machine=here.other_machine,
            lacking=here.lacking,
            trial_steps=trial_steps(plan),
            downloads=here.downloads,
            first=(
                "downloads the model first"
                if size is None
                else f"downloads about {format_gib(size)} first"
                if size
                else ""
            ),
        )

    def show(self, outcome: Outcome) -> None:
        """Print the answer."""
        print_advice(outcome.advice, self.out, plan_path=outcome.plan_path, read_in="menu")

    def next_steps(self, outcome: Outcome) -> None:
        """Print what to do where nothing is trained."""
        page = page_of(outcome.advice)
        print_page(replace(page, sections=(steps_section(outcome.advice),)), self.out)

    def train(self, outcome: Outcome, settings: dict[str, Any]) -> int:
        """Run the plan and print what came of it. Returns the exit code."""
        from advisor.commands.training import show_run, train  # most people look before they train

        return show_run(train(Path(str(outcome.plan_path)), settings))

    def trial(self, outcome: Outcome) -> int:
        """Run the plan for a few steps of each stage."""
        return self.train(outcome, {"max_steps": outcome.trial_steps})

    def bundle(self, outcome: Outcome) -> list[str]:
        """Pack the plan for another machine, under a name that is free. Returns what to say."""
        form = exporters().get("bundle")
        if form is None:
            raise MachineNotReady("the form 'bundle' is not here", hint="install advise again")
        plan: Plan = outcome.plan[0]
        number, name = 1, f"{plan.name}-bundle"
        while any(Path.cwd().glob(f"{name}*")):
            number += 1
            name = f"{plan.name}-bundle-{number}"
        source, lines = Path(str(outcome.plan_path)), list[str]()
        wanted = Wanted(
            source=source,
            out=Path(name),
            only=None,
            say=lines.append,
            run_tool=lambda tool, *arguments: run_tool(tool, *arguments).returncode,
        )
        form.export(wanted)
        return lines

    def choose(self, outcome: Outcome, candidate: Candidate) -> Outcome:
        """The outcome with another candidate, and its plan. Raises AdviseError if it cannot be."""
        chosen = choose_candidate(
            outcome.advice, self.ruleset, str(candidate.composition), force=True
        )
        return self.outcome(chosen)

    def plan_text(self, outcome: Outcome) -> str:
        """The launch file as it stands there."""
        return (
            Path(outcome.plan_path).read_text(encoding="utf-8")
            if outcome.plan_path
            else "there is no plan yet"
        )


class PlanFile:
    """One launch file for the whole conversation; a file that was there before, or was edited
    meanwhile, is left alone.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.written = b""  # what this conversation wrote there

    def write(self, plan: Plan, comments: Comments) -> Path:
        """Write the plan, or find the file that holds it already. Returns its path."""
        if self.path is None or (self.path.exists() and self.path.read_bytes() != self.written):
            self.path = _free_or_same(plan, comments)
            if self.path.exists():  # an earlier conversation's, which the next change must not take
                found, self.path = self.path, None
                return found
        write_plan_file(plan, comments, self.path, force=True)
        self.written = self.path.read_bytes()
        return self.path


def _free_or_same(plan: Plan, comments: Comments) -> Path:
    """plan.yaml, plan-2.yaml, ...: the first that is not there, or that holds this very plan."""
    number, path = 1, Path(PLAN_FILE)
    while path.exists():
        text = text_of(plan, comments, name=path.name).encode()
        if path.is_file() and path.read_bytes() == text:
            break
        number += 1
        path = Path(f"plan-{number}.yaml")
    return path
