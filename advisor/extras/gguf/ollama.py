"""A result for Ollama: a .gguf file that is compared with the model where llama.cpp is here, and a
Modelfile with the chat template, the tokens that end an answer, and nothing that is not known.

How Ollama reads a Modelfile was learned from its source (parser.go, version of August 2026): a
value in three quotes ends at the first three quotes before a line's end; characters that are
neither printable nor a space, a tab or a newline are dropped.
"""

from __future__ import annotations

import datetime
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.templates.chat_text import ChatText, json_object, special_texts
from advisor.export.exporter import ExportRequest
from advisor.extras.gguf.extra import export as export_gguf
from advisor.extras.gguf.template import (
    QUOTES,
    FixedTexts,
    NotExpressible,
    OllamaTemplate,
    can_hold,
    go_template,
    ollama_template,
)
from advisor.ground.errors import InputError
from advisor.ground.files import folder_name, shown_path, write_atomically
from advisor.ground.wrap import wrapped
from advisor.record.files import label, record_of, writing_stages
from advisor.record.run import RunRecord, StageRecord

PROOF = "proof.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
NO_SYSTEM = (
    "there is no SYSTEM line: if the rows of the training had a system message, send it, or add it"
    " to the Modelfile"
)
# Of the types that llama-quantize makes, those that `ollama create -q` does (ollama issue 10749).
BY_OLLAMA = ("Q4_K_M", "Q4_K_S")
OLLAMAS_CONTEXT = 2048  # tokens, where a Modelfile names no number (Ollama's documentation)


def export(wanted: ExportRequest) -> int:
    """Write the folder and say where it is. Returns the exit code; raises AdviseError."""
    run = wanted.source
    record = record_of(run)
    stages = writing_stages(run, record, only=wanted.only)
    every = {label(stage): stage for stage in stages}
    ready = {
        one: _template_and_ends(record, stage, run / stage.folder) for one, stage in every.items()
    }
    out = wanted.out or run / "export" / "ollama"
    paths = {one: out / ("Modelfile" if len(every) == 1 else f"{one}.Modelfile") for one in every}
    earlier = _files(out)
    for one, path in paths.items():
        if path.exists() and (one not in earlier or earlier[one]["proof"] is not None):
            raise InputError(
                f"{shown_path(path)} is already there", where=str(path), hint="name another --out"
            )
    code = export_gguf(replace(wanted, out=out))
    if code != 0:
        if wanted.variant in BY_OLLAMA and shutil.which("llama-quantize") is None:
            place, called = shlex.quote(shown_path(run)), folder_name(str(record.name)) or "model"
            written = shlex.quote(shown_path(next(iter(paths.values()))))
            given = (("only", wanted.only), ("out", wanted.out and shown_path(wanted.out)))
            more = "".join(f" --{name} {shlex.quote(one)}" for name, one in given if one)
            wanted.say("With Ollama alone:")
            wanted.say(f"  advise export {place} --to ollama{more}")
            wanted.say(f"  ollama create {called} -q {wanted.variant} -f {written}")
        return code
    files = _files(out)
    for one, stage in every.items():
        (made, ends), file, folder = ready[one], files[one], run / stage.folder
        # llama.cpp puts the first token in front of a text.
        first = special_texts(folder).get("bos_token", "") if file["begins"] else ""
        modelfile = Modelfile(
            model=f"./{file['file']}",
            template=go_template(made.shape.without(first)),
            stops=ends,
            parameters=parameters(folder, seq_len=record.settings(stage).seq_len),
            about=f"{record.name}: {one}. TEMPLATE writes what the model's own chat template"
            f" writes: {made.compared} random conversations came out alike.",
        )
        write_atomically(paths[one], modelfile.text())
        notes = [*made.lost, *([NO_SYSTEM] if made.shape.system is not None else [])]
        called = f"{record.name}-{stage.task}" if stage.task else str(record.name)
        place, called = shown_path(paths[one]), folder_name(called) or "model"
        for line in (
            f"{one}: {place}",
            "  chat template: the same text as the model's own in"
            f" {made.compared} random conversations",
            f"  answers end at {', '.join(ends)}",
            *(
                f"  {line}"
                for note in notes
                for line in wrapped(f"note: {note}", 76, subsequent_indent="  ")
            ),
            f"  make it:  ollama create {called} -f {shlex.quote(place)}",
            f"  ask it:   ollama run {called}",
            *(() if shutil.which("ollama") else ("  get it:   https://ollama.com/download",)),
        ):
            wanted.say(line)
    return 0


def _files(out: Path) -> dict[str, Any]:
    """Label of a result -> its last file, by proof.json."""
    return {file["label"]: file for file in json_object(out / PROOF).get("files") or []}


def _template_and_ends(
    record: RunRecord, stage: StageRecord, folder: Path
) -> tuple[OllamaTemplate, dict[str, str]]:
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


class Modelfile(Struct, frozen=True, kw_only=True):
    """What Ollama reads beside a GGUF file."""

    model: str
    template: str
    stops: Mapping[str, str]  # text -> why
    parameters: Sequence[tuple[str, str, str]] = ()  # name, value, why
    about: str = ""

    def text(self) -> str:
        """The file."""
        lines = [_comment(self.about), f"FROM {self.model}", ""]
        lines += [f"TEMPLATE {quoted(self.template)}", ""]
        for stop, why in self.stops.items():
            lines += [_comment(why), f"PARAMETER stop {quoted(stop)}"]
        for name, value, why in self.parameters:
            lines += [_comment(why), f"PARAMETER {name} {value}"]
        return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return f"# {' '.join(text.split())}"


def quoted(text: str) -> str:
    """A value as Ollama reads it back."""
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    return f"{QUOTES}{text}{QUOTES}"


def stops(folder: Path, shape: FixedTexts) -> dict[str, str]:
    """What ends an answer -> why. Raises InputError if nothing does."""
    tokenizer = json_object(folder / "tokenizer.json")
    added = tokenizer.get("added_tokens") or []
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    texts = {number: text for text, number in dict(vocabulary).items()}
    texts |= {one["id"]: one["content"] for one in added}
    found: dict[str, str] = {}
    given = json_object(folder / "generation_config.json").get("eos_token_id")
    for number in given if isinstance(given, list) else [given]:
        if not isinstance(number, int):
            continue
        text = texts.get(number)
        if not text:
            raise InputError(
                f"generation_config.json ends answers with token {number}, which the tokenizer"
                " does not have",
                where=str(folder),
                hint="take the tokenizer that the model was trained with",
            )
        found.setdefault(text, "the model stops at it (generation_config.json)")
    named = special_texts(folder)
    if eos := named.get("eos_token"):
        found.setdefault(eos, "the end token of the tokenizer")
    special = {one["content"] for one in added if one.get("special")} | {*named.values()}
    marks = "|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True)))
    if marks and (turn_end := re.search(marks, shape.asked)):
        found.setdefault(turn_end[0], "the chat template writes it behind an answer")
    elif mark := shape.asked.strip():
        # Turns end with no token: the model may go on with the next question.
        found.setdefault(mark, "the chat template begins the next question with it")
    if not found:
        raise InputError(
            "nothing says where an answer ends: the result has no end token",
            where=str(folder),
            hint="train it again: a run adds the end token to each answer",
        )
    return found


def parameters(folder: Path, *, seq_len: int | None) -> list[tuple[str, str, str]]:
    """(name, value, why) of each that a result calls for, which was trained on so many tokens."""
    config = json_object(folder / "generation_config.json")
    found = []
    if seq_len is not None and seq_len > OLLAMAS_CONTEXT:
        why = f"it was trained on up to {seq_len} tokens; Ollama would forget what is older"
        found.append(("num_ctx", str(seq_len), why))
    if config.get("do_sample") is False:
        config = {"temperature": 0} | config
    for key in SAMPLING:
        value = config.get(key)
        if isinstance(value, int | float):
            name = key.replace("repetition", "repeat")
            found.append((name, f"{value:g}", "as generation_config.json says"))
    return found
