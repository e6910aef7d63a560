"""What the checkpoints of a stage depend on, part by part and by content: a folder that was moved
or renamed changes nothing, other weights in the same file do.

Versions of libraries are no part: after an upgrade the checkpoints are used, and a message says so.
Nor is how an optimizer step is cut into micro-batches, by one process or several: its rows are the
same, unless they are grouped by length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from advisor.ground.content import KnownFiles, file_digest, folder_digest
from advisor.ground.errors import InputError
from advisor.ground.shape import Keys, ListOf, Shape
from advisor.methods.keys import FunctionText, PathText
from advisor.plan.keys import key_specs
from advisor.plan.record_files import read_record
from trainers.frame.checkpoint_store import Dependencies
from trainers.frame.job import Job
from trainers.frame.machine import process_count
from trainers.frame.sharding import is_sharded

# Keys of the stage that change no number of a run beyond rounding, or whose files are parts of
# their own.
LEFT_OUT = (
    "name",
    "data",
    "start_from",
    "micro_batch_size",
    "grad_accum",
    "save_steps",
    "save_minutes",
    "kernels",
    "compile",
    "options",
    "group_by_length",
)


def dependencies(
    job: Job,
    *,
    steps: int,
    rows: str,
    commit: str | None = None,
    more: Mapping[str, str] | None = None,
    processes: int | None = None,
) -> Dependencies:
    """Everything that a checkpoint of the stage goes on from.

    Raises InputError or MachineNotReady if a file of it cannot be read.

    Args:
        steps: Optimizer steps of the whole stage.
        rows: A digest of the rows that are trained on.
        commit: Of a base model from the hub; None: a folder, or not known.
        more: Further parts, by name: digests of what the objective depends on.
        processes: How many train the stage; default: those of this run. What judges is one.
    """
    processes = processes or process_count()
    options, files = _options(job)
    settings = {
        # As planned: what `auto` takes may change with a package that is installed meanwhile.
        **{key: value for key, value in asdict(job.entry.stage).items() if key not in LEFT_OUT},
        **_grouping(job),
        **options,
        # On all processes together: their number may change between two attempts.
        "effective_batch_size": job.stage.effective_batch_size * processes,
        "steps": steps,
        "template": job.plan.template,
    }
    parts = {"base_model": _base(job, commit), "rows": rows, **files, **(more or {})}
    if job.start is not None:
        parts["start"] = folder_digest(job.start).digest
    return Dependencies(
        parts={name: digest[:16] for name, digest in parts.items()},
        settings=settings,
        processes=processes,
        divided=is_sharded(job),
    )


def _grouping(job: Job) -> dict[str, Any]:
    """With rows grouped by length, which of them share a step depends on the micro-batch; without,
    nothing, so that checkpoints from before the key was there still count.
    """
    if not job.stage.group_by_length or job.stage.packing:
        return {}
    return {"group_by_length": True, "micro_batch_size": job.stage.micro_batch_size}


def _base(job: Job, commit: str | None) -> str:
    """A digest of the base model's files; of its name and commit if it is one of the hub."""
    source = job.base_model
    if Path(source).is_dir():
        return folder_digest(source, known=_known(job)).digest
    return hashlib.sha256(f"{source}@{commit or job.plan.revision}".encode()).hexdigest()


def _known(job: Job) -> KnownFiles | None:
    """What the launcher has read of the base model just now, so that it is not read again."""
    try:
        record = read_record(job.run)
    except InputError:
        return None
    return record.known_files if record is not None else None


def _options(job: Job) -> tuple[dict[str, Any], dict[str, str]]:
    """(the keys of objective and update without the paths in them, name of such a key -> a digest
    of what its file or folder holds).
    """
    declared = key_specs().allowed(job.stage.objective, job.stage.update)
    options: dict[str, Any] = dict(job.options)
    files: dict[str, str] = {}
    for key, value in job.options.items():
        shape = declared[key].shape if key in declared else None
        options[key] = _without_paths(job, key, value, shape, files)
    return options, files


def _without_paths(
    job: Job, name: str, value: Any, shape: Shape | None, files: dict[str, str]
) -> Any:
    """A value without the paths in it, whose contents go into `files`: name -> digest.

    Args:
        name: Of the value: `reward`, `rewards[0].reward`.
    """
    if isinstance(shape, ListOf) and isinstance(value, list):
        return [
            _without_paths(job, f"{name}[{place}]", part, shape.of, files)
            for place, part in enumerate(value)
        ]
    if isinstance(shape, Keys) and isinstance(value, dict):
        return {
            key: _without_paths(job, f"{name}.{key}", part, shape.keys.get(key), files)
            for key, part in value.items()
        }
    if not isinstance(shape, PathText | FunctionText) or not isinstance(value, str):
        return value
    text, function = value.rpartition(":")[::2] if isinstance(shape, FunctionText) else (value, "")
    path = job.folder / Path(text).expanduser()
    if text in {stage.name for stage in job.plan.stages} or not path.exists():
        return value
    files[name] = folder_digest(path).digest if path.is_dir() else file_digest(path).sha256
    return function
