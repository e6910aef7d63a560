"""SFT stages run in this process: what they leave, and how they go on after a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainers import sft
from trainers.job.files import read_json
from trainers.job.job import Job


def trained(job: Job) -> dict[str, Any]:
    """What a stage says of itself once it is done."""
    sft.train(job)
    return read_json(job.output / "result.json")


def losses(job: Job) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (job.run / "metrics.jsonl").read_text().splitlines()
    ]


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
            sft.train(job)
