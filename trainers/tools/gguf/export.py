"""From results of a run to GGUF files: merge, write, quantise, prove, and give the file its name.

A file that is not proved is called NAME.unproved.gguf.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.disk import TEMPORARY
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.ground.files import shown_path
from advisor.ground.gguf import GgufFamily
from advisor.ground.progress import board
from advisor.methods import update
from trainers.frame.job import is_hub_id
from trainers.tools import merge
from trainers.tools.gguf.adapter import why_no_file, write_adapter
from trainers.tools.gguf.engine import EngineFailed, Process
from trainers.tools.gguf.family import family_of, read_config
from trainers.tools.gguf.find import HOW, LlamaCpp, find_llama_cpp
from trainers.tools.gguf.levels import check_level, quantize
from trainers.tools.gguf.proof_file import Exported, keep_record
from trainers.tools.gguf.prove import Proof, prove
from trainers.tools.gguf.reference import QUESTIONS, Reference, reference_of
from trainers.tools.gguf.tokens import end_tokens, load_tokenizer, read_tokens
from trainers.tools.gguf.write import Written, need_room, write_model
from trainers.tools.results import Result, record_of, results_of

UNPROVED = ".unproved.gguf"
PROMPTS = 6
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One file to write."""

    name: str  # without type and ending
    label: str  # of the result, or `base`
    result: Result
    is_adapter: bool  # a file of its own, to be put on the base
    is_base: bool = False


def export(
    run: Path,
    out: Path,
    *,
    only: str | None,
    kind: str,
    device: Any,
    say: Callable[[str], None],
) -> list[Exported]:
    """Write and prove the results of a run, each as a model of its own; those of several tasks on
    one base as that base and one adapter for each.

    Raises InputError for a result that a GGUF file cannot hold, MachineNotReady without llama.cpp
    (the files are there then, and called unproved), TrainingFailed if a proof failed.

    Args:
        kind: Of the files, such as Q4_K_M; empty: 16 bit.
        device: That LoRA results are merged on.
        say: Takes what was done, line by line.
    """
    results = _chosen(run, only)
    llama_cpp = find_llama_cpp()
    check_level(kind, llama_cpp)
    plans, why = _pieces(run, results, out, kind)
    if why:
        say(why)
    for piece in plans:
        _free_name(out, piece, kind)
    done: list[Exported] = []
    for piece in plans:
        board.label = piece.label
        base = done[0] if piece.is_adapter else None
        exported = _one(run, out, piece, kind, llama_cpp, device, base, say)
        done.append(exported)
        keep_record(out, exported, llama_cpp)
    _finish(out, done, llama_cpp, say)
    return done


def _chosen(run: Path, only: str | None) -> list[Result]:
    """The results that are meant. Raises InputError for those that no GGUF file holds."""
    found = results_of(run)
    results = [result for result in found if only in (None, result.label)]
    if not results:
        raise InputError(
            "the run has no such result",
            where=f"--only {only}",
            allowed=", ".join(result.label for result in found),
        )
    for result in results:
        method = update(result.update)
        if method.is_module and not method.merges:
            raise InputError(
                f"{result.label} {method.why_not_merged}: a GGUF file cannot hold it",
                where=str(result.folder),
                allowed="LoRA results and models that were trained whole",
                hint="serve it with transformers and PEFT (its README.md shows how), or train it"
                " with LoRA",
            )
    return results


def _pieces(run: Path, results: Sequence[Result], out: Path, kind: str) -> tuple[list[Piece], str]:
    """The files to write, and what is to know of that choice.

    Raises InputError for a model or tokenizer that llama.cpp does not know, MachineNotReady without
    disk space, before anything is computed.
    """
    families: list[tuple[GgufFamily, Any]] = []
    for result in results:
        folder = result.folder if not result.is_module else _folder_of(result.model)
        config = read_config(str(folder))
        families.append((family_of(config, str(folder)), config))
        read_tokens(result.folder, config.vocab_size)
        need_room(out, _room_for(folder, result, kind))
    title = record_of(run).name or run.name
    single = [
        Piece(
            name=title if len(results) == 1 else f"{title}-{result.label}",
            label=result.label,
            result=result,
            is_adapter=False,
        )
        for result in results
    ]
    shared = len(results) > 1 and len({result.base_key for result in results}) == 1
    if not shared or not all(result.is_module for result in results):
        return single, ""
    if len({load_tokenizer(result.folder).chat_template for result in results}) > 1:
        return single, "each task as a whole model: their chat templates differ"
    for result, (family, config) in zip(results, families, strict=True):
        why = why_no_file(result.folder, family, config)
        if why:
            return (
                single,
                f"each task as a whole model, because of the adapter {result.label}: {why}",
            )
    base = Piece(
        name=f"{title}-{BASE}", label=BASE, result=results[0], is_adapter=False, is_base=True
    )
    adapters = [
        Piece(name=f"{title}-{result.label}", label=result.label, result=result, is_adapter=True)
        for result in results
    ]
    return [base, *adapters], ""


def _room_for(folder: Path, result: Result, kind: str) -> int:
    """Bytes on the disk while one result is exported: merged weights, a 16-bit file, a smaller
    one.
    """
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    merged = stored * (2 if result.weights_dtype == "float32" else 1) if result.is_module else 0
    return merged + stored + (stored if kind not in ("", "Q8_0") else 0)


def _folder_of(model: str) -> Path:
    """The folder of a base. Raises InputError if it is not on this machine."""
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except OSError:
        raise InputError(
            f"the base {model} is not in the hub's cache", hint=f"hf download {model}"
        ) from None


def _free_name(out: Path, piece: Piece, kind: str) -> None:
    """Raise InputError if a proved file of that name is there."""
    ending = "adapter" if piece.is_adapter else kind
    there = [
        path
        for path in out.glob(f"{piece.name}-{ending or '*16'}.gguf")
        if not path.name.endswith(UNPROVED)
    ]
    if there:
        raise InputError(
            f"{shown_path(there[0])} is already there",
            where=str(there[0]),
            hint="delete it, or name another folder with --out",
        )


def _one(
    run: Path,
    out: Path,
    piece: Piece,
    kind: str,
    llama_cpp: LlamaCpp | None,
    device: Any,
    base: Exported | None,
    say: Callable[[str], None],
) -> Exported:
    """Write one file, prove it, and give it the name that the proof allows."""
    result, path = piece.result, out / f"{TEMPORARY}{piece.name}.gguf"
    adapter = result.folder if piece.is_adapter else None
    proof = None
    try:
        with _model_folder(run, out, piece, device, say) as folder:
            if adapter:
                written = _write_adapter(folder, adapter, path, piece.name)
            else:
                written = _write(folder, path, kind, piece, llama_cpp)
            if llama_cpp is not None:
                reference = reference_of(
                    folder,
                    written.ends,
                    _questions(run, piece),
                    tokens=result.folder,
                    adapter=adapter,
                )
                proof = _proved(llama_cpp, written, reference, out, base)
        return _named(out, piece, written, proof, base)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _model_folder(
    run: Path, out: Path, piece: Piece, device: Any, say: Callable[[str], None]
) -> Iterator[Path]:
    """The folder with the whole model of a piece; a merged one is removed afterwards."""
    result = piece.result
    if not result.is_module:
        yield result.folder
        return
    if piece.is_base or piece.is_adapter:
        yield _folder_of(result.model)
        return
    merged = out / f"{TEMPORARY}merged"
    shutil.rmtree(merged, ignore_errors=True)
    try:
        for line in merge.export(run, merged, only=result.label, device=device):
            say(line.replace(f", in {merged}", ""))
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _write_adapter(folder: Path, adapter: Path, path: Path, name: str) -> Written:
    config = read_config(str(folder))
    write_adapter(adapter, path, family_of(config, str(folder)), config, name=name)
    return Written(
        path=path,
        kind="adapter",
        size_bytes=path.stat().st_size,
        rounding="",
        ends=tuple(end_tokens(load_tokenizer(adapter), adapter)),
        notes=(),
    )


def _write(
    folder: Path, path: Path, kind: str, piece: Piece, llama_cpp: LlamaCpp | None
) -> Written:
    """Write a model in a type that we know, or let llama.cpp make it from a 16-bit file."""
    tokens_of = piece.result.folder
    if kind in ("", "Q8_0"):
        return write_model(folder, path, kind=kind, name=piece.name, tokens_of=tokens_of)
    sixteen = path.with_name(f"{TEMPORARY}16bit.gguf")
    try:
        whole = write_model(folder, sixteen, name=piece.name, tokens_of=tokens_of)
        return quantize(whole, path, kind, llama_cpp)
    finally:
        sixteen.unlink(missing_ok=True)


def _questions(run: Path, piece: Piece) -> list[str]:
    """What users ask: held-out prompts of the result, or our own where it was not judged."""
    stages = record_of(run).stages
    stage = next(stage for stage in stages if run / stage.folder == piece.result.folder)
    samples = stage.evaluation.samples if stage.evaluation is not None else ()
    asked = list(dict.fromkeys(sample.prompt for sample in samples if sample.prompt))
    return [*asked, *QUESTIONS][:PROMPTS]


def _proved(
    llama_cpp: LlamaCpp,
    written: Written,
    reference: Reference,
    out: Path,
    base: Exported | None,
) -> Proof:
    with Process(llama_cpp) as engine:
        if written.kind != "adapter":
            return prove(engine, written.path, reference, kind=written.kind)
        assert base is not None
        return prove(engine, out / base.file, reference, kind=base.kind, adapter=written.path)


def _named(
    out: Path, piece: Piece, written: Written, proof: Proof | None, base: Exported | None
) -> Exported:
    """Give the file the name that the proof allows."""
    stem = f"{piece.name}-{written.kind}"
    path, unproved = out / f"{stem}.gguf", out / f"{stem}{UNPROVED}"
    unproved.unlink(missing_ok=True)  # of an earlier export
    if proof is None or not proof.holds:
        path = unproved
    written.path.replace(path)
    return Exported(
        file=path.name,
        label=piece.label,
        role="adapter" if piece.is_adapter else "base" if piece.is_base else "model",
        kind=written.kind,
        size_bytes=path.stat().st_size,
        base=base.file if piece.is_adapter and base is not None else None,
        ends=list(written.ends),
        rounding=written.rounding,
        notes=list(written.notes),
        proof=proof,
    )


def _finish(
    out: Path, done: Sequence[Exported], llama_cpp: LlamaCpp | None, say: Callable[[str], None]
) -> None:
    """Say what is there. Raises if something is not proved."""
    for one in done:
        for line in one.lines(out):
            say(line)
    if llama_cpp is None:
        raise MachineNotReady(
            "nothing is proved: there is no llama.cpp on this machine. The files are called"
            f" *{UNPROVED}",
            hint=f"{HOW}; then run this again",
        )
    failed = [one for one in done if one.proof is None or not one.proof.holds]
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(done)} files are not the model: see"
            f" {shown_path(out)}/proof.json",
            hint=f"they are called *{UNPROVED}; do not serve them. `advise export --to merged`"
            " writes a plain model",
        )


__all__ = ["EngineFailed", "export"]
