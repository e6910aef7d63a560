"""From results of a run to GGUF files: merge, write, quantise, compare, and keep what was found in
proof.json.

Run: python -P -m trainers.tools.gguf.export RUN --out FOLDER [--only NAME] [--kind Q4_K_M]
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed, did_you_mean
from advisor.ground.files import TEMPORARY, cannot_write, free_bytes, shown_path
from advisor.ground.progress import board, waiting
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from advisor.record.files import label, writing_stages
from trainers.job.files import make_folder, read_json, write_json
from trainers.job.machine import free_host_bytes, torch_device
from trainers.start.model_files import reading
from trainers.tools import command
from trainers.tools.gguf.model import Tokens, check_family, read_tokens, write_model
from trainers.tools.gguf.proof import HOW, find_llama_server, prove, reference_of
from trainers.tools.merge import merge
from trainers.tools.results import Result, load_result, load_tokenizer, record_of, result_of

RECORD = "proof.json"
DIFFERS = ".differs.gguf"  # of a file that was compared and is not the model: nobody serves it
SHOWN = 4  # tensors
PROGRAM = "llama-quantize"
OURS = ("", "F16", "BF16", "Q8_0")  # PROGRAM makes others, of a 16-bit file
KINDS = (*OURS[1:], "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K")


@dataclass(frozen=True, kw_only=True)
class Job:
    run: Path
    out: Path
    only: str | None = None  # one task or stage
    kind: str = ""  # of the files, such as Q4_K_M; empty: 16 bit
    device: Any = "cpu"  # that LoRA results are merged on
    program: Path | None = None  # llama-server, found by `export`; None: it is not here
    say: Callable[[str], None]  # takes what was done, line by line


def export(job: Job) -> list[Path]:
    """Write and compare the results of a run, each as a model of its own. Without llama.cpp nothing
    is compared, and that is said.

    Raises InputError for a result that a GGUF file cannot hold, MachineNotReady for a type that
    PROGRAM makes where it is not, TrainingFailed if a file differs from the model.
    """
    job = replace(job, program=find_llama_server())
    check_kind(job.kind)
    record = record_of(job.run)
    stages = writing_stages(job.run, record, only=job.only)
    results = [result_of(job.run, record, stage) for stage in stages]
    title = record.name or job.run.name
    names = [title if len(stages) == 1 else f"{title}-{label(stage)}" for stage in stages]
    tokens = [_check(job, result, name) for result, name in zip(results, names, strict=True)]
    files: list[Path] = []
    make_folder(job.out)
    for stage, result, name, own in zip(stages, results, names, tokens, strict=True):
        board.label = result.label
        samples = stage.evaluation.samples if stage.evaluation is not None else ()
        asked = list(dict.fromkeys(sample.prompt for sample in samples if sample.prompt))
        path = job.out / f"{TEMPORARY}{name}.gguf"
        try:
            files.append(_write(job, result, own, path, asked))
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            path.unlink(missing_ok=True)
    if job.program is None:
        job.say("written; not compared with the trained model: there is no llama.cpp here.")
        job.say(f"  To compare (optional): {HOW}; then run this again")
    if differ := [file.name for file in files if file.name.endswith(DIFFERS)]:
        raise TrainingFailed(
            f"not the model: {', '.join(differ)}; see {shown_path(job.out / RECORD)}",
            hint="do not serve it. `advise export --to merged` writes a plain model",
        )
    return files


def _check(job: Job, result: Result, name: str) -> Tokens:
    """The tokenizer of a result. Raises InputError for one that no GGUF file holds or llama.cpp
    does not know, or if its file is there and was compared, MachineNotReady if the files do not fit
    on the disk.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    method = result.method
    if method.is_module and not method.merges:
        raise InputError(
            f"{result.label} {method.why_not_merged}: a GGUF file cannot hold it",
            where=str(result.folder),
            allowed="LoRA results and models that were trained whole",
            hint="serve it with transformers and PEFT (its README.md shows how), or train it with"
            " LoRA",
        )
    source = result.base if result.is_module else str(result.folder)
    revision = (result.job.plan.revision if result.is_module else None) or "main"
    with reading(source), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        check_family(config, source)
        outline = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    tokens = read_tokens(load_tokenizer(result), result.folder, config.vocab_size)
    need = (2 if job.kind in OURS else 4) * sum(one.numel() for one in outline.parameters())
    free = free_bytes(job.out)
    if need > free:
        raise MachineNotReady(
            f"the export needs about {format_gib(need)}, and {format_gib(free)} are free",
            where=str(job.out.parent),
            hint="free some space, or name another folder with --out",
        )
    not_compared = [one["file"] for one in _recorded(job.out) if one.get("proof") is None]
    for path in job.out.glob(f"{name}-{job.kind or '*16'}.gguf"):
        if path.name not in not_compared:
            raise InputError(
                f"{shown_path(path)} is already there",
                where=str(path),
                hint="delete it, or name another folder with --out",
            )
    return tokens


def _write(job: Job, result: Result, tokens: Tokens, path: Path, asked: Sequence[str]) -> Path:
    """Write one file, compare it with the model where llama.cpp is here, record it, and give it the
    name that the comparison allows. Returns where it is.
    """
    if result.is_module:
        merged = merge(job.run, result, job.device)
        model, tokenizer = merged.model.cpu(), merged.tokenizer
        for line in merged.lines(result.label):
            job.say(line)
    else:
        with waiting("loading the model"):
            model, tokenizer = load_result(result, "cpu"), load_tokenizer(result)
    name, proof = path.stem.removeprefix(TEMPORARY), None
    if job.kind in OURS:
        kind, note = write_model(model, tokens, path, kind=job.kind, name=name)
    else:
        sixteen, kind = path.with_name(f"{TEMPORARY}16bit.gguf"), job.kind
        try:
            _, note = write_model(model, tokens, sixteen, name=name)
            _quantise(sixteen, path, kind)
        finally:
            sixteen.unlink(missing_ok=True)
    if job.program is not None:
        # In float32 every rounding that shows is llama.cpp's, if there is room for that.
        if 4 * sum(one.numel() for one in model.parameters()) < free_host_bytes():
            model = model.float()
        proof = prove(job.program, path, reference_of(model, tokenizer, tokens, asked), kind)
    differs = proof is not None and bool(proof.faults)
    file = job.out / f"{name}-{kind}.gguf"
    file.with_suffix(DIFFERS).unlink(missing_ok=True)  # of an earlier export
    file = path.replace(file.with_suffix(DIFFERS) if differs else file)
    notes, size_bytes = [*filter(None, [note]), *tokens.notes], file.stat().st_size
    if left_out := getattr(model, "left_out", None):
        notes.append(
            "some tensors of the model are not in the file, since transformers does not read them"
            f" ({len(left_out):,} in all): {', '.join(left_out[:SHOWN])}"
        )
    job.say(f"{result.label}: {shown_path(file)} ({format_gib(size_bytes)}, {kind})")
    for line in (*notes, *(proof.lines() if proof is not None else ())):
        job.say(f"  {line}")
    if not differs:
        job.say(f"  serve it:  llama-server -m {shlex.quote(shown_path(file))} --jinja")
    own = {"file": file.name, "label": result.label, "size_bytes": size_bytes, "kind": kind}
    own |= {"ends": tokens.ends, "begins": tokens.begins, "notes": notes}
    own["proof"] = asdict(proof) if proof is not None else None
    own["proved"] = proof is not None and not differs
    versions = {name: version(name) for name in ("gguf", "torch", "transformers", "peft")}
    others = [one for one in _recorded(job.out) if one["file"] != file.name]
    document = {"schema_version": 1, "files": [*others, own]}
    write_json(job.out / RECORD, document | {"versions": versions | {"advise": __version__}})
    return file


def _quantise(sixteen: Path, path: Path, kind: str) -> None:
    """Make a file of a smaller type of a 16-bit one. Raises MachineNotReady with what llama.cpp
    said.
    """
    command = [str(shutil.which(PROGRAM)), str(sixteen), str(path), kind]
    with waiting(f"quantising to {kind}"):
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise MachineNotReady(f"{PROGRAM} cannot make {kind}: {' '.join(said[-1:])}", hint=HOW)


def _recorded(out: Path) -> list[dict[str, Any]]:
    """The files that proof.json names and that are still there."""
    noted = read_json(out / RECORD)
    files = noted.get("files") if isinstance(noted, dict) else None
    return [one for one in files or [] if (out / one["file"]).is_file()]


def check_kind(kind: str) -> None:
    """Raise InputError for a type that is none, MachineNotReady for one that PROGRAM makes where it
    is not.
    """
    if kind and kind not in KINDS:
        raise InputError(
            f"unknown type of GGUF file '{kind}'",
            where=f"--to gguf:{kind}",
            allowed=f"types: {', '.join(KINDS)}",
            hint=did_you_mean(kind.upper(), KINDS),
        )
    if kind not in OURS and shutil.which(PROGRAM) is None:
        raise MachineNotReady(
            f"{kind} is made by llama.cpp's program {PROGRAM}, and it is not on PATH",
            hint="install llama.cpp, or export 16 bit: of that file Ollama makes the smaller one"
            f" itself (`ollama create -q {kind}`)",
        )


def work(given: Any) -> None:
    """What the command line asks for."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device, say = torch_device(given.device), partial(print, flush=True)
    export(Job(**vars(given) | {"device": device, "say": say}))


OPTIONS: dict[str, dict[str, Any]] = {
    "run": {"type": Path},
    "--out": {"type": Path, "required": True},
    "--only": {},
    "--kind": {"default": ""},
    "--device": {"default": "cpu"},
}
main = command(work, OPTIONS, stopped="error: stopped; nothing half-written is left")

if __name__ == "__main__":
    sys.exit(main())
