"""Where a stage goes on: its checkpoints with what they depend on, the one to resume from, and the
lines of metrics.jsonl that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from advisor.ground.version import __version__
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore, fingerprint
from trainers.keep.checkpoints import random_state_files
from trainers.keep.depends_on import dependencies
from trainers.rows import Prepared
from trainers.rows.prepared import rows_digest
from trainers.say.metrics_file import cut_metrics, last_elapsed_s, unreadable_lines
from trainers.say.progress import say


def last_checkpoint(job: Job, store: CheckpointStore) -> tuple[Path, Mapping[str, Any]] | None:
    """(the checkpoint to resume from, its record); None if there is none. Says what is wrong with
    those that are not used.

    The main process looks first and moves damaged ones aside; the others look at what is left, so
    that all take the same one. Call it once the processes are connected.
    """

    def said(line: str) -> None:
        say(f"{label(job)}: {line}")

    shown, found = is_main_process(), None
    if shown:
        found = store.newest(said, requires=random_state_files)
    wait_for_all()
    if not shown:
        found = store.newest(repair=False)
    return None if found is None else (found.path, found.record)


def open_store(
    job: Job,
    versions: Mapping[str, str],
    *,
    steps: int,
    rows: str,
    model: Any = None,
    more: Mapping[str, str] | None = None,
    processes: int | None = None,
) -> CheckpointStore:
    """The stage's checkpoints, with what they depend on.

    Args:
        versions: Of the libraries.
        steps: Optimizer steps of the whole stage.
        rows: A digest of the rows that are trained on.
        model: The loaded model, whose config knows its commit on the hub.
        more: Further parts that they depend on, by name.
        processes: How many train the stage; default: those of this run.
    """
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    parts = dependencies(job, steps=steps, rows=rows, commit=commit, more=more, processes=processes)
    versions = {**versions, "advise": __version__}
    return CheckpointStore(job.checkpoints, parts, versions, job.run / "metrics.jsonl")


def evaluated(store: CheckpointStore, data: Prepared[Any]) -> str:
    """A digest of what an evaluation of the base depends on."""
    return fingerprint([store.digest, rows_digest(data.holdout)])


class _Of(TypedDict):
    """Whose lines."""

    stage: str
    task: str | None


def resume_metrics(
    job: Job, resume: tuple[Any, Mapping[str, Any]] | None, steps: int
) -> tuple[list[float], float]:
    """(the losses of the steps before the checkpoint, whose lines stay in metrics.jsonl, the clock
    at the last of them, in seconds of training); says where training resumes.
    """
    after = resume[1]["step"] if resume is not None else 0
    path, of_stage = job.run / "metrics.jsonl", _Of(stage=job.stage.name, task=job.task)
    losses, dropped = cut_metrics(path, **of_stage, after=after)
    if dropped:
        say(f"{label(job)}: {unreadable_lines(dropped)}")
    if resume is None:
        return [], 0.0
    record = resume[1]
    say(
        f"{label(job)}: resuming after step {record['step']} of {steps}, learning rate"
        f" {record['learning_rate']:.3g}, {record['epoch']:.2f} times through the data"
    )
    return losses, last_elapsed_s(path, **of_stage)
