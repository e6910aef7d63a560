"""A result for vLLM: one base with every LoRA module that it can load, or a whole model; a script
that serves it, the chat template, and where answers end.

No weights are converted, only copied or merged, so that what can be wrong is checked here without
vLLM: the names, shapes and rank of a module, and that the template and the end tokens are those
of the result. What vLLM takes was read in its source (vllm/lora/peft_helper.py, lora_model.py and
utils.py, version 0.33): each key it does not know is passed over in silence, so that a result with
one factor a layer, for example, would answer wrongly without a word.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.data.templates.chat_text import ChatText, json_object, template_source
from advisor.export.exporter import ExportRequest
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import PLAN_FILE, TEMPORARY, shown_path, write_atomically
from advisor.ground.wrap import wrapped
from advisor.methods import update
from advisor.model_files.folder import DamagedFile, read_header
from advisor.plan.read import read_plan
from advisor.plan.vllm import RANKS, VllmServer
from advisor.record.files import device_of, label, record_of, writing_stages
from advisor.record.run import RunRecord, StageRecord

SCRIPT, TEMPLATE, GENERATION = "serve.sh", "chat_template.jinja", "generation_config.json"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL = "model"
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# PEFT key -> what it means. Set, it makes vLLM refuse the result or answer otherwise.
NOT_HELD = {
    "use_dora": "it splits weights into size and direction (DoRA)",
    "modules_to_save": "it holds whole layers beside its LoRA matrices",
    "target_parameters": "it corrects tensors that are no layers (routed experts)",
    "trainable_token_indices": "it trains single tokens",
    "rank_pattern": "its layers have several ranks",
    "alpha_pattern": "its layers have several scales",
    "lora_bias": "its matrices have biases",
    "layer_replication": "it repeats layers",
    "use_qalora": "it is a QA-LoRA",
    "alora_invocation_tokens": "it works from a token on (activated LoRA)",
}


def export(wanted: ExportRequest) -> int:
    """Write the folder and say where it is. Returns the exit code; raises InputError."""
    run = wanted.source
    record = record_of(run)
    stages = writing_stages(run, record, only=wanted.only)
    merged_because = _check(run, stages)
    out = wanted.out or run / "export" / "vllm"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty", where=str(out), hint="name another with --out")
    with made_beside(out) as work:
        if merged_because is not None:
            name = label(stages[0])
            wanted.say(f"{name} is merged: {merged_because}.")
            options = ("--out", str(work / MODEL), "--device", device_of(run))
            if code := wanted.run_tool("merge", str(run), *options, "--only", name):
                return code
        said = _write(run, record, stages, work, is_merged=merged_because is not None)
        if out.is_dir():
            out.rmdir()  # it is empty: see above
        work.rename(out)
    wanted.document["written"] = [str(out)]
    for line in (*said, f"Serve it:  sh {shlex.quote(shown_path(out / SCRIPT))}"):
        wanted.say(line)
    if find_spec("vllm") is None:
        wanted.say("vLLM is not installed here and has not run this. It needs an environment of")
        wanted.say("its own, mostly on a GPU: pip install vllm")
    return 0


def _check(run: Path, stages: Sequence[StageRecord]) -> str | None:
    """Why the one result has to be merged; None: it is a whole model, or all are modules that vLLM
    holds. Raises InputError for what no single server can serve, and for a broken template.
    """
    apart: dict[str, str] = {}  # what needs a server of its own -> why
    for stage in stages:
        method, folder = update(stage.update), run / stage.folder
        why: str | None = f"it is {method.result}, which vLLM does not load"
        if not method.is_module:
            why = "it is a whole model"
        elif "vllm" in method.serves:
            why = why_not_held(folder, json_object(folder / CONFIG))
        if why is not None and method.is_module and not method.merges:
            raise InputError(
                f"vLLM cannot load this: {label(stage)} {method.why_not_merged or 'is no LoRA'}",
                where=str(run),
                allowed="LoRA modules, what can be merged into its base, and whole models",
                hint="serve it with transformers (README.md in the folder of the result says how),"
                " or train it as LoRA: --set stages.0.update=lora",
            )
        if why is not None:
            apart[label(stage)] = why
    if apart and len(stages) > 1:
        name, why = next(iter(apart.items()))
        raise InputError(
            f"{name} needs a vLLM server of its own: {why}",
            where=str(run),
            hint=f"a server for each: --only {name}",
        )
    templates = {template_source(run / stage.folder): stage for stage in stages}
    if len(templates) > 1:
        raise InputError(
            f"{' and '.join(map(label, templates.values()))} have different chat templates, and a"
            " vLLM server takes one",
            where=str(run),
            hint=f"a server for each: --only {label(stages[0])}",
        )
    if None not in templates:
        ChatText.in_folder(run / stages[0].folder)
    is_module = update(stages[0].update).is_module
    return apart.get(label(stages[0])) if is_module else None


@contextmanager
def made_beside(out: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, to be renamed once whole; else it is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f"{TEMPORARY}{os.getpid()}-{out.name}")
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    run: Path, record: RunRecord, stages: Sequence[StageRecord], folder: Path, *, is_merged: bool
) -> list[str]:
    """Write what a server starts from. Returns what was checked and is to be known, in lines."""
    results = {label(stage): run / stage.folder for stage in stages}
    as_modules = update(stages[0].update).is_module and not is_merged
    name, first = next(iter(results.items()))
    folder.mkdir(parents=True, exist_ok=True)
    template = template_source(first)
    if template is not None:
        write_atomically(folder / TEMPLATE, template)
    generation = _generation(results.values())
    if generation:
        write_atomically(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
    plan = None
    with suppress(AdviseError):
        plan = read_plan(run / PLAN_FILE)
    more: list[list[str]] = []
    notes: list[str] = []
    served: str | None = None
    rank: int | None = None
    dtype = record.settings(stages[0]).weights_dtype
    if dtype in ("bfloat16", "float16"):
        more.append(["--dtype", dtype])
    if plan is not None and plan.revision and as_modules:
        more.append(["--revision", plan.revision])
    if plan is not None and plan.trust_remote_code:
        more.append(["--trust-remote-code"])
    if as_modules:
        asked = name
        base = model = record.base_model(stages[0])
        for one, source in results.items():
            (folder / "adapters" / one).mkdir(parents=True, exist_ok=True)
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(source / file, folder / "adapters" / one / file)
            rank = max(rank or 0, int(json_object(source / CONFIG)["r"]))
        if stages[0].quantization == "nf4":
            notes.append(
                "the modules were trained on 4-bit weights; vLLM loads the base in 16 bit, and some"
                " answers may differ from those of the test. `--quantization bitsandbytes` behind"
                f" {SCRIPT} loads it in 4 bit"
            )
        counts = {len(read_header(source / WEIGHTS)) // 2 for source in results.values()}
        layers = " to ".join(map(str, sorted({min(counts), max(counts)})))
        said = [
            f"{', '.join(results)}: LoRA on"
            f" {shown_path(Path(base)) if Path(base).is_absolute() else base}",
            f"Checked: names, shapes and rank of the tensors of {layers} layers are as vLLM reads"
            " them",
        ]
    else:
        asked = served = str(record.name)
        model = str(first.absolute()) if not is_merged else MODEL
        said = [f"{name}: a whole model, with its chat template and end tokens"]
    server = VllmServer(
        model=model,
        name=served,
        modules=[(one, f"adapters/{one}") for one in results] if as_modules else (),
        rank=rank,
        template=TEMPLATE if template is not None else None,
        generation="." if generation else None,
        more=more,
    )
    write_atomically(folder / SCRIPT, _script(server, asked, chats=bool(template), notes=notes))
    (folder / SCRIPT).chmod(0o755)
    for note in notes:
        said += wrapped(f"Note: {note}", 80, subsequent_indent="  ")
    return said


def _generation(folders: Iterable[Path]) -> dict[str, Any]:
    """The first result's generation settings; answers end wherever one result ends."""
    configs = [json_object(folder / GENERATION) for folder in folders]
    given = [config.get("eos_token_id") for config in configs]
    numbers = [number for one in given for number in (one if isinstance(one, list) else [one])]
    ends = list(dict.fromkeys(number for number in numbers if isinstance(number, int)))
    if not ends:
        return configs[0]
    return {**configs[0], "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _script(server: VllmServer, asked: str, *, chats: bool, notes: Sequence[str]) -> str:
    about = [
        "Serves the result of a run with vLLM. Options behind the name of this script are handed"
        " on: for example `sh serve.sh --max-model-len 4096` if memory runs out at the start.",
        *notes,
    ]
    if Path(server.model).is_absolute():
        about.append(
            "The model is a folder of the machine that trained it; elsewhere:"
            " MODEL=/its/folder sh serve.sh"
        )
    path = "completions"
    body: dict[str, Any] = {"model": asked, "prompt": "Hello", "max_tokens": 64}
    if chats:
        path = "chat/completions"
        body = {"model": asked, "messages": [{"role": "user", "content": "Hello"}]}
    lines = [
        "#!/bin/sh",
        *(f"# {line}" for text in about for line in textwrap.wrap(text, 76)),
        "# Ask it:",
        f"#   curl http://localhost:8000/v1/{path} -H 'Content-Type: application/json' -d"
        f" {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        'cd "$(dirname "$0")" || exit 1',
        f"model=${{MODEL:-{shlex.quote(server.model)}}}",
        'exec vllm serve "$model" \\',
        *(f"  {shlex.join(option)} \\" for option in server.options()),
        '  "$@"',
    ]
    return "\n".join(lines) + "\n"


def why_not_held(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot load a LoRA result beside its base, by its files; None if it can."""
    if config.get("peft_type") != "LORA":
        return f"it is no LoRA, but {config.get('peft_type')}"
    for key, why in NOT_HELD.items():
        if config.get(key):
            return f"{why}, which vLLM does not load"
    if (config.get("bias") or "none") != "none":
        return "it trains biases, which vLLM does not load"
    rank = config.get("r")
    if not isinstance(rank, int) or rank > RANKS[-1]:
        return f"its rank is {rank}, and vLLM takes {RANKS[-1]} at most"
    try:
        tensors = read_header(folder / WEIGHTS)
    except (OSError, DamagedFile) as error:
        return f"{WEIGHTS} cannot be read ({error})"
    sides: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        found = TENSOR.fullmatch(name)
        if found is None:
            return f"its tensor {name} is none that vLLM expects of a LoRA"
        own = tensor.shape[0] if found["side"] == "A" else tensor.shape[-1]
        if len(tensor.shape) != 2 or own != rank:
            return f"its tensor {name} has the shape {list(tensor.shape)}, not the rank {rank}"
        sides.setdefault(found["module"], set()).add(found["side"])
    lone = next((module for module, found in sides.items() if found != {"A", "B"}), None)
    if lone is not None or not sides:
        return f"a matrix of {lone or 'every module'} is missing"
    return None
