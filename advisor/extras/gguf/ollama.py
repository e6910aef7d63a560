"""A result for Ollama: a .gguf file that is compared with the model where llama.cpp is here, and a
Modelfile with the chat template, the tokens that end an answer, and nothing that is not known.
"""

from __future__ import annotations

import datetime
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from advisor.data.chat_text import ChatText, json_object, special_texts
from advisor.export.exporter import Wanted
from advisor.extras.gguf import gguf
from advisor.extras.gguf.go import can_hold, go_template
from advisor.extras.gguf.modelfile import constant_system, modelfile_text, parameters, stops
from advisor.extras.gguf.template import NotExpressible, OllamaTemplate, ollama_template
from advisor.ground.errors import InputError
from advisor.ground.files import folder_name, shown_path, write_atomically
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.results import label, record_of, writing_stages

NAME = "ollama"
HELP = "a GGUF file and a Modelfile for Ollama; also ollama:Q8_0"
TAKES: Literal["plan", "run"] = "run"
NEEDS = (*gguf.NEEDS, "jinja2")
VARIANTS = True
PROOF = "proof.json"


def export(wanted: Wanted) -> int:
    """Write the folder and say where it is. Returns the exit code; raises AdviseError."""
    run = wanted.source
    record = record_of(run)
    stages = writing_stages(run, record, only=wanted.only)
    every = {label(stage): stage for stage in stages}
    ready = {one: _ready(record, stage, run / stage.folder) for one, stage in every.items()}
    out = wanted.out or run / "export" / NAME
    paths = {one: out / ("Modelfile" if len(every) == 1 else f"{one}.Modelfile") for one in every}
    earlier = _files(out)
    for one, path in paths.items():
        if path.exists() and (one not in earlier or earlier[one]["proof"] is not None):
            raise InputError(
                f"{shown_path(path)} is already there", where=str(path), hint="name another --out"
            )
    code = gguf.export(replace(wanted, out=out))
    if code != 0:
        return code
    files = _files(out)
    for one, stage in every.items():
        _write(wanted, record, stage, *ready[one], paths[one], files[one])
    return 0


def _files(out: Path) -> dict[str, Any]:
    """Label of a result -> its last file, by proof.json."""
    return {file["label"]: file for file in json_object(out / PROOF).get("files") or []}


def _ready(
    record: RunRecord, stage: StageRecord, folder: Path
) -> tuple[OllamaTemplate, dict[str, str]]:
    """The template, and what ends an answer. Raises InputError if Ollama cannot hold them."""
    chat = ChatText.in_folder(folder)
    try:
        made = ollama_template(
            chat,
            fixed=record.settings(stage).template,
            today=datetime.datetime.now().astimezone().date(),
        )
    except NotExpressible as error:
        raise InputError(
            f"the chat template of {label(stage)} cannot be written for Ollama: {error}",
            where=str(stage.folder),
            hint="serve it where the model's own template is read: `advise export --to gguf`, then"
            " llama-server with --jinja; or `advise export --to vllm`",
        ) from None
    found = stops(folder, made.shape)
    if not all(map(can_hold, found)):  # one would end early, and go on as lines of its own
        raise InputError(
            f"an end token of {label(stage)} holds three quotes or characters that no Modelfile"
            " keeps",
            where=str(stage.folder),
            hint="serve it where the model's own files are read: `advise export --to vllm`",
        )
    return made, found


def _write(
    wanted: Wanted,
    record: RunRecord,
    stage: StageRecord,
    made: OllamaTemplate,
    ends: dict[str, str],
    path: Path,
    file: dict[str, Any],
) -> None:
    """Write the Modelfile of a result, and say what it does and does not."""
    name, folder = label(stage), wanted.source / stage.folder
    # llama.cpp puts the first token in front of a text.
    first = special_texts(folder).get("bos_token", "") if file["begins"] else ""
    system, about_system = None, ""
    if made.shape.system is not None:
        system, about_system = constant_system(wanted.source, stage)
    text = modelfile_text(
        model=f"./{file['file']}",
        template=go_template(made.shape.without(first)),
        stops=ends,
        parameters=parameters(folder, seq_len=record.settings(stage).seq_len),
        system=system,
        about=f"{record.name}: {name}. TEMPLATE writes what the model's own chat template writes:"
        f" {made.compared} random conversations came out alike.",
    )
    write_atomically(path, text)
    wanted.say(f"{name}: {shown_path(path)}")
    wanted.say(
        f"  chat template: the same text as the model's own in {made.compared} random conversations"
    )
    wanted.say(f"  answers end at {', '.join(ends)}")
    for note in filter(None, (*made.lost, about_system)):
        for line in textwrap.wrap(f"note: {note}", 76, subsequent_indent="  "):
            wanted.say(f"  {line}")
    called = f"{record.name}-{stage.task}" if stage.task else str(record.name)
    called = folder_name(called) or "model"
    wanted.say(f"  make it:  ollama create {called} -f {shlex.quote(shown_path(path))}")
    wanted.say(f"  ask it:   ollama run {called}")
