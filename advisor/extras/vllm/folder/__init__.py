"""A result for vLLM: one base with every LoRA module that it can load, or a whole model; a script
that serves it, the chat template, and where answers end.

No weights are converted, only copied or merged, so that what can be wrong is checked here without
vLLM: the names, shapes and rank of a module, and that the template and the end tokens are those
of the result.
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from advisor.data.chat_text import ChatText, json_object, template_source
from advisor.export.exporter import Wanted
from advisor.extras.vllm.folder.adapter import CONFIG, WEIGHTS, modules, why_not_held
from advisor.extras.vllm.folder.script import GENERATION, SCRIPT, TEMPLATE, script
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import PLAN_FILE, shown_path, write_atomically
from advisor.methods import update
from advisor.plan.read import read_plan
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.results import device_of, label, record_of, writing_stages
from advisor.plan.serving import VllmServer

NAME = "vllm"
HELP = "a folder that a vLLM server starts from"
TAKES: Literal["plan", "run"] = "run"
NEEDS = ("jinja2",)

ADAPTERS, MODEL = "adapters", "model"
TOGETHER = "together"  # the folder of the modules, where other results need servers of their own


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one server serves."""

    stages: Sequence[StageRecord]
    as_modules: bool
    merged_because: str | None = None  # why a module is merged; None: it is not


def export(wanted: Wanted) -> int:
    """Write the folder and say where it is. Returns the exit code; raises InputError."""
    run = wanted.source
    record = record_of(run)
    parts = _parts(run, writing_stages(run, record, only=wanted.only))
    for part in parts:
        _check_templates(run, part)
    out = wanted.out or run / "export" / NAME
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", where=str(out), hint="name another with --out")
    with made_beside(out) as work:
        for part in parts:
            inside = "" if len(parts) == 1 else _name(part)
            if part.merged_because is not None:
                wanted.say(f"{label(part.stages[0])} is merged: {part.merged_because}.")
                code = _merge(wanted, part.stages[0], work / inside / MODEL)
                if code != 0:
                    return code
            _write(wanted, record, part, work / inside)
        if out.is_dir():
            out.rmdir()  # it is empty: see above
        work.rename(out)
    for part in parts:
        _say(wanted, record, part, out if len(parts) == 1 else out / _name(part))
    if find_spec("vllm") is None:
        wanted.say("vLLM is not installed here and has not run this. It needs an environment of")
        wanted.say("its own, mostly on a GPU: pip install vllm")
    return 0


def _parts(run: Path, stages: Sequence[StageRecord]) -> list[Part]:
    """The servers that are needed. Raises InputError, naming every result that none can serve."""
    together: list[StageRecord] = []
    alone: list[Part] = []
    refused: list[str] = []
    for stage in stages:
        method = update(stage.update)
        folder = run / stage.folder
        if not method.is_module:
            alone.append(Part(stages=[stage], as_modules=False))
            continue
        why = (
            why_not_held(folder, json_object(folder / CONFIG))
            if "vllm" in method.serves
            else f"it is {method.result}, which vLLM does not load"
        )
        if why is None:
            together.append(stage)
        elif method.merges:
            alone.append(Part(stages=[stage], as_modules=False, merged_because=why))
        else:
            refused.append(f"{label(stage)} {method.why_not_merged or 'cannot be merged'}")
    if refused:
        raise InputError(
            f"vLLM cannot load this: {'; '.join(refused)}",
            where=str(run),
            allowed="LoRA modules, what can be merged into its base, and whole models",
            hint="serve it with transformers (README.md in the folder of the result says how), or"
            " train it as LoRA: --set stages.0.update=lora",
        )
    return [*([Part(stages=together, as_modules=True)] if together else []), *alone]


@contextmanager
def made_beside(out: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, to be renamed once it is whole; it is gone after
    whatever keeps it from that.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _name(part: Part) -> str:
    return TOGETHER if part.as_modules else label(part.stages[0])


def _check_templates(run: Path, part: Part) -> None:
    """Raise InputError for a broken template, or modules of one server with different ones."""
    found: dict[str | None, str] = {}
    for stage in part.stages:
        folder = run / stage.folder
        source = template_source(folder)
        found.setdefault(source, label(stage))
        if source is not None:
            ChatText.in_folder(folder)
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(found.values())} have different chat templates, and a vLLM server"
            " takes one",
            where=str(run),
            hint=f"a server for each: --only {label(part.stages[0])}",
        )


def _merge(wanted: Wanted, stage: StageRecord, target: Path) -> int:
    return wanted.run_tool(
        "merge",
        str(wanted.source),
        *("--out", str(target)),
        *("--device", device_of(wanted.source)),
        *("--only", label(stage)),
    )


def _write(wanted: Wanted, record: RunRecord, part: Part, folder: Path) -> None:
    run, first = wanted.source, part.stages[0]
    folder.mkdir(parents=True, exist_ok=True)
    template = template_source(run / first.folder)
    if template is not None:
        write_atomically(folder / TEMPLATE, template)
    generation = _generation([run / stage.folder for stage in part.stages])
    if generation:
        write_atomically(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
    for stage in part.stages if part.as_modules else ():
        target = folder / ADAPTERS / label(stage)
        target.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(run / stage.folder / name, target / name)
    model = record.base_model(first)
    if not part.as_modules:
        model = MODEL if part.merged_because is not None else str((run / first.folder).absolute())
    server = VllmServer(
        model=model,
        name=None if part.as_modules else str(record.name),
        modules=[(label(stage), f"{ADAPTERS}/{label(stage)}") for stage in part.stages]
        if part.as_modules
        else (),
        rank=max((_rank(run / stage.folder) for stage in part.stages), default=None)
        if part.as_modules
        else None,
        template=TEMPLATE if template is not None else None,
        generation="." if generation else None,
        more=_more(run, record, first, whole=not part.as_modules),
    )
    asked = label(first) if part.as_modules else str(record.name)
    notes = _notes(record, part)
    write_atomically(
        folder / SCRIPT, script(server, asked=asked, chats=bool(template), notes=notes)
    )
    (folder / SCRIPT).chmod(0o755)


def _say(wanted: Wanted, record: RunRecord, part: Part, folder: Path) -> None:
    for line in _said(wanted.source, record, part):
        wanted.say(line)
    for note in _notes(record, part):
        for line in textwrap.wrap(f"Note: {note}", 80, subsequent_indent="  "):
            wanted.say(line)
    wanted.say(f"Serve it:  sh {shown_path(folder / SCRIPT)}")


def _said(run: Path, record: RunRecord, part: Part) -> list[str]:
    """What was checked."""
    base = record.base_model(part.stages[0])
    if not part.as_modules:
        return [f"{label(part.stages[0])}: a whole model, with its chat template and end tokens"]
    counts = {modules(run / stage.folder) for stage in part.stages}
    names = ", ".join(label(stage) for stage in part.stages)
    layers = f"{min(counts)} layers" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return [
        f"{names}: LoRA on {shown_path(Path(base)) if Path(base).is_absolute() else base}",
        f"Checked: names, shapes and rank of the tensors of {layers} are as vLLM reads them",
    ]


def _generation(folders: Sequence[Path]) -> dict[str, Any]:
    """generation_config.json for the server: that of the first result, which ends answers wherever
    one of the results does. The base's own may lack a token that ends a turn.
    """
    configs = [json_object(folder / GENERATION) for folder in folders]
    ends: dict[int, None] = {}
    for config in configs:
        given = config.get("eos_token_id")
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, int):
                ends[number] = None
    if not ends:
        return configs[0]
    return {**configs[0], "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends))}


def _rank(folder: Path) -> int:
    return int(json_object(folder / CONFIG)["r"])


def _more(run: Path, record: RunRecord, stage: StageRecord, *, whole: bool) -> list[list[str]]:
    """What else the server has to be told."""
    plan = None
    with suppress(AdviseError):
        plan = read_plan(run / PLAN_FILE)
    revision = plan.revision if plan is not None and not whole else None
    dtype = record.settings(stage).weights_dtype
    return [
        *([["--dtype", dtype]] if dtype in ("bfloat16", "float16") else []),
        *([["--revision", revision]] if revision else []),
        *([["--trust-remote-code"]] if plan is not None and plan.trust_remote_code else []),
    ]


def _notes(record: RunRecord, part: Part) -> list[str]:
    stage = part.stages[0]
    if part.as_modules and stage.quantization == "nf4":
        return [
            "the modules were trained on 4-bit weights; vLLM loads the base in 16 bit, and some"
            " answers may differ from those of the test. `--quantization bitsandbytes` behind"
            f" {SCRIPT} loads it in 4 bit"
        ]
    return []
