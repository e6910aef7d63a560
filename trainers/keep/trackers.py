"""The plan's trackers: TensorBoard and Weights & Biases get the numbers of metrics.jsonl, too.

Each stage has a run of its own there, and a resumed stage goes on in it. Their files lie in the run
folder, below trackers/. A tracker that fails is left out from then on: training never fails by it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from advisor.ground.files import shown_path
from advisor.ground.version import __version__
from advisor.plan.entries import path_from
from advisor.plan.model import Origin
from advisor.plan.write import plan_data
from trainers.job.files import make_folder, write_json
from trainers.job.job import Job, label
from trainers.job.machine import process_count
from trainers.say.progress import say
from trainers.step.pass_through import first_line

START_S, END_S = 60.0, 120.0  # how long wandb may take to begin a run, and to send its end
FOLDER = "trackers"  # of the run folder
# Of a line of metrics.jsonl, what says which line it is; the rest are numbers to track.
ABOUT = ("stage", "task", "step", "steps")
NOT_SHOWN = ("name", "data", "start_from")  # of a stage, among its settings


class Tracker(Protocol):
    """The run of one stage in one service."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self, *, failed: bool) -> None:
        """Write what is left, and end."""


class Trackers:
    """The trackers of one stage, opened by its first line, so that a process that trains nothing
    opens none.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open: dict[str, Tracker] | None = None

    def log(self, line: Mapping[str, Any], *, after: int) -> None:
        """Hand on a line of metrics.jsonl.

        Args:
            line: The line.
            after: The step that this attempt began after; 0: the stage began anew.
        """
        if self.open is None:
            self.open = {}
            for name in dict.fromkeys(self.job.plan.extra_key("trackers", "trackers") or ()):
                with suppress(_Failed), _Reported(self.job, name):
                    self.open[name] = OPENERS[name](self.job, after)
        numbers = {
            key: float(value)
            for key, value in line.items()
            if key not in ABOUT and isinstance(value, int | float)
        }
        for known, tracker in list(self.open.items()):
            try:
                with _Reported(self.job, known):
                    tracker.log(line["step"], numbers)
            except _Failed:
                del self.open[known]

    def close(self) -> None:
        """End the runs; those of a stage that fails are marked as failed."""
        failed = sys.exc_info()[0] is not None
        for name, tracker in (self.open or {}).items():
            with suppress(_Failed), _Reported(self.job, name):
                tracker.close(failed=failed)
        self.open = {}


class _Failed(Exception):
    """A tracker failed, and that was said."""


class _Reported:
    """Turns whatever a tracker raises into a warning and `_Failed`; a stop passes."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name = job, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            say(
                f"{label(self.job)}: WARNING: {self.name} gets nothing more of this stage:"
                f" {first_line(error)}; metrics.jsonl has everything"
            )
            raise _Failed from error


class TensorBoard:
    """Event files, which `tensorboard --logdir` shows."""

    def __init__(self, job: Job, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = job.run / FOLDER / "tensorboard" / job.entry.name
        # What a killed attempt wrote behind its checkpoint is hidden: it is trained again.
        self.writer = SummaryWriter(str(folder), purge_step=after + 1)
        if not after:
            settings = json.dumps(stage_settings(job), indent=2, default=str)
            self.writer.add_text("settings", f"```json\n{settings}\n```", 0)
            say(f"{label(job)}: tensorboard --logdir {shown_path(folder.parent)}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed process loses no step that its checkpoint counts

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases: sent as it goes, or kept in the run folder (WANDB_MODE=offline).

    Nothing is sent but the numbers and the stage's settings: no code, no output, no packages,
    nothing of the machine.
    """

    def __init__(self, job: Job, after: int) -> None:
        # Before the import, which reads it: its reports about itself.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # type: ignore[import-not-found, unused-ignore]

        kept = job.run / FOLDER / f"{job.entry.name}.json"
        known = _read(kept).get("wandb") if after else None
        make_folder(kept.parent)
        identity = known or secrets.token_hex(4)
        if known is None:
            write_json(kept, {"wandb": identity})
        settings = wandb.Settings(
            silent=True, console="off", host="", disable_git=True, disable_code=True,
            save_code=False, disable_job_creation=True, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False,
            x_transaction_log_flush_interval=1.0, init_timeout=START_S,
            # Else a lost network would hold a GPU until it is back.
            finish_timeout=END_S, finish_timeout_raises=True,
        )  # fmt: skip
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or job.plan.name,
            group=os.environ.get("WANDB_RUN_GROUP") or job.run.name,
            name=f"{job.run.name}-{job.entry.name}",
            id=identity,
            resume="allow",
            dir=str(kept.parent),
            config=stage_settings(job),
            settings=settings,
        )
        if self.run.settings.mode == "offline":
            folder = Path(self.run.settings.sync_dir)
            said = f"wandb, offline: `wandb sync {shown_path(folder)}` sends it later"
        else:
            said = f"wandb: {self.run.url}"
        say(f"{label(job)}: {said}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=1 if failed else 0)


OPENERS: Mapping[str, Callable[[Job, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def stage_settings(job: Job) -> dict[str, Any]:
    """What a tracker may know of the stage: its settings, and the model's name. A plan holds no
    secrets; the data is not named, and of a model in a folder the folder's name alone.
    """
    alone = replace(job.plan, stages=(job.stage,), tasks=(), origin=Origin())
    keys = {**plan_data(alone)["stages"][0], **job.options}
    model = path_from(job.folder, job.plan.model)
    return {
        "plan": job.plan.name,
        "stage": job.stage.name,
        "task": job.task,
        "model": model.name if model.exists() else job.plan.model,
        "world_size": process_count(),
        "advise": __version__,
        **{key: value for key, value in keys.items() if key not in NOT_SHOWN},
    }


def _read(path: Path) -> dict[str, Any]:
    """What an earlier attempt kept; empty if there is nothing to read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
