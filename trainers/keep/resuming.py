"""Where a stage goes on: its checkpoints with what they depend on, the one to resume from, and the
lines of metrics.jsonl that stay.

Checkpoints depend on content, part by part: a project that was moved changes nothing, other weights
in the same file do. Versions of libraries are no part: after an upgrade the checkpoints are used,
and a message says so. Nor is how an optimizer step is cut into micro-batches, by one process or
several: its rows are the same, unless they are grouped by length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import asdict, replace

from advisor.ground.errors import InputError
from advisor.methods.stage import stage_keys
from advisor.plan.entries import path_from, stage_paths
from advisor.record.content import file_digest, folder_digest
from advisor.record.files import read_record
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.keep.checkpoint_store import Checkpoint, CheckpointStore, Dependencies
from trainers.say.progress import cut_metrics, stage_lines, tell
from trainers.step.sharding import from_main, is_sharded

# Keys of the stage that change no number of a run beyond rounding, or are parts of their own.
LEFT_OUT = {"options", *(name for name, key in stage_keys().items() if not key.uses.result)}


def dependencies(
    job: Job,
    parts: Mapping[str, str],
    *,
    steps: int,
    model: Any = None,
    processes: int | None = None,
) -> Dependencies:
    """Everything that a checkpoint of the stage goes on from.

    Raises InputError or MachineNotReady if a file of it cannot be read.

    Args:
        parts: Digests by name: of the rows, and of what the objective depends on.
        steps: Optimizer steps of the whole stage.
        model: The loaded model, whose config knows its commit on the hub.
        processes: How many train the stage; default: those of this run. What judges is one.
    """
    processes = processes or process_count()
    stage = job.entry.stage
    settings = {
        # As planned: what `auto` takes may change with a package that is installed meanwhile.
        **{key: value for key, value in asdict(stage).items() if key not in LEFT_OUT},
        **job.options,
        # On all processes together: their number may change between two attempts.
        "effective_batch_size": job.stage.effective_batch_size * processes,
        "steps": steps,
        "template": job.plan.template,
    }
    # Which of the rows share a step depends on the micro-batch if they are grouped by length. Else
    # the keys are left out, so that checkpoints from before they were there still count.
    if stage.group_by_length and not stage.packing:
        settings |= {"group_by_length": True, "micro_batch_size": stage.micro_batch_size}
    parts = {"base_model": _base(job, model), **_files(job), **parts}
    if job.start is not None:
        parts["start"] = folder_digest(job.start)
    return Dependencies(
        parts={name: digest[:16] for name, digest in parts.items()},
        settings=settings,
        processes=processes,
        divided=is_sharded(job),
    )


def _base(job: Job, model: Any) -> str:
    """A digest of the base model's files; of its name and commit if it is one of the hub."""
    source = job.base_model
    if not Path(source).is_dir():
        commit = getattr(getattr(model, "config", None), "_commit_hash", None)
        return hashlib.sha256(f"{source}@{commit or job.plan.revision}".encode()).hexdigest()
    try:
        record = read_record(job.run)  # what the launcher has read just now is not read again
    except InputError:
        record = None
    return folder_digest(source, record.input_files.get("model") if record is not None else None)


def _files(job: Job) -> dict[str, str]:
    """Path that a key of the objective or update names -> a digest of what lies there."""
    found = {}
    for text in stage_paths(job.plan, replace(job.entry.stage, start_from=None)):
        path = path_from(job.folder, text)
        if path.exists():
            found[text] = folder_digest(path) if path.is_dir() else file_digest(path)
    return found


# --------------------------------------------------------------------------- the stage's own


def last_checkpoint(job: Job, store: CheckpointStore) -> Checkpoint | None:
    """The checkpoint to resume from. Says what is wrong with those that are not used.

    The main process looks, and all take what it finds. Call it once the processes are connected.
    """
    found = store.newest(lambda line: tell(job, line)) if is_main_process() else None
    wait_for_all()  # on the host, and for long: whole checkpoints are read
    return from_main(lambda: found) if process_count() > 1 else found


def resume_metrics(job: Job, resume: Checkpoint | None, steps: int) -> tuple[list[float], float]:
    """(the losses of the steps before the checkpoint, whose lines stay in metrics.jsonl, the clock
    at the last of them, in seconds of training); says where training resumes.
    """
    path, stage = job.run / "metrics.jsonl", job.stage.name
    after = 0 if resume is None else resume.step
    if dropped := cut_metrics(path, stage=stage, task=job.task, after=after):
        lines = "a line" if dropped == 1 else f"{dropped:,} lines"
        lost = "that could not be read: dropped, training is not affected"
        tell(job, f"metrics.jsonl held {lines} {lost}")
    if resume is None:
        return [], 0.0
    record = resume.record
    tell(
        job,
        f"resuming after step {resume.step} of {steps}, learning rate"
        f" {record['learning_rate']:.3g}, {record['epoch']:.2f} times through the data",
    )
    kept = stage_lines(path, stage=stage, task=job.task)
    elapsed_s = kept[-1].get("elapsed_s") if kept else None
    return [line["loss"] for line in kept if "loss" in line], float(elapsed_s or 0.0)
