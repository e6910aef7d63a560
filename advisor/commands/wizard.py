"""`advise` on a terminal: probe, questions, recommendation, plan, "run it now?".

Joins the wizard with what it calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from advisor.advice.advise import advise as advise_on
from advisor.advice.case import Case
from advisor.advice.facts_of_situation import situation_facts
from advisor.commands.output import console
from advisor.commands.session import Stated, load_known_facts, load_rule_set
from advisor.commands.wizard_menu import Menu
from advisor.data import profile
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import Answers, DataProfile, Hardware, ModelShape
from advisor.probe import probe
from advisor.ruleset.model import Ruleset
from advisor.situation.build import (
    examples_of,
    hardware_of,
    model_folder,
    outside_of,
    situation_of,
)
from advisor.situation.data_fit import wanted_columns
from advisor.situation.model_choice import meant_by
from advisor.situation.shapes import is_instruct, model_shape
from advisor.situation.types import Situation
from advisor.wizard import Checks, Outcome, Relevance, run_wizard, walk
from advisor.wizard.asking import asker
from advisor.wizard.checks import path_exists
from advisor.wizard.data_file import found_lines, profile_of
from advisor.wizard.prompts import terminal_ui


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def with_required(stated: Stated, rule_layers: tuple[str, ...]) -> Stated:
    """The answers with those that every answer needs (the task) asked for, on a terminal."""
    if not on_terminal():
        return stated
    ask = asker(terminal_ui(console()), probe(), Checks())
    facts = load_known_facts(rule_layers)
    return replace(stated, answers=walk(facts, ask, stated.answers, relevant=lambda *_: False))


def wizard(rule_layers: tuple[str, ...], given: Answers | None = None) -> int:
    """Ask, recommend, write ./plan.yaml and do what the person chooses. Returns the exit code.

    What flags have given is not asked for. Raises InputError if there is no terminal to ask on.
    """
    if not on_terminal():
        raise InputError(
            "the wizard asks questions, and this is not a terminal",
            hint="for scripts: advise --json --task qa (flags), or advise --json --answers FILE",
        )
    out = console()
    ruleset, guide = load_rule_set(rule_layers)
    hardware = probe()
    seen = AnswerCache(hardware)
    relevance = Relevance(
        ruleset,
        seen.facts,
        lambda answers, chain, per_task: seen.fits(ruleset, answers, chain, per_task=per_task),
    )

    menu = Menu(out, ruleset, hardware)

    def advise(answers: Answers) -> Outcome:
        situation = situation_of(answers, probed=hardware, online=True)
        return menu.outcome(advise_on(situation, ruleset, guide))

    checks = Checks(
        data_path=_readable(seen), data_examples=_refused(examples_of),
        models=meant_by,
        reward_model=_refused(model_folder), found=seen.data_words, profile=seen.read,
    )  # fmt: skip
    return run_wizard(
        facts=ruleset.facts, hardware=hardware, advise=advise, actions=menu.actions(), console=out,
        earlier=given, checks=checks, relevant=relevance, left_out=relevance.left_out
    )  # fmt: skip


class AnswerCache:
    """What answers mean to the rules, before anything is estimated.

    A data file is read and a model looked up once.
    """

    def __init__(self, probed: Hardware) -> None:
        self.probed = probed
        self._profiles: dict[tuple[str, str, str | None], DataProfile | AdviseError] = {}
        self._models: dict[tuple[str, float | None], ModelShape | None] = {}

    def facts(self, answers: Answers) -> dict[str, Any]:
        """Fact id -> value, as advice will see them (advisor/advice/facts_of_situation.py)."""
        hardware = hardware_of(answers, [], probed=self.probed)
        return situation_facts(
            Situation(
                answers=answers,
                hardware=hardware,
                **self._data(answers),
                model=self._model(answers.value("model"), answers.value("model_params_b")),
                outside=outside_of(answers, hardware),
                teacher=self._model(answers.value("teacher_model"), None),
            )
        )

    def fits(
        self, ruleset: Ruleset, answers: Answers, chain: str, *, per_task: bool
    ) -> dict[str, Any]:
        """Fact id -> value, with what fits and what is known of the model that is suggested where
        none was named, once model, data and machine are answered.
        """
        without = Answers(
            known={
                name: answer
                for name, answer in answers.known.items()
                if name not in ("data_path", "tasks")
            }
        )  # read already
        situation = replace(situation_of(without, probed=self.probed), **self._data(answers))
        case = Case.build(situation, ruleset).with_suggestion()
        fits = case.costs.coarse_fits(chain, per_task=per_task, facts=case.facts)
        return {**case.facts, **{f"fits_{scheme}": fit for scheme, fit in fits.items()}}

    def _data(self, answers: Answers) -> dict[str, Any]:
        """The data and the tasks of the situation."""
        mapping, path, tasks = (
            answers.value(name) for name in ("data_mapping", "data_path", "tasks")
        )
        wanted = wanted_columns(answers.value("task"))
        found = {
            name: profile_of(self.read, file, mapping, wanted)
            for name, file in (tasks or {}).items()
        }
        return {
            "data": profile_of(self.read, str(path), mapping, wanted) if path else None,
            "tasks": {name: profile for name, profile in found.items() if profile is not None},
        }

    def read(self, path: str, mapping: Any = None, wanted: str | None = None) -> DataProfile:
        """The data file measured. Raises AdviseError where it cannot be read."""
        key = (path, repr(mapping), wanted)
        if key not in self._profiles:
            try:
                self._profiles[key] = profile(path, mapping=mapping, wanted=wanted)
            except AdviseError as error:
                self._profiles[key] = error
        found = self._profiles[key]
        if isinstance(found, AdviseError):
            raise found
        return found

    def data_words(self, path: str) -> str:
        """What was recognised in a data file: '5,000 examples: requests with the right answer'."""
        found = profile_of(self.read, path, None, None)
        return "" if found is None else next(found_lines(found))

    def _model(self, name: Any, params_b: float | None) -> ModelShape | None:
        if name is None and params_b is None:
            return None
        key = (str(name), params_b)
        if key not in self._models:
            shape, _ = model_shape(
                str(name) if name is not None else f"a model of {params_b:g}B",
                params_b=params_b,
                online=False,
            )
            self._models[key] = (
                shape if shape is None else replace(shape, instruct=is_instruct(str(name)))
            )
        return self._models[key]


def _readable(seen: AnswerCache) -> Callable[[str], str | None]:
    """A check of a data path: that it is there, and that it holds examples that can be read."""

    def checked(path: str) -> str | None:
        return path_exists(path) or _refused(seen.read)(path)

    return checked


def _refused(check: Callable[[str], object]) -> Callable[[str], str | None]:
    """A check that raises, as one that returns what is wrong or None."""

    def checked(text: str) -> str | None:
        try:
            check(text)
        except AdviseError as error:
            return error.text()
        return None

    return checked
