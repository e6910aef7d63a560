"""The plan's trackers get the numbers of metrics.jsonl, too, through accelerate's classes for them.

Each stage has a run of its own there. Files lie in the run folder, below trackers/. A tracker that
fails is left out from then on: training never fails by it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from advisor.ground.files import shown_path
from advisor.ground.terminal import mask_secrets
from advisor.ground.version import __version__
from advisor.plan.entries import path_from
from advisor.plan.model import Origin
from advisor.plan.write import plan_data
from trainers.job.files import make_folder, read_json, write_json
from trainers.job.job import Job, label
from trainers.job.libraries import first_line
from trainers.job.machine import process_count
from trainers.say.progress import say

START_S, END_S = 60.0, 120.0  # how long wandb may take to begin a run, and to send its end
FOLDER = "trackers"  # of the run folder
# Of a line of metrics.jsonl, what says which line it is; the rest are numbers to track.
ABOUT = ("stage", "task", "step", "steps")
NOT_SHOWN = ("name", "data", "start_from")  # of a stage, among its settings


class Trackers:
    """The trackers of one stage, opened by its first line, so that a process that trains nothing
    opens none.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open: dict[str, Any] | None = None

    def log(self, line: Mapping[str, Any], *, after: int) -> None:
        """Hand on a line of metrics.jsonl, of an attempt that began after a step; 0: anew."""
        if self.open is None:
            self.open = {}
            for name in dict.fromkeys(self.job.plan.extra_key("trackers", "trackers") or ()):
                with self._or_give_up(name):
                    self.open[name] = open_tracker(self.job, name, after)
        numbers = {
            key: float(value)
            for key, value in line.items()
            if key not in ABOUT and isinstance(value, int | float)
        }
        for name, tracker in list(self.open.items()):
            with self._or_give_up(name):
                tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        """End the runs, but not those of a stage that fails: their libraries mark them as failed
        when the process ends.
        """
        failed = sys.exc_info()[0] is not None
        for name, tracker in () if failed else list((self.open or {}).items()):
            with self._or_give_up(name):
                tracker.finish()
        self.open = {}

    @contextmanager
    def _or_give_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever its library raises
            say(
                f"{label(self.job)}: WARNING: {name} gets nothing more of this stage:"
                f" {mask_secrets(first_line(error))}; metrics.jsonl has everything"
            )
            (self.open or {}).pop(name, None)


def open_tracker(job: Job, name: str, after: int) -> Any:
    """The run of a stage in one service. A stage that began anew tells it its settings."""
    if name == "wandb":
        # Before the import, which reads it: its reports about itself.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = make_folder(job.run / FOLDER)
    kind, project = LOGGER_TYPE_TO_CLASS[name], job.plan.name
    options: dict[str, Any] = {}
    if kind.requires_logging_directory:
        options["logging_dir"] = str(folder / name)
    if name == "tensorboard":
        # What a killed attempt wrote behind its checkpoint is hidden: it is trained again.
        project, options["purge_step"] = job.entry.name, after + 1
    elif name == "wandb":
        project = os.environ.get("WANDB_PROJECT") or project
        options |= wandb_options(job, after)
    tracker = kind(project, **options)
    tracker.start()
    if not after:
        tracker.store_init_configuration(stage_settings(job))
        where = shown_path(folder / name) if (folder / name).is_dir() else f"project {project}"
        say(f"{label(job)}: {name} gets the numbers, too: {where}")
    return tracker


def wandb_options(job: Job, after: int) -> dict[str, Any]:
    """Of wandb's run, which a resumed stage goes on in, sent as it goes or kept in the run folder
    (WANDB_MODE=offline).

    Nothing is sent but the numbers and the stage's settings: no code, no output, no packages,
    nothing of the machine.
    """
    import wandb  # type: ignore[import-not-found, unused-ignore]

    kept = job.run / FOLDER / f"{job.entry.name}.json"
    identity = (read_json(kept) or {}).get("wandb") if after else None
    if identity is None:
        identity = secrets.token_hex(4)
        write_json(kept, {"wandb": identity})
    settings = wandb.Settings(
        silent=True, console="off", host="", disable_git=True, disable_code=True,
        save_code=False, disable_job_creation=True, x_disable_stats=True, x_disable_meta=True,
        x_disable_machine_info=True, x_save_requirements=False,
        x_transaction_log_flush_interval=1.0, init_timeout=START_S,
        # Else a lost network would hold a GPU until it is back.
        finish_timeout=END_S, finish_timeout_raises=True,
    )  # fmt: skip
    return {
        "group": os.environ.get("WANDB_RUN_GROUP") or job.run.name,
        "name": f"{job.run.name}-{job.entry.name}",
        "id": identity,
        "resume": "allow",
        "dir": str(kept.parent),
        "settings": settings,
    }


def stage_settings(job: Job) -> dict[str, Any]:
    """What a tracker may know of the stage: its settings, and the model's name. A plan holds no
    secrets; the data is not named, and of a model in a folder the folder's name alone.
    """
    alone = replace(job.plan, stages=(job.stage,), tasks=(), origin=Origin())
    keys = {**plan_data(alone)["stages"][0], **job.options}
    model = path_from(job.folder, job.plan.model)
    found = {
        "plan": job.plan.name,
        "stage": job.stage.name,
        "task": job.task,
        "model": model.name if model.exists() else job.plan.model,
        "world_size": process_count(),
        "advise": __version__,
        **{key: value for key, value in keys.items() if key not in NOT_SHOWN},
    }
    # Trackers take plain values: what has parts is written as JSON.
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value, default=str)
        for key, value in found.items()
        if value is not None
    }
