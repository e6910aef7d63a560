"""The engine that trains a recommendation where the bundled trainers do not: what is said of it,
and the lines that write its file and start it.
"""

from __future__ import annotations

import shlex
from typing import Any

from advisor.advice.types import Advice
from advisor.methods.engines import Engine
from advisor.render.words import is_chosen
from advisor.ruleset.phrases import method_words
from advisor.situation.answers import command_line

NOT_OURS = "these trainers do not load it yet"
NO_DATA = "train.jsonl"


def engine_words(advice: Advice, engine: Engine) -> str:
    """'QLoRA, with Unsloth's 4-bit copy: these trainers do not load it yet'."""
    composition = advice.recommendation.composition
    method = method_words(str(composition.scheme))
    why = NOT_OURS
    if advice.situation.hardware.not_supported is not None:
        why = "these trainers do not run on that device"
    return f"{method}, {engine.found.words}: {why}"


def export_line(advice: Advice, engine: Engine, data: str | None = None) -> str | None:
    """The line that writes the engine's file; None if a command is enough.

    Args:
        data: A file that is still to be written.
    """
    if not engine.form:
        return None
    changes: dict[str, Any] = {} if data is None else {"data_path": data}
    line = command_line(advice.situation.answers, changes, command="advise export")
    if is_chosen(advice):
        line += f" --choose {shlex.quote(str(advice.recommendation.composition))} --force"
    return f"{line} --to {engine.form} --out {engine.id}-files"


def start_line(advice: Advice, engine: Engine, data: str | None = None) -> str:
    """What starts it, in the folder of its file if it has one."""
    situation, composition = advice.situation, advice.recommendation.composition
    named = data or str(situation.answers.value("data_path") or NO_DATA)
    line = engine.found.start.format(
        model=shlex.quote(situation.model.id if situation.model else "MODEL"),
        data=shlex.quote(named),
        data_folder="data",  # holds train.jsonl
        tuner="lora" if composition.update == "lora" else "full",
        gpus=max(1, len(situation.hardware.gpus)),
    )
    is_file = export_line(advice, engine) is not None
    return f"cd {engine.id}-files && {line}" if is_file else line


def engine_lines(advice: Advice, engine: Engine, data: str | None) -> list[tuple[str, str]]:
    """What to do, with the line to type for it."""
    write = export_line(advice, engine, data)
    found = [] if write is None else [(f"Write the file of {engine.name}:", write)]
    start = f"Train with {engine.name}, in an environment of its own:"
    if engine.only_prepares:
        start = f"Prepare {engine.name}; {engine.found.source.url} shows how to train with it:"
    return [*found, (start, start_line(advice, engine, data))]


def engine_document(advice: Advice, to_write: Any) -> dict[str, Any]:
    """`recommendation.engine` for an engine that is not ours, or where none is known."""
    engine, outside = advice.recommendation.engine, advice.situation.outside
    if engine is None:
        why = f"{outside.what}. {outside.where}" if outside else ""
        lines = dict.fromkeys(("source", "command", "export"))
        return {"id": None, "runs_here": False, "why": why, **lines}
    source, stated = engine.found.source, advice.situation.answers.value
    is_there = stated("data_path") or stated("tasks")
    data = None if is_there else to_write(advice)[1].get("data_path")
    return {
        "id": engine.id,
        "runs_here": False,
        "why": f"{engine_words(advice, engine)}. {engine.found.because}",
        "source": f"{source.title}, {source.url}, read on {source.checked}",
        "command": start_line(advice, engine, data),
        "export": export_line(advice, engine, data),
    }
