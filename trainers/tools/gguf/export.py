"""From results of a run to GGUF files: merge, write, quantise, compare, and keep what was found in
proof.json.

Run: python -P -m trainers.tools.gguf.export RUN --out FOLDER [--only NAME] [--kind Q4_K_M]
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from advisor.methods import update
from advisor.record.files import label, writing_stages
from trainers.job.files import read_json, write_json
from trainers.job.machine import torch_device
from trainers.start.model_files import reading
from trainers.tools import merge
from trainers.tools.command import run_command
from trainers.tools.gguf.llama_cpp import HOW, ask, find_llama_cpp
from trainers.tools.gguf.model import Written, read_config, tensors, write_model
from trainers.tools.gguf.proof import prove, reference_of
from trainers.tools.gguf.tokens import read_tokens
from trainers.tools.results import Result, record_of, result_of

RECORD = "proof.json"
DIFFERS = ".differs.gguf"  # of a file that was compared and is not the model: nobody serves it
PROGRAM = "llama-quantize"
OURS = ("", "F16", "BF16", "Q8_0")  # PROGRAM makes others, of a 16-bit file
KINDS = (*OURS[1:], "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One export."""

    run: Path
    out: Path
    kind: str = ""  # of the files, such as Q4_K_M; empty: 16 bit
    device: Any = "cpu"  # that LoRA results are merged on
    say: Callable[[str], None]  # takes what was done, line by line


def export(job: Job, *, only: str | None = None) -> list[Path]:
    """Write and compare the results of a run, each as a model of its own. Without llama.cpp nothing
    is compared, and that is said.

    Raises InputError for a result that a GGUF file cannot hold, MachineNotReady for a type that
    PROGRAM makes where it is not, TrainingFailed if a file differs from the model.
    """
    library = find_llama_cpp()
    check_kind(job.kind)
    record = record_of(job.run)
    stages = writing_stages(job.run, record, only=only)
    results = [result_of(job.run, record, stage) for stage in stages]
    title = record.name or job.run.name
    names = [title if len(stages) == 1 else f"{title}-{label(stage)}" for stage in stages]
    for result, name in zip(results, names, strict=True):
        _check(job, result, name)
    files: list[Path] = []
    for stage, result, name in zip(stages, results, names, strict=True):
        board.label = result.label
        samples = stage.evaluation.samples if stage.evaluation is not None else ()
        asked = list(dict.fromkeys(sample.prompt for sample in samples if sample.prompt))
        files.append(_one(job, result, name, asked, library))
    if library is None:
        job.say("written; not compared with the trained model: there is no llama.cpp here.")
        job.say(f"  To compare (optional): {HOW}; then run this again")
    if differ := [file.name for file in files if file.name.endswith(DIFFERS)]:
        raise TrainingFailed(
            f"not the model: {', '.join(differ)}; see {shown_path(job.out / RECORD)}",
            hint="do not serve it. `advise export --to merged` writes a plain model",
        )
    return files


def _check(job: Job, result: Result, name: str) -> None:
    """Raise InputError for a result that no GGUF file holds or llama.cpp does not know, or if its
    file is there and was compared, MachineNotReady if merged weights, a 16-bit file and a smaller
    one do not fit on the disk.
    """
    method = update(result.update)
    if method.is_module and not method.merges:
        raise InputError(
            f"{result.label} {method.why_not_merged}: a GGUF file cannot hold it",
            where=str(result.folder),
            allowed="LoRA results and models that were trained whole",
            hint="serve it with transformers and PEFT (its README.md shows how), or train it with"
            " LoRA",
        )
    folder = _model_folder(result)
    config = read_config(folder)
    tensors(folder, config)
    read_tokens(result.folder, config.vocab_size)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    merged = stored * (2 if result.weights_dtype == "float32" else 1) if result.is_module else 0
    need = merged + stored + (0 if job.kind in OURS else stored)
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


def _model_folder(result: Result) -> Path:
    """The folder of a whole result, or of its base. Raises InputError if that is not here."""
    if not result.is_module:
        return result.folder
    from transformers.utils import cached_file

    with reading(result.model, "the base"):
        return Path(cached_file(result.model, "config.json", local_files_only=True)).parent


def _recorded(out: Path) -> list[dict[str, Any]]:
    """The files that proof.json names and that are still there."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [one for one in read_json(out / RECORD)["files"] if (out / one["file"]).is_file()]
    return []


def _one(job: Job, result: Result, name: str, asked: Sequence[str], library: Path | None) -> Path:
    """Write one file, compare it, and give it the name that the comparison allows."""
    path, proof = job.out / f"{TEMPORARY}{name}.gguf", None
    try:
        with _whole_model(job, result) as folder:
            write = partial(write_model, folder, name=name, tokens_of=result.folder)
            written = (
                write(path, kind=job.kind) if job.kind in OURS else _smaller(write, path, job.kind)
            )
            if library is not None:
                of = reference_of(folder, written, asked, tokens_of=result.folder)
                proof = prove(partial(ask, library), path, of, kind=written.kind)
        file = job.out / f"{name}-{written.kind}.gguf"
        file.with_suffix(DIFFERS).unlink(missing_ok=True)  # of an earlier export
        differs = proof is not None and bool(proof.faults)
        file = path.replace(file.with_suffix(DIFFERS) if differs else file)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        path.unlink(missing_ok=True)
    size_bytes = file.stat().st_size
    job.say(f"{result.label}: {shown_path(file)} ({format_gib(size_bytes)}, {written.kind})")
    for line in (*written.notes, *(proof.lines() if proof is not None else ())):
        job.say(f"  {line}")
    if not differs:
        job.say(f"  serve it:  llama-server -m {shlex.quote(shown_path(file))} --jinja")
    own = {"file": file.name, "label": result.label, "size_bytes": size_bytes, **asdict(written)}
    own["proof"] = asdict(proof) if proof is not None else None
    own["proved"] = proof is not None and not differs
    versions = {name: version(name) for name in ("gguf", "torch", "transformers", "peft")}
    versions |= {"advise": __version__, "llama_cpp": str(library) if library else ""}
    others = [one for one in _recorded(job.out) if one["file"] != file.name]
    document = {"schema_version": 1, "files": [*others, own], "versions": versions}
    write_json(job.out / RECORD, document)
    return file


@contextmanager
def _whole_model(job: Job, result: Result) -> Iterator[Path]:
    """The folder with the whole model of a result; a merged one is removed afterwards."""
    if not result.is_module:
        yield result.folder
        return
    merged = job.out / f"{TEMPORARY}merged"
    shutil.rmtree(merged, ignore_errors=True)
    try:
        for line in merge.export(job.run, merged, only=result.label, device=job.device):
            job.say(line.replace(f", in {merged}", ""))
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


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


def _smaller(write: Callable[[Path], Written], path: Path, kind: str) -> Written:
    """Write a 16-bit file, and of it one in a smaller type. Raises MachineNotReady with what
    llama.cpp said.
    """
    sixteen = path.with_name(f"{TEMPORARY}16bit.gguf")
    command = [str(shutil.which(PROGRAM)), str(sixteen), str(path), kind]
    try:
        written = write(sixteen)
        with waiting(f"quantising to {kind}"):
            done = subprocess.run(command, capture_output=True, check=False)
    finally:
        sixteen.unlink(missing_ok=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise MachineNotReady(f"{PROGRAM} cannot make {kind}: {' '.join(said[-1:])}", hint=HOW)
    return replace(written, kind=kind)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="trainers.tools.gguf", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only")
    parser.add_argument("--kind", default="")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def work() -> None:
        device, say = torch_device(given.device), partial(print, flush=True)
        job = Job(run=given.run, out=given.out, kind=given.kind, device=device, say=say)
        export(job, only=given.only)

    return run_command(work, stopped="error: stopped; nothing half-written is left")


if __name__ == "__main__":
    sys.exit(main())
