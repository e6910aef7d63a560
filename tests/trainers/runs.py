"""Stages run in this process: what they leave, and how they go on after a crash."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy
import pytest

from trainers.job.files import read_json
from trainers.job.job import Job


def trained(job: Job) -> dict[str, Any]:
    """What a stage says of itself once it is done."""
    import_module(f"trainers.{job.stage.objective}").train(job)
    return result_of(job)


def result_of(job: Job) -> dict[str, Any]:
    """What a trained stage says of itself."""
    return read_json(job.output / "result.json")


def losses(job: Job) -> list[float]:
    """Of the stage, in each line of metrics."""
    lines = map(json.loads, (job.run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["stage"] == job.stage.name]


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
