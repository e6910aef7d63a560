"""Stages run in this process: what they read and leave, and how they go on after a crash."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.conftest import ROOT
from trainers.job.files import read_json
from trainers.job.job import Job


def trained(job: Job) -> dict[str, Any]:
    """What a stage says of itself once it is done."""
    import_module(f"trainers.{job.stage.objective}").train(job)
    return result_of(job)


def result_of(job: Job) -> dict[str, Any]:
    """What a trained stage says of itself."""
    return read_json(job.output / "result.json")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def metrics(job: Job) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return lines_of(job.run / "metrics.jsonl")


def losses(job: Job) -> list[float]:
    """Of the stage, in each line of metrics."""
    return [line["loss"] for line in metrics(job) if line["stage"] == job.stage.name]


def weights(job: Job) -> dict[str, Any]:
    """The tensors of the result, whole or of a module."""
    from safetensors.torch import load_file

    (path,) = job.output.glob("*model.safetensors")
    return load_file(path)


def plain_loss(model: Any, row: Any) -> float:
    """The loss of a row that transformers computes of it alone."""
    import torch

    ids, labels = (torch.tensor([list(part)]) for part in (row.input_ids, row.labels))
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether tensors are equal to the bit."""
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of one question and its answer, as messages."""
    turns = {"user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """The file, with a row in each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def break_at(step: int, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stage and crash it right after the losses of a step were noted."""
    from trainers.keep.progress import RunCallback

    original = RunCallback.on_log

    def crash(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_log", crash)
        with pytest.raises(RuntimeError, match="plug"):
            trained(job)


def look_before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, look: Callable[..., object]
) -> None:
    """From now on `look` gets what the function of that name is called with, and goes first."""
    original = getattr(owner, name)

    def looked(*args: Any, **keys: Any) -> Any:
        look(*args, **keys)
        return original(*args, **keys)

    monkeypatch.setattr(owner, name, looked)


def whole_and_broken(
    make: Callable[..., Job], step: int, monkeypatch: pytest.MonkeyPatch, **keys: Any
) -> tuple[Job, Job]:
    """Two jobs that ran to their end, the second after a crash behind that step."""
    whole = make(**{"job_judge": False, **keys})
    trained(whole)
    broken = make(**{"job_judge": False, **keys, "job_run": whole.run.parent / "broken"})
    break_at(step, broken, monkeypatch)
    trained(broken)
    return whole, broken


def torchrun(module: str, *arguments: Any) -> None:
    """Run a module by two processes of this machine; fails with what they said."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    program = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", *launcher, "--", *program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


# The first bytes of a file that Python or torch has pickled, alone and in an archive.
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def kind_of(path):
    """What a file of a run folder is, by its first bytes: its name may say anything."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 8 + size <= len(content):
        json.loads(content[8 : 8 + size])
        return "safetensors"
    if content.startswith(b"ARROW1"):  # rows that are kept
        return "arrow"
    if content.startswith(b"\x93NUMPY"):  # their order: objects would be pickled
        numpy.load(path, allow_pickle=False)
        return "numbers"
    if content.startswith(PICKLED) or b"\0" in content:
        return f"{path.name}: {content[:8]!r}"
    return "text"


def kinds_of_files(folder):
    """What the files below a folder are."""
    return {kind_of(path) for path in folder.rglob("*") if path.is_file()}
