"""A run that another process is working on: whether there is one, and how far it is."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import MachineNotReady
from advisor.ground.progress import View, Wait, read_view
from advisor.launch.folder import METRICS, is_locked, process_of
from advisor.record.files import read_record
from advisor.record.run import DONE, RUNNING, RunRecord

STEPS = ("steps", "updates")  # units of the waits that count the steps of a stage
TAIL_BYTES = 2**16


class RunIsLive(MachineNotReady):
    """The run that was asked for is at work already."""

    def __init__(self, folder: Path, process: int) -> None:
        self.folder, self.process = folder, process
        super().__init__(
            f"this run is at work already (process {process})",
            where=str(folder),
            hint=(
                f"`advise run {shlex.quote(str(folder))}` shows how far it is; to stop it, with its"
                f" last step saved: kill {process}"
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRun:
    """How far a run is that another process is working on."""

    folder: Path
    process: int
    record: RunRecord
    stage: str | None  # the stage at work; None: none is
    place: str  # '2 of 3'
    step: int | None  # of the stage; None: its first step is not done yet
    total: int | None
    view: View | None  # what the trainer says of itself; None: nothing

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step of the stage; None where that is not known."""
        wait = self._steps
        return wait.seconds_left(self.view.now_s) if wait is not None and self.view else None

    @property
    def _steps(self) -> Wait | None:
        waits = self.view.waits if self.view is not None else ()
        return next((wait for wait in waits if wait.unit in STEPS), None)

    @property
    def sentence(self) -> str:
        """'stage sft (1 of 2): training: 12 of 108 steps, ...'."""
        if self.stage is None:
            return self.view.line(named=False) if self.view is not None else "between two stages"
        at = f"stage {self.stage} ({self.place})"
        if self.view is not None:
            return f"{at}: {self.view.line(named=False)}"
        return (
            f"{at}: step {self.step} of {self.total}" if self.step else f"{at}: it has just begun"
        )

    def to_dict(self) -> dict[str, Any]:
        """The `progress` of a run as JSON."""
        used, limit = (self.view.memory if self.view is not None else None) or (None, None)
        return {
            "process": self.process,
            "stage": self.stage,
            "doing": [wait.what for wait in self.view.waits] if self.view is not None else [],
            "step": self.step,
            "total": self.total,
            "eta_s": self.eta_s,
            "memory_bytes": used,
            "memory_limit_bytes": limit,
            "text": self.sentence,
        }


def refuse_live(folder: Path) -> None:
    """Raise RunIsLive if a process that is alive works in the folder."""
    process = process_of(folder) if is_locked(folder) else None
    if process is not None:
        raise RunIsLive(folder, process)


def read_live(folder: Path) -> LiveRun | None:
    """How far the run is; None if nobody works on it any more."""
    process = process_of(folder) if is_locked(folder) else None
    record = read_record(folder) if process is not None else None
    if process is None or record is None:
        return None
    at_work = next((stage for stage in record.stages if stage.status == RUNNING), None)
    done = sum(stage.status == DONE for stage in record.stages)
    view = read_view(folder)
    counted = next((wait for wait in view.waits if wait.unit in STEPS), None) if view else None
    step, total = (counted.done, counted.total) if counted is not None else (None, None)
    if at_work is not None and counted is None:
        step, total = last_step(folder, at_work.plan_stage, at_work.task)
    return LiveRun(
        folder=folder,
        process=process,
        record=record,
        stage=at_work.name if at_work is not None else None,
        place=f"{done + 1} of {len(record.stages)}",
        step=step,
        total=total,
        view=view,
    )


def last_step(folder: Path, stage: str, task: str | None) -> tuple[int | None, int | None]:
    """(the last step of a stage that was logged, all of them), by the end of metrics.jsonl."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None, None
    for line in reversed(lines):
        found = metrics_line(line)
        if found is not None and (found.get("stage"), found.get("task")) == (stage, task):
            return found["step"], found.get("steps")
    return None, None


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is none, such as one that is being written."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(found, dict) and isinstance(found.get("step"), int)
    return found if is_line else None
