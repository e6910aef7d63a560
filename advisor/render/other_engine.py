"""The engine that trains a recommendation where the bundled trainers do not: what is said of it,
and the lines that write its file and start it.
"""

from __future__ import annotations

import shlex
from typing import Any

from advisor.advice.types import Advice
from advisor.methods.engines import Engine
from advisor.render.next_steps import file_to_write
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


def export_line(advice: Advice, engine: Engine) -> str | None:
    """The line that writes the engine's file; None if a command is enough."""
    if not engine.form:
        return None
    changes = {"data_path": data} if (data := _data_to_write(advice)) else {}
    line = command_line(advice.situation.answers, changes, command="advise export")
    if is_chosen(advice):
        line += f" --choose {shlex.quote(str(advice.recommendation.composition))} --force"
    return f"{line} --to {engine.form} --out {engine.id}-files"


def _data_to_write(advice: Advice) -> str | None:
    """The file of examples that the next steps name where none is stated."""
    stated = advice.situation.answers.value
    is_there = stated("data_path") or stated("tasks")
    return None if is_there else file_to_write(advice)[1].get("data_path")


def start_line(advice: Advice, engine: Engine) -> str:
    """What starts it, in the folder of its file if it has one."""
    situation, composition = advice.situation, advice.recommendation.composition
    named = str(situation.answers.value("data_path") or _data_to_write(advice) or NO_DATA)
    line = engine.found.start.format(
        model=shlex.quote(situation.model.id if situation.model else "MODEL"),
        data=shlex.quote(named),
        data_folder="data",  # holds train.jsonl
        tuner="lora" if composition.update == "lora" else "full",
        gpus=max(1, len(situation.hardware.gpus)),
    )
    is_file = export_line(advice, engine) is not None
    return f"cd {engine.id}-files && {line}" if is_file else line


def engine_lines(advice: Advice, engine: Engine) -> list[tuple[str, str]]:
    """What to do, with the line to type for it."""
    write = export_line(advice, engine)
    found = [] if write is None else [(f"Write the file of {engine.name}:", write)]
    start = f"Train with {engine.name}, in an environment of its own:"
    if engine.only_prepares:
        start = f"Prepare {engine.name}; {engine.found.source.url} shows how to train with it:"
    return [*found, (start, start_line(advice, engine))]


def engine_document(advice: Advice) -> dict[str, Any]:
    """`recommendation.engine` for an engine that is not ours, or where none is known."""
    engine, outside = advice.recommendation.engine, advice.situation.outside
    if engine is None:
        why = f"{outside.what}. {outside.where}" if outside else ""
        lines = dict.fromkeys(("source", "command", "export"))
        return {"id": None, "runs_here": False, "why": why, **lines}
    source = engine.found.source
    return {
        "id": engine.id,
        "runs_here": False,
        "why": f"{engine_words(advice, engine)}. {engine.found.because}",
        "source": f"{source.title}, {source.url}, read on {source.checked}",
        "command": start_line(advice, engine),
        "export": export_line(advice, engine),
    }
