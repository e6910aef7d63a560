"""Answers that outlive a Ctrl-C: a private JSON file for each working folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from advisor.ground.annotated import parse_json
from advisor.ground.files import text_of
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.version import __version__
from advisor.ruleset.facts import Fact
from advisor.wizard.walk import words_of


class Saved(Struct, frozen=True, kw_only=True):
    """How far a round of questions has come."""

    answers: AnswerSet
    asked: tuple[str, ...]  # also the questions answered by "I don't know"
    saved_at: str = ""


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
        "version": __version__,
        "saved_at": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
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
    """The saved answers, or a sentence if they cannot be used; (None, '') without any."""
    path = path or state_path()
    try:
        document = parse_json(text_of(path))
        if document["version"] != __version__:
            return None, "The saved answers are those of another version; starting anew."
        known = {
            name: Answer(value=tuple(value) if isinstance(value, list) else value, origin="asked")
            for name, value in document["answers"].items()
            if name in facts or name == "signals"
        }
        asked = tuple(name for name in document["asked"] if name in facts)
        saved = Saved(answers=AnswerSet(known=known), asked=asked, saved_at=document["saved_at"])
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, f"The answers saved in {path} cannot be read; starting anew."
    return saved if asked else None, ""
