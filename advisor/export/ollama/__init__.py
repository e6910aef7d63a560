"""A result for Ollama: a .gguf file that is proved to be the model, and a Modelfile with the chat
template, the tokens that end an answer, and nothing that is not known.
"""

from __future__ import annotations

import datetime
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advisor.data.chat_text import ChatText
from advisor.data.measure.tokenizer import json_object, special_texts
from advisor.export.exporter import Wanted
from advisor.export.gguf import NEEDS as GGUF_NEEDS
from advisor.export.ollama.added_tokens import leave_to_template
from advisor.export.ollama.modelfile import Modelfile, can_hold
from advisor.export.ollama.parameters import parameters
from advisor.export.ollama.prompts import compare_tokens, prompts
from advisor.export.ollama.shape import NotExpressible
from advisor.export.ollama.stops import Stop, stops
from advisor.export.ollama.system import constant_system
from advisor.export.ollama.template import OllamaTemplate, ollama_template
from advisor.export.ollama.trial import Trial, ollama_is_here
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.ground.files import folder_name, shown_path, text_of, write_atomically
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.results import label, record_of, writing_stages
from advisor.plan.run_folder import device_of

NAME = "ollama"
HELP = "a GGUF file and a Modelfile for Ollama; also ollama:Q4_K_M"
TAKES: Literal["plan", "run"] = "run"
NEEDS = (*GGUF_NEEDS, "jinja2")
VARIANTS = True
PROOF = "proof.json"
UNPROVED = ".unproved.gguf"  # a file that is written again once llama.cpp is there


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A result whose template and end tokens are known."""

    stage: StageRecord
    folder: Path
    chat: ChatText
    stops: tuple[Stop, ...]


def export(wanted: Wanted) -> int:
    """Write the folder and say where it is. Returns the exit code; raises AdviseError."""
    run = wanted.source
    record = record_of(run)
    ready = [
        _ready(record, stage, run / stage.folder)
        for stage in writing_stages(run, record, only=wanted.only)
    ]
    out = wanted.out or run / "export" / NAME
    names = [_modelfile(out, one, ready) for one in ready]
    for path in names:
        if path.exists() and UNPROVED not in text_of(path, errors="replace"):
            raise InputError(
                f"{shown_path(path)} is already there", where=str(path), hint="name another --out"
            )
    code = wanted.run_tool(
        "gguf",
        str(run),
        *("--out", str(out), "--device", device_of(run)),
        *(["--kind", wanted.variant] if wanted.variant else []),
        *(["--only", wanted.only] if wanted.only else []),
    )
    files = json_object(out / PROOF).get("files") or []
    if code not in (0, MachineNotReady.exit_code) or not files:
        return code or TrainingFailed.exit_code
    for one, path in zip(ready, names, strict=True):
        wrong = _write(wanted, record, one, path, files, proved=code == 0)
        if wrong != 0:
            return wrong
    return code


def _modelfile(out: Path, one: Ready, every: Sequence[Ready]) -> Path:
    return out / ("Modelfile" if len(every) == 1 else f"{label(one.stage)}.Modelfile")


def _ready(record: RunRecord, stage: StageRecord, folder: Path) -> Ready:
    """Raises InputError for a template that Ollama cannot write, or if nothing ends an answer."""
    chat = ChatText.in_folder(folder)
    made = _template(chat, record, stage, "")
    found = stops(folder, made.shape)
    for what, text in (("chat template", made.text), *(("end token", one.text) for one in found)):
        if not can_hold(text):  # it would end early, and go on as lines of its own
            raise InputError(
                f"the {what} of {label(stage)} holds three quotes or characters that no Modelfile"
                " keeps",
                where=str(stage.folder),
                hint="serve it where the model's own files are read: `advise export --to vllm`",
            )
    return Ready(stage=stage, folder=folder, chat=chat, stops=found)


def _template(
    chat: ChatText, record: RunRecord, stage: StageRecord, begins_with: str
) -> OllamaTemplate:
    try:
        return ollama_template(
            chat,
            begins_with=begins_with,
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


def _write(
    wanted: Wanted,
    record: RunRecord,
    one: Ready,
    path: Path,
    files: Sequence[Mapping[str, Any]],
    *,
    proved: bool,
) -> int:
    """Write the Modelfile of a result. Returns an exit code: not 0 if llama.cpp reads its prompts
    otherwise, and nothing is written then.
    """
    file = _file_of(one, path.parent, files)
    model = str(file["base"] or file["file"])
    chosen = record.settings(one.stage)
    adds_bos, changed = leave_to_template(path.parent / model, one.chat)
    begins_with = special_texts(one.folder).get("bos_token", "") if adds_bos else ""
    made = _template(one.chat, record, one.stage, begins_with)
    if proved:
        code = compare_tokens(wanted, path.parent / model, one.folder, prompts(one.chat, made))
        if code != 0:
            return code
    system, about_system = constant_system(wanted.source, one.stage, made.shape)
    if system is not None and not can_hold(system):
        system, about_system = (
            None,
            (
                "the one system message of the training data holds characters that no"
                " Modelfile keeps: send it with each conversation"
            ),
        )
    modelfile = Modelfile(
        model=f"./{model}",
        adapter=f"./{file['file']}" if file["base"] else None,
        template=made.text,
        stops=[(stop.text, stop.because) for stop in one.stops],
        parameters=parameters(one.folder, seq_len=chosen.seq_len),
        system=system,
        about=[
            f"{record.name}: {label(one.stage)}",
            f"TEMPLATE writes what the model's own chat template writes: {made.compared} random",
            "conversations came out alike.",
        ],
    )
    write_atomically(path, modelfile.text())
    notes = [*changed, *made.lost, *([about_system] if about_system else [])]
    _say(wanted, one, made, notes, file)
    name = folder_name(f"{record.name}-{one.stage.task}" if one.stage.task else str(record.name))
    name = name or "model"
    wanted.say(f"  make it:  ollama create {name} -f {shlex.quote(shown_path(path))}")
    wanted.say(f"  ask it:   ollama run {name}")
    _try(wanted, record, one, file, path)
    return 0


def _file_of(one: Ready, out: Path, files: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last file that the export wrote of a result. Raises TrainingFailed if there is none."""
    found = [file for file in files if file["label"] == label(one.stage)]
    if not found:
        raise TrainingFailed(f"{shown_path(out / PROOF)} names no file of {label(one.stage)}")
    return found[-1]


def _say(
    wanted: Wanted,
    one: Ready,
    made: OllamaTemplate,
    notes: Sequence[str],
    file: Mapping[str, Any],
) -> None:
    name = label(one.stage)
    form = (
        f"adapter {file['file']} on {file['base']}, which all tasks share"
        if file["base"]
        else "one whole model, the adapter merged into it"
        if (one.folder / "adapter_config.json").is_file()
        else "one whole model"
    )
    wanted.say(f"{name}: {form}")
    wanted.say(
        f"  chat template: the same text as the model's own in {made.compared} random conversations"
    )
    wanted.say(f"  answers end at {', '.join(stop.text for stop in one.stops)}")
    for note in notes:
        for line in textwrap.wrap(f"note: {note}", 76, subsequent_indent="  "):
            wanted.say(f"  {line}")


def _try(
    wanted: Wanted, record: RunRecord, one: Ready, file: Mapping[str, Any], path: Path
) -> None:
    if not ollama_is_here():
        wanted.say("  Ollama is not installed here and has not run this.")
        return
    for line in Trial.of(record, one.stage, kind=str(file["kind"])).lines(path):
        wanted.say(f"  {line}")
