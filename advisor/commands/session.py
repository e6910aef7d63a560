"""What commands and the Python API share: answers, rules, advice, --choose and plan of one call.

Nothing is printed here but the warnings about the user's own rules, through `warn`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

import advisor.data
from advisor.advice.advise import advise, with_choice
from advisor.advice.facts import contradictions, contradictions_in, situation_facts
from advisor.advice.planning import make_plan, missing_for_plan
from advisor.advice.types import Advice
from advisor.ground.errors import AdviseError, Fault, InputError, refuse
from advisor.ground.terminal import print_warning
from advisor.ground.types import AnswerSet, Hardware
from advisor.ground.yaml_files import Document, parse_yaml, read_yaml
from advisor.plan.model import Comments, Plan
from advisor.ruleset.facts import Fact, load_facts
from advisor.ruleset.load import load_rules, only_layer
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_from_document, answers_from_flags, merge_answers
from advisor.situation.build import situation_of

SHIPPED = ("document", "evidence")
Warn = Callable[[str], object]


# --------------------------------------------------------------------------- answers


class Stated(Struct, frozen=True, kw_only=True):
    """What the user stated, and what is to be said about it."""

    answers: AnswerSet
    warnings: tuple[str, ...] = ()
    answers_file: str | None = None
    faults: tuple[Fault, ...] = ()  # of what is not among the answers

    @property
    def folder(self) -> Path | None:
        """Where paths in the answers file may start from."""
        named = self.answers_file not in (None, "-")
        return Path(str(self.answers_file)).parent if named else None


def read_answers(
    answers_file: str | None, flags: Mapping[str, tuple[Any, ...]], rule_layers: Sequence[str]
) -> Stated:
    """The answers in the file and in the flags, merged; flags override the file."""
    facts = load_known_facts(rule_layers)
    faults: list[Fault] = []
    found: list[AnswerSet] = []
    warnings: tuple[str, ...] = ()
    try:
        if answers_file is not None:
            in_file, warnings = answers_from_document(_document(answers_file), facts)
            found.append(in_file)
    except InputError as error:  # no file, no YAML, or wrong answers
        faults += error.faults
        found.append(getattr(error, "valid", AnswerSet()))
    try:
        paths = {name: flags.get(name) or () for name in ("data_path", "data_examples", "tasks")}
        typed = {name: tuple(advisor.data.typed_path(one) for one in paths[name]) for name in paths}
        found.append(answers_from_flags({**flags, **typed}, facts))
    except InputError as error:
        faults += error.faults
        found.append(getattr(error, "valid", AnswerSet()))
    merged = merge_answers(*found)
    return Stated(answers=merged, warnings=warnings, answers_file=answers_file, faults=(*faults,))


def _document(answers_file: str) -> Document:
    if answers_file == "-":
        return parse_yaml(sys.stdin.buffer.read(), name="<stdin>")
    refuse_data(answers_file)
    return read_yaml(answers_file)


def refuse_data(path: str) -> None:
    """Raise InputError for data that were named where answers or a plan are meant."""
    if path.endswith((".jsonl", ".csv", ".tsv", ".parquet", ".xlsx")):
        hint = f"name data with --data:\n    advise --data {shlex.quote(path)}"
        raise InputError("this is data, a YAML or JSON file is expected", where=path, hint=hint)


# --------------------------------------------------------------------------- rules


def find_rule_layers(rule_layers: Sequence[str]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """The shipped layers and the user's own files that --rules or ADVISE_RULES name."""
    wanted = rule_layers or tuple(
        filter(None, os.environ.get("ADVISE_RULES", "").split(os.pathsep))
    )
    overlays = tuple(Path(path) for path in wanted if path not in SHIPPED)
    return ("document",) if "document" in wanted else SHIPPED, overlays


def load_known_facts(rule_layers: Sequence[str]) -> Mapping[str, Fact]:
    """Every fact that may be stated: the shipped ones and those that the user's own files add."""
    layers, overlays = find_rule_layers(rule_layers)
    return load_rules(layers, overlays).facts if overlays else load_facts()


def load_rule_set(
    rule_layers: Sequence[str], *, warn: Warn = print_warning
) -> tuple[Ruleset, Ruleset]:
    """The rules that decide, and the guide's rules alone.

    Raises InputError if the user's own files break the rules; what else the linter finds in them
    goes to `warn`.
    """
    layers, overlays = find_rule_layers(rule_layers)
    ruleset = load_rules(layers, overlays)
    if overlays:
        from advisor.advice.linting import refuse_or_warn  # shipped rules need no proof at start

        for warning in refuse_or_warn(ruleset, layers):
            warn(warning)
    guide = load_rules(("document",)) if ruleset.disabled else only_layer(ruleset, "document")
    return ruleset, guide


# --------------------------------------------------------------------------- advice and plan


def advise_on(
    stated: Stated,
    rule_layers: Sequence[str] = (),
    *,
    online: bool = False,
    probed: Hardware | None = None,
    warn: Warn = print_warning,
) -> tuple[Advice, Ruleset]:
    """The advice on what was stated, and the rules that gave it.

    Args:
        online: Whether an unknown hub id may be looked up on the model hub.

    Raises InputError if the task is missing, or an input cannot be used.
    """
    ruleset, guide = load_rule_set(rule_layers, warn=warn)
    faults = list(stated.faults)
    if not faults and stated.answers.value("task") is None:
        allowed = f"--task, or `task:` in the answers: {', '.join(ruleset.facts['task'].values)}"
        hint = "on a terminal, `advise` alone asks for it"
        faults.append(Fault(where="task", what="task is not stated", allowed=allowed, hint=hint))
    try:
        situation = situation_of(stated.answers, probed=probed, online=online, base=stated.folder)
        if faults:
            faults += contradictions(ruleset, situation, situation_facts(situation))
    except InputError as error:
        faults += [*error.faults, *contradictions_in(ruleset, stated.answers)]
    except AdviseError:  # what the machine lacks is said once the answers can be used
        if not faults:
            raise
    refuse(dict.fromkeys(faults))
    situation = replace(situation, warnings=(*stated.warnings, *situation.warnings))
    return advise(situation, ruleset, guide), ruleset


def resolve_plan(advice: Advice, ruleset: Ruleset) -> tuple[Plan | None, Comments, list[str]]:
    """The plan of the recommended candidate with its comments, or what a plan lacks."""
    candidate = advice.recommendation
    if not candidate.composition.chain:
        return None, {}, []
    missing = missing_for_plan(advice, candidate)
    if missing:
        return None, {}, missing
    return *make_plan(advice, candidate, ruleset), []


def choose_candidate(
    advice: Advice, ruleset: Ruleset, choose: str | None, *, force: bool
) -> Advice:
    """The advice with the candidate that --choose names in place of the recommended one.

    --force also takes data that do not suit the task.

    Raises InputError if there is no such candidate, or it may not be taken.
    """
    if force:
        advice = replace(advice, situation=replace(advice.situation, unsuited=""))
    if choose is None:
        return advice
    from advisor.commands.choosing import chosen_candidate  # few choose

    found = chosen_candidate(advice, ruleset, choose, force=force)
    return advice if found is advice.recommendation else with_choice(advice, found, ruleset)


# --------------------------------------------------------------------------- nothing to train


def nothing_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """Why there is no plan, and how to train all the same; "" if the bundled trainers train.

    That is an answer and no bad input: whoever asked for a plan gets exit code 3 with it.
    """
    composition, engine = advice.recommendation.composition, advice.recommendation.engine
    if composition.chain and engine is not None:
        from advisor.render.other_engine import engine_words, export_line, start_line

        line = export_line(advice, engine) or start_line(advice, engine)
        return f"there is no plan to write or run: {engine_words(advice, engine)}; type: {line}"
    if composition.chain or not advice.fits:
        return ""
    why = f"the answer is '{composition}', which trains nothing: there is no plan to write or run"
    outside = advice.situation.outside
    if outside is not None:  # --force takes the composition, and no plan can hold this model
        thing = "model (--model)" if outside.is_model else "device (--gpu)"
        return f"{why}; to train with this tool, name another {thing}"
    from advisor.commands.choosing import way_to_train

    how = way_to_train(advice, ruleset)
    return f"{why}; to train all the same: {how}" if how else why
