"""What commands and the Python API share: answers, rules, advice, --choose and plan of one call.

Nothing is printed here but the warnings about the user's own rules, through `warn`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

import advisor.data
from advisor.advice.advise import advise, candidate_of, with_choice
from advisor.advice.facts import contradictions, contradictions_in, situation_facts
from advisor.advice.planning import make_plan, missing_for_plan
from advisor.advice.types import Advice, Candidate
from advisor.ground.errors import AdviseError, Fault, InputError, did_you_mean, refuse
from advisor.ground.terminal import print_warning
from advisor.ground.types import AnswerSet, Hardware
from advisor.ground.yaml_files import Document, parse_yaml, read_yaml
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import ENCODER, PER_TASK, Composition, compose, parse_composition
from advisor.plan.model import Comments, Plan
from advisor.ruleset.facts import Fact, load_facts
from advisor.ruleset.load import load_rules, only_layer
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_from_document, answers_from_flags, merge_answers
from advisor.situation.build import situation_of

SHIPPED = ("document", "evidence")
# What a plan may lack -> the option that gives it, with an example, and what that is.
MISSING = {
    "data.path": ("--data examples.jsonl", "your examples"),
    "data.examples": (
        "--examples examples.jsonl",
        "requests and answers that go with the documents",
    ),
    "model": ("--model Qwen/Qwen3-8B", "a hub id or a directory"),
    "engine": ("--gpu H100", "a device that these trainers run on; or the tool named above"),
    "tasks": ("--tasks first=examples.jsonl", "one for each task"),
    "teacher_model": ("--teacher-model Qwen/Qwen3-32B", "a larger model of the same family"),
    "reward_model": (
        "--reward-model reward-model",
        "a model that scores answers; or train one on the way: --choose 'sft>rm>ppo+lora'",
    ),
}
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
    return read_yaml(answers_file)


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


def incomplete(missing: Sequence[str]) -> InputError:
    """The error of a plan that cannot be made, since it lacks these: one fault for each."""
    return InputError(
        faults=[
            Fault(
                where=key,
                what=f"{key} is missing, and a plan needs it",
                allowed=": ".join(MISSING.get(key, ())),
            )
            for key in missing
        ]
        or [Fault(what="the answer trains nothing: there is no plan")]
    )


AT = "--choose"


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
    wanted = composition_meant(choose, advice)
    candidates = (advice.recommendation, *advice.alternatives)
    found = next((each for each in candidates if each.composition == wanted), None)
    if found is advice.recommendation:
        return advice
    if found is None and wanted.chain:
        found = candidate_of(advice, ruleset, wanted)
    if found is None:
        listed = ", ".join(str(candidate.composition) for candidate in candidates)
        raise InputError(
            f"'{wanted}' is not a candidate here",
            where=AT,
            allowed=f"candidates: {listed}, or any other chain with a scheme",
        )
    if len(advice.situation.hardware.gpus) > 1 and wanted.chain:
        is_too_big = found.estimate.fits == "too_big"
        again = candidate_of(advice, ruleset, wanted, offload=is_too_big)
        found = replace(found, ways=again.ways) if not is_too_big else again
    if not found.forced_ok:
        raise InputError(
            f"'{wanted}' cannot be taken: {found.because[0].text}",
            where=AT,
            hint="--force does not override this",
        )
    if not force:
        raise InputError(
            f"'{wanted}' is not recommended: {found.because[0].text}",
            where=AT,
            hint=f"to take it anyway: {AT} {shlex.quote(str(wanted))} --force",
        )
    return with_choice(advice, found, ruleset)


def composition_meant(choose: str, advice: Advice) -> Composition:
    """The composition that a value of --choose stands for.

    A chain alone (`dpo`) takes the recommended scheme, a scheme alone (`qlora`) keeps the
    recommended chain.

    Raises InputError for a name that is neither, with the nearest one.
    """
    name = choose.strip()
    if "+" in name or "&" in name or name in remedies():
        return parse_composition(name, at=AT)
    like = next(trained(advice), advice.recommendation).composition
    if name in schemes() and like.chain:
        alike = compose(">".join(like.chain), name, per_task=like.per_task)
        return replace(alike, encoder=like.encoder, remedies=like.remedies)
    chain = name.removesuffix(PER_TASK)
    parts = chain.removeprefix(ENCODER).split(">")
    unknown = [part for part in parts if part not in objectives()]
    if unknown:
        known = [*objectives(), *schemes(), *remedies()]
        raise InputError(
            f"unknown method '{unknown[0]}'",
            where=AT,
            allowed=(
                f"an objective ({', '.join(objectives())}), a chain of them (sft>dpo), a scheme"
                f" ({', '.join(schemes())}), both (sft+lora), or a remedy"
                f" ({', '.join(remedies())})"
            ),
            hint=did_you_mean(unknown[0], known) or "`advise rules` explains each",
        )
    per_task = name.endswith(PER_TASK) or like.per_task
    return compose(chain, like.scheme or "lora", per_task=per_task)


def trained(advice: Advice) -> Iterator[Candidate]:
    """The candidates that train something, the best first."""
    yield from (
        one for one in (advice.recommendation, *advice.alternatives) if one.composition.chain
    )


# --------------------------------------------------------------------------- nothing to train


def nothing_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """Why there is no plan, and how to train all the same; "" if the answer trains something.

    That is an answer and no bad input: whoever asked for a plan gets exit code 3 with it.
    """
    composition = advice.recommendation.composition
    if composition.chain or not advice.fits:
        return ""
    why = f"the answer is '{composition}', which trains nothing: there is no plan to write or run"
    outside = advice.situation.outside
    if outside is not None:  # --force takes the composition, and no plan can hold this model
        thing = "model (--model)" if outside.is_model else "device (--gpu)"
        return f"{why}; to train with this tool, name another {thing}"
    how = way_to_train(advice, ruleset)
    return f"{why}; to train all the same: {how}" if how else why


def way_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """The options that make a plan if the answer is to train nothing, of the candidate that
    lacks least for one, and what has to be given with them.
    """
    ways = [
        (missing_for_plan(advice, candidate), candidate.composition)
        for candidate in trained(advice)
        if candidate.forced_ok and candidate.estimate.fits != "too_big"
    ]
    if not ways:
        return ""
    missing, composition = min(
        ways,  # what no option gives, such as data of another kind, is the worst to lack
        key=lambda way: (not {*way[0]} <= MISSING.keys(), len(way[0]), len(way[1].chain)),
    )
    needed = [MISSING.get(key, ("", key)) for key in missing]
    options = (option for option, _ in needed if option)
    command = " ".join([AT, shlex.quote(str(composition)), "--force", *options])
    words = "; ".join(f"{option}: {what}" if option else f"with {what}" for option, what in needed)
    return f"{command} ({words})" if words else command
