"""Answers that outlive a Ctrl-C: a private JSON file for each working folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from advisor.ground.annotated import parse_json
from advisor.ground.files import text_of
from advisor.ground.types import Answer, Answers
from advisor.ruleset.facts import Fact
from advisor.wizard.walk import words_of

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """How far a round of questions has come."""

    answers: Answers
    asked: tuple[str, ...]  # also the questions answered by "I don't know"
    saved_at: str = ""

    def without(self, fact_id: str) -> Saved:
        """The same with one question open again."""
        known = {name: answer for name, answer in self.answers.known.items() if name != fact_id}
        asked = tuple(name for name in self.asked if name != fact_id)
        return replace(self, answers=Answers(known=known), asked=asked)


def state_path(folder: Path | None = None) -> Path:
    """The file with the answers for a folder, the current one by default."""
    home = os.environ.get("XDG_STATE_HOME", "")
    # The specification wants relative paths ignored.
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    # A digest: a path may be longer than a file name, and hold what no file name may.
    name = hashlib.sha256(os.fsencode(folder or _here())).hexdigest()[:16]
    return base / "finetune-advisor" / f"answers-{name}.json"


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # the folder was deleted meanwhile
        return os.environ.get("PWD", "")


def save_answers(progress: Saved, path: Path | None = None) -> tuple[Path, str]:
    """Write the answers, readable by nobody else; returns the path and what went wrong."""
    path = path or state_path()
    known = progress.answers.known.items()
    document = {
        "version": VERSION,
        "saved_at": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "folder": _here(),
        "answers": {fact: answer.value for fact, answer in known if answer.origin == "asked"},
        "asked": progress.asked,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        return path, f"{error.strerror or error}: {path}"
    return path, ""


def summary(saved: Saved, facts: Mapping[str, Fact]) -> str:
    """'Answers from 2026-11-27 for this folder: Answer customers, tickets.csv (6 questions)'."""
    task, data, tasks = (saved.answers.value(name) for name in ("task", "data_path", "tasks"))
    about = [words_of(facts["task"], task)] if task is not None else []
    about += [os.path.basename(os.path.normpath(str(data)))] if data is not None else []
    about += [f"{len(tasks)} teams"] if isinstance(tasks, Mapping) else []
    count = f"{len(saved.asked)} question{'s' if len(saved.asked) != 1 else ''}"
    when = f" from {saved.saved_at}" if saved.saved_at else ""
    return f"Answers{when} for this folder: {', '.join(about) or 'no task'} ({count})"


def load_answers(facts: Mapping[str, Fact], path: Path | None = None) -> tuple[Saved | None, str]:
    """The saved answers, and a sentence if some cannot be used; (None, '') without any."""
    path = path or state_path()
    try:
        document = parse_json(text_of(path))
        answers = {str(name): value for name, value in document["answers"].items()}
        asked = dict.fromkeys(str(name) for name in document["asked"])
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}")
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, f"The answers saved in {path} cannot be read; starting anew."
    known = {
        name: Answer(value=tuple(value) if isinstance(value, list) else value, origin="asked")
        for name, value in answers.items()
        if _is_valid(name, value, facts)
    }
    dropped = sorted(set(answers) - set(known))
    kept = tuple(name for name in asked if name in facts and name not in dropped)
    names = ", ".join(dropped)
    problem = f"Of the saved answers, these no longer exist and are left out: {names}."
    saved_at = str(document.get("saved_at", ""))
    saved = Saved(answers=Answers(known=known), asked=kept, saved_at=saved_at) if kept else None
    return saved, problem if dropped else ""


def _is_valid(name: str, value: Any, facts: Mapping[str, Fact]) -> bool:
    """Whether the questions of today can have this answer."""
    if name == "signals":
        return isinstance(value, list) and all(
            isinstance(item, str) and item in facts and facts[item].signal for item in value
        )
    fact = facts.get(name)
    if fact is None:
        return False
    if fact.type == "flag":
        return isinstance(value, bool)
    if fact.type == "map":
        return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())
    if fact.type == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and isfinite(value) and (fact.min is None or value >= fact.min)
    is_text = isinstance(value, str) and "\0" not in value
    return is_text and (fact.type != "choice" or value in fact.values)
