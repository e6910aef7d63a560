"""metrics.jsonl: a line for each logged step of every stage, kept in step with the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.ground.files import DISK, Disk, cannot_write, write_atomically
from trainers.job.files import json_value

# A log of TRL's trainers -> its name here, where it is not the same with _ for /.
RENAMED = {"sampling/sampling_logp_difference/mean": "engine_mismatch"}


def metric_name(log: str) -> str:
    """What metrics.jsonl calls a log of TRL's trainers.

    `rewards/NAME/mean` keeps its name: NAME is the user's own.
    """
    if log.startswith("rewards/") and log.count("/") > 1:
        return log
    return RENAMED.get(log) or log.replace("rewards/", "reward_").replace("/", "_")


def append_line(path: Path, line: Mapping[str, Any], *, disk: Disk = DISK) -> None:
    """Append a line. Raises MachineNotReady if the disk does not take it."""
    try:
        disk.append(path, (json.dumps(json_value(line)) + "\n").encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def cut_metrics(
    path: Path, *, stage: str, task: str | None, after: int, disk: Disk = DISK
) -> tuple[list[float], int]:
    """Remove the lines of this stage after a step, which a resumed run writes again, and those that
    cannot be read; (the losses that remain, how many could not be read).
    """
    if not path.is_file():
        return [], 0
    kept, losses, dropped = [], [], 0
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:  # behind the last end of a line: what a killed process did not finish
        record = metrics_line(line)
        if record is None:
            dropped += bool(line.strip())
            continue
        mine = record.get("stage") == stage and record.get("task") == task
        if mine and record["step"] > after:
            continue
        if mine and "loss" in record:
            losses.append(record["loss"])
        kept.append(line + b"\n")
    write_atomically(path, b"".join(kept), disk=disk)
    return losses, dropped


def last_elapsed_s(path: Path, *, stage: str, task: str | None) -> float:
    """The clock at the last line of a stage, in seconds of training; 0 if there is none."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line in reversed(lines):
        record = metrics_line(line)
        if record is not None and (record.get("stage"), record.get("task")) == (stage, task):
            elapsed_s = record.get("elapsed_s")
            return float(elapsed_s) if isinstance(elapsed_s, int | float) else 0.0
    return 0.0


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is none, such as one that a disk has damaged."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if isinstance(record.get("loss"), int | float | None) else None


def unreadable_lines(count: int) -> str:
    """What to say of lines that were dropped."""
    lines = "a line" if count == 1 else f"{count:,} lines"
    return f"metrics.jsonl held {lines} that could not be read: dropped, training is not affected"
