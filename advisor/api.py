"""The answers of `advise --json` for a program: see docs/programs.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from advisor.advice.types import Advice
from advisor.commands.session import Stated, advise_on, load_known_facts, resolve_plan
from advisor.ground import types
from advisor.ground.errors import AdviseError
from advisor.ground.yaml_files import Document
from advisor.methods import methods
from advisor.plan.write import plan_data
from advisor.render.advice_json import advice_document
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_from_document

__all__ = ["AdviseError", "Answers", "advise", "advise_document"]

Rules = Sequence[str | os.PathLike[str]]


class Answers(types.AnswerSet, frozen=True, kw_only=True):
    """What is stated about task, data, model and machine; the keys of an answers file."""

    warnings: tuple[str, ...] = ()  # about what was left out: an unknown signal

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, rules: Rules = ()) -> Answers:
        """The answers in a dictionary such as {"task": "qa", "data": {"path": "train.jsonl"}}.

        Args:
            document: Key -> value, as in an answers file; None means not stated.
            rules: Your own rule files, which may add facts.

        Raises AdviseError naming every key or value that is not known.
        """
        plain = _plain(document)
        given = Document("answers", lambda: plain)
        answers, warnings = answers_from_document(given, load_known_facts(_layers(rules)))
        return cls(known=answers.known, warnings=warnings)


def advise(
    answers: Answers | Mapping[str, Any], *, rules: Rules = (), online: bool = False
) -> Advice:
    """The advice on these answers: `.recommendation`, `.alternatives`, `.fits`, `.warnings`, ...

    Args:
        answers: The answers, or a dictionary for Answers.from_dict. Paths are relative to the
            working folder; without `gpu` this machine is probed.
        rules: Your own rule files, or "document" for the guide alone; default: ADVISE_RULES.
        online: Whether an unknown model may be looked up on the model hub.

    Raises AdviseError if something stated cannot be used. If nothing fits, `advice.fits` is False.
    """
    return _advise(answers, rules, online)[0]


def advise_document(
    answers: Answers | Mapping[str, Any], *, rules: Rules = (), online: bool = False
) -> dict[str, Any]:
    """The document that `advise --json` prints, with the launch file under `plan`, or None and
    what it lacks under `missing`. Takes and raises the same as `advise`.
    """
    advice, ruleset = _advise(answers, rules, online)
    plan, comments, missing = resolve_plan(advice, ruleset)
    data = None if plan is None else plan_data(plan, comments)
    return advice_document(advice, plan=data, missing=missing)


def _advise(
    answers: Answers | Mapping[str, Any], rules: Rules, online: bool
) -> tuple[Advice, Ruleset]:
    methods().check()
    if not isinstance(answers, Answers):
        answers = Answers.from_dict(answers, rules=rules)
    stated = Stated(answers=answers, warnings=answers.warnings)
    about_rules: list[str] = []
    advice, ruleset = advise_on(stated, _layers(rules), online=online, warn=about_rules.append)
    return replace(advice, warnings=(*about_rules, *advice.warnings)), ruleset


def _layers(rules: Rules) -> tuple[str, ...]:
    return tuple(os.fspath(path) for path in rules)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value
