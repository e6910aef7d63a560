"""`advise` on a terminal: probe, questions, recommendation, plan, "run it now?".

Joins the wizard with what it calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from advisor.advice.advise import advise as advise_on
from advisor.advice.advise import could_learn_before
from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.advice.types import Advice, Candidate
from advisor.commands.output import console, run_tool
from advisor.commands.session import choose_candidate, load_rule_set, resolve_plan
from advisor.data import profile
from advisor.export.exporter import ExportRequest, exporters
from advisor.ground.errors import AdviseError, Fault, InputError, MachineNotReady
from advisor.ground.files import PLAN_FILE, bytes_of
from advisor.ground.types import FSDP, AnswerSet, DataProfile, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.launch.checks.device import device_faults, device_missing
from advisor.launch.checks.packages import package_faults
from advisor.launch.expected import StageEstimator
from advisor.launch.hub import cache_line, login, model_needs
from advisor.methods import objective
from advisor.plan.comments import stage_notes
from advisor.plan.entries import entries
from advisor.plan.model import Comments, Place, Plan
from advisor.plan.read import PlanOnDisk, set_values
from advisor.plan.write import plan_text as text_of
from advisor.plan.write import write_plan_file
from advisor.probe import probe
from advisor.record.next_step import REPLAY_ROWS, trial_steps
from advisor.render.answer.page import first_screen, page_of, steps_section
from advisor.render.answer.why import obstacles, why
from advisor.render.blocks import Section
from advisor.render.next_steps import next_steps
from advisor.render.terminal import print_advice, print_candidate, print_page, print_whole_answer
from advisor.render.words import without_flags
from advisor.ruleset.model import Ruleset
from advisor.situation.build import examples_of, model_folder, situation_of
from advisor.situation.names import look_up_name
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.types import Situation
from advisor.wizard.menu import run_wizard
from advisor.wizard.outcome import Actions, Checks, Interview, WizardOutcome
from advisor.wizard.prompts import terminal_ui
from advisor.wizard.walk import Relevance

LEAVE = "Space goes on, q leads back to the menu."
FILES = ("data_path", "data_examples", "tasks", "reward_model")  # answers that name one


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def wizard(rule_layers: tuple[str, ...], given: AnswerSet | None = None) -> int:
    """Ask, recommend, write ./plan.yaml and do what the person chooses. Returns the exit code.

    What flags have given is not asked for. Raises InputError if there is no terminal to ask on.
    """
    if not on_terminal():
        raise InputError(
            "the wizard asks questions, and this is not a terminal",
            hint="for scripts the answers are flags, or a file behind --answers:\n"
            "    advise --json --task qa",
        )
    out = console()
    ruleset, guide = load_rule_set(rule_layers)
    hardware = probe()
    seen = AnswerCache(hardware)
    relevance = Relevance(
        ruleset, seen.facts, lambda answers, chain, _: seen.fits(ruleset, answers, chain)
    )

    menu = Menu(out, ruleset, hardware)

    def advise(answers: AnswerSet) -> WizardOutcome:
        situation = situation_of(answers, probed=hardware, online=True, read=seen.read)
        return menu.outcome(advise_on(situation, ruleset, guide))

    checks = Checks(
        data_examples=_refused(examples_of),
        models=look_up_name,
        reward_model=_refused(model_folder),
        profile=seen.read,
    )
    interview = Interview(
        facts=ruleset.facts,
        hardware=hardware,
        ui=terminal_ui(out),
        checks=checks,
        relevant=relevance,
    )
    return run_wizard(interview, advise, menu.actions(), earlier=given)


class AnswerCache:
    """What answers mean to the rules, before anything is estimated. A data file is read once."""

    def __init__(self, probed: Hardware) -> None:
        self.probed = probed
        self._profiles: dict[str, DataProfile | AdviseError] = {}

    def situation(self, answers: AnswerSet) -> Situation:
        """The situation of the answers; without their files if one cannot be used."""
        try:
            return situation_of(answers, probed=self.probed, read=self.read)
        except InputError:
            known = {name: one for name, one in answers.known.items() if name not in FILES}
            return situation_of(AnswerSet(known=known), probed=self.probed)

    def facts(self, answers: AnswerSet) -> dict[str, Any]:
        """Fact id -> value, as advice will see them (advisor/advice/facts.py)."""
        return situation_facts(self.situation(answers))

    def fits(self, ruleset: Ruleset, answers: AnswerSet, chain: str) -> dict[str, Any]:
        """Fact id -> value, with what fits and what is known of the model that is suggested if
        none was named, once model, data and machine are answered.
        """
        case = Case.build(self.situation(answers), ruleset).with_suggestion()
        fits = case.coarse_fits(chain)
        return {**case.facts, **{f"fits_{scheme}": fit for scheme, fit in fits.items()}}

    def read(self, path: str, mapping: Any = None, wanted: str | None = None) -> DataProfile:
        """The data file measured. Raises AdviseError if it cannot be read."""
        key = repr((path, mapping, wanted))
        if key not in self._profiles:
            try:
                self._profiles[key] = profile(path, mapping=mapping, wanted=wanted)
            except AdviseError as error:
                self._profiles[key] = error
        found = self._profiles[key]
        if isinstance(found, AdviseError):
            raise found
        return found


def _refused(check: Callable[[str], object]) -> Callable[[str], str | None]:
    """A check that raises, as one that returns what is wrong or None."""

    def checked(text: str) -> str | None:
        try:
            check(text)
        except AdviseError as error:
            return error.text()
        return None

    return checked


class Menu:
    """The actions of one conversation, around its launch file."""

    def __init__(self, out: Console, ruleset: Ruleset, hardware: Hardware) -> None:
        self.out, self.ruleset, self.hardware = out, ruleset, hardware
        self.plans = PlanFile()

    def actions(self) -> Actions:
        """What the menu calls."""
        return Actions(
            show=self.show,
            show_all=lambda outcome: self.paged(
                lambda: print_whole_answer(
                    outcome.advice, self.out, plan_path=outcome.plan_path, words=without_flags
                )
            ),
            next_steps=lambda outcome: self.show_part(outcome, steps_section),
            why=lambda outcome: self.show_part(outcome, obstacles, why),
            run=lambda outcome: self.train(outcome, {}),
            trial=self.trial,
            bundle=self.bundle,
            choose=self.choose,
            set_general=self.set_general,
            plan=self.show_plan,
            explain=lambda outcome, candidate: print_candidate(
                candidate, self.out, methods=outcome.advice.methods
            ),
        )

    def outcome(self, advice: Advice) -> WizardOutcome:
        """The advice with its plan, which is written, and what this machine can do with it."""
        plan, comments, missing = resolve_plan(advice, self.ruleset)
        known = WizardOutcome(
            advice=advice,
            headline=headline(advice),
            missing=(*missing,),
            first_ask=first_ask(advice),
        )
        if plan is None:
            return known
        path = self.plans.write(plan, comments)
        here = check_machine(plan, Path(PLAN_FILE), self.hardware)
        size = here.download_bytes
        first = f"downloads about {format_gib(size)} first" if size else ""
        return replace(
            known,
            plan=(plan, comments),
            plan_path=str(path),
            other_machine=here.other_machine,
            lacking=here.lacking,
            trial_steps=trial_steps(plan),
            general=general_setting(plan, advice.situation.model),
            downloads=here.downloads,
            first="downloads the model first" if size is None else first,
        )

    def show(self, outcome: WizardOutcome) -> None:
        """Print the answer."""
        print_advice(outcome.advice, self.out, plan_path=outcome.plan_path, read_in="menu")

    def show_part(self, outcome: WizardOutcome, *parts: Callable[[Advice], Section]) -> None:
        """Print sections of the whole answer."""
        shown = (part(outcome.advice) for part in parts)
        sections = tuple(section for section in shown if section.blocks)
        page = replace(page_of(outcome.advice), sections=sections)
        self.paged(lambda: print_page(page, self.out, words=without_flags))

    def paged(self, print_it: Callable[[], None]) -> None:
        """Print it; what is longer than the screen is shown page by page."""
        with self.out.capture() as printed:
            print_it()
        text = printed.get()
        if text.count("\n") >= self.out.height and self.out.is_terminal:
            click.echo_via_pager(f"{LEAVE}\n{text}")
        else:
            self.out.file.write(text)  # click's echo would show its colours as text
            self.out.file.flush()

    def train(
        self, outcome: WizardOutcome, settings: dict[str, Any], *, offers: bool | None = None
    ) -> int:
        """Run the plan, print what came of it and offer what can be done with it, unless the menu
        of the wizard does. Returns the exit code.
        """
        from advisor.commands.training import show_run, train  # most people look before they train

        return show_run(train(Path(str(outcome.plan_path)), settings), offers=offers)

    def trial(self, outcome: WizardOutcome) -> int:
        """Run the plan for a few steps of each stage."""
        return self.train(outcome, {"max_steps": outcome.trial_steps}, offers=False)

    def bundle(self, outcome: WizardOutcome) -> list[str]:
        """Pack the plan for another machine, under a name that is free. Returns what to say."""
        form = exporters().get("bundle")
        if form is None:
            raise MachineNotReady("the form 'bundle' is not here", hint="install advise again")
        plan: Plan = outcome.plan[0]
        number, name = 1, f"{plan.name}-bundle"
        while any(Path.cwd().glob(f"{name}*")):
            number += 1
            name = f"{plan.name}-bundle-{number}"
        lines: list[str] = []
        wanted = ExportRequest(
            source=Path(str(outcome.plan_path)), out=Path(name), only=None, say=lines.append,
            run_tool=lambda tool, *arguments: run_tool(tool, *arguments).returncode,
        )  # fmt: skip
        form.export(wanted)
        return lines

    def choose(self, outcome: WizardOutcome, candidate: Candidate) -> WizardOutcome:
        """The outcome with another candidate, and its plan. Raises AdviseError if it cannot be."""
        chosen = choose_candidate(
            outcome.advice, self.ruleset, str(candidate.composition), force=True
        )
        return self.outcome(chosen)

    def set_general(self, outcome: WizardOutcome) -> WizardOutcome:
        """The outcome whose plan mixes general rows in, or leaves them out."""
        before, said = outcome.plan
        plan = set_values(before, [str(outcome.general)])
        of = [one.name for one in plan.stages].index(str(outcome.general).split(".")[1])
        place, comments = ("stages", of, "replay"), dict[Place, str]()
        done = "put in" if plan.stages[of].options.get("replay") else "left out"
        for at, text in said.items():
            text, again, _ = text.partition("; before general rows were ")
            older = "optimizer steps" in text and at[:2] == place[:2] and not again
            comments[at] = f"{text}; before general rows were {done}" if older else text
        comments |= {place[:2]: stage_notes(plan, of, instruct=True), place: f"{done} by you"}
        path = str(self.plans.write(plan, comments))
        again = general_setting(plan, outcome.advice.situation.model)
        return replace(outcome, plan=(plan, comments), plan_path=path, general=again)

    def show_plan(self, outcome: WizardOutcome) -> None:
        """Print the launch file as it stands there."""
        text = Text(bytes_of(Path(str(outcome.plan_path))).decode())
        self.paged(lambda: self.out.print(text, soft_wrap=True))


def headline(advice: Advice) -> str:
    """The first sentence of the answer, without what it adds behind a semicolon."""
    return f"{without_flags(first_screen(advice).answer).partition(';')[0].rstrip('.')}."


def first_ask(advice: Advice) -> str:
    """The question that decides what is offered: whether anything may leave the house, where a
    provider would be named; whether there are examples, where pairs alone are learned from.
    """
    if any(way.where == "hosted" for one in next_steps(advice) for way in one.ways):
        return "priority"
    situation, chain = advice.situation, ">".join(advice.recommendation.composition.chain)
    has_pairs = situation.data is not None and situation.data.kind == "preference"
    return "data_examples" if has_pairs and could_learn_before(chain) else ""


def general_setting(plan: Plan, model: ModelShape | None) -> str | None:
    """The setting that mixes general rows into the first stage that may have them, or leaves them
    out; None where the model cannot answer beforehand.
    """
    for stage in plan.stages:
        takes = "replay" in objective(stage.objective).keys and "head" not in stage.options
        if takes and stage.options.get("replay"):
            return f"stages.{stage.name}.replay=null"
        if takes and model is not None and model.instruct and plan.launch.strategy != FSDP:
            return f"stages.{stage.name}.replay={{rows: {REPLAY_ROWS}}}"
    return None


class PlanFile:
    """One launch file for the whole conversation; a file that was there before, or was edited
    meanwhile, is left alone.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.written = b""  # what this conversation wrote there

    def write(self, plan: Plan, comments: Comments) -> Path:
        """Write the plan, or find the file that holds it already. Returns its path."""
        number, path = 1, Path(PLAN_FILE)
        while path.exists() and not (path == self.path and bytes_of(path) == self.written):
            text = text_of(plan, comments, name=path.name).encode()
            if path.is_file() and bytes_of(path) == text:
                return path
            number += 1
            path = Path(f"plan-{number}.yaml")
        write_plan_file(plan, comments, path, force=True)
        self.path, self.written = path, bytes_of(path)
        return path


# --------------------------------------------------------------------------- the machine


class MachineCheck(Struct, frozen=True, kw_only=True):
    """What stands between a plan and a run on this machine."""

    other_machine: str = ""  # why it takes another one; empty: this one can
    lacking: tuple[Fault, ...] = ()  # what can be mended here; each hint is the line that does
    download_bytes: int | None = 0  # of models, before it starts; None: not known
    downloads: tuple[str, ...] = ()  # each with its size, licence and the room for it, in words


def check_machine(plan: Plan, plan_path: Path, hardware: Hardware) -> MachineCheck:
    """What stands between the plan and a run on this machine. No network is asked."""
    file, todo = PlanOnDisk(plan=plan, path=plan_path), entries(plan)
    shape, used = plan_shape(plan, plan_path), device_hardware(plan, hardware)
    missing = device_missing(plan, hardware)
    if missing is not None:
        reasons = [missing.what]
    else:
        estimator = StageEstimator(plan=plan, shape=shape, hardware=used)
        expected = {entry.name: estimator.expect(entry) for entry in todo}
        reasons = [
            f"stage {name} needs about {format_gib(one.need_bytes)}, and this machine has"
            f" {format_gib(one.limit_bytes)} for it"
            for name, one in expected.items()
            if one.fits == "too_big" and one.need_bytes and one.limit_bytes
        ]
    faults = package_faults(hardware, plan.stages)
    if not reasons:
        faults += device_faults(plan, hardware)
    models = model_needs(file, todo, shape)
    if login() is None:
        faults += [need.gate_fault() for need in models if need.is_gated and not need.is_cached]
    needs = [need.download_bytes for need in models]
    lines = [need.line() for need in models if not need.is_cached]
    return MachineCheck(
        other_machine=reasons[0] if reasons else "",
        lacking=tuple(faults),
        downloads=tuple(filter(None, [*lines, cache_line(models)])),
        download_bytes=None if None in needs else sum(need or 0 for need in needs),
    )
