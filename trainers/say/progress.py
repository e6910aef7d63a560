"""What a stage tells a person beside its progress; and metrics.jsonl, a line for each logged step,
kept in step with the checkpoints.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from advisor.ground.files import DISK, Disk, cannot_write, write_atomically
from advisor.ground.progress import Wait, board
from advisor.ground.terminal import shown
from advisor.record.stage import Times
from trainers.job.files import json_value
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process


def say(text: str) -> None:
    """Print a message on stderr. Nobody may be there any more: a terminal that was closed ends no
    step before it is saved.
    """
    with suppress(OSError):
        print(shown(text), file=sys.stderr, flush=True)


def tell(job: Job, line: str | None) -> None:
    """Print the line under the stage's name, in the main process alone; nothing without one."""
    if line and is_main_process():
        say(f"{label(job)}: {line}")


LOAD, BEFORE, TRAIN, AFTER = "load_s", "before_s", "train_s", "after_s"
SAID = {
    LOAD: "loading rows and model",
    BEFORE: "measuring the model before training",
    AFTER: "saving, checking and measuring the result",
}
# What is said where several processes train and one of its own judges.
SAVING_ALONE, JUDGING_ALONE = "saving the result", "checking and measuring the result"


class Parts:
    """Which part a stage is in, since when, and how long the others took.

    Args:
        label: What messages call the stage.
        shown: Whether this process says where it is. The steps are a wait of their own.
        folder: The run folder, for those who follow it.
    """

    def __init__(self, label: str, *, shown: bool, folder: Path | None = None) -> None:
        board.is_shown, board.label, board.folder = shown, label, folder
        self.label, self.shown = label, shown
        self.took_s: dict[str, float] = {}
        self.part, self.began_s = "", time.monotonic()
        self.wait: Wait | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        if self.wait is not None:
            board.close(self.wait)
            self.wait = None

    def begin(self, part: str, *, text: str | None = None) -> None:
        """The part before ends here.

        Args:
            part: One of those above.
            text: What is said of it; default: the usual.
        """
        self._end()
        self.close()
        self.part = part
        text = text or SAID.get(part)
        if self.shown and text is not None:
            say(f"{self.label}: {text}")
            self.wait = board.open(text)

    def _end(self) -> None:
        now_s = time.monotonic()
        if self.part:
            self.took_s[self.part] = self.took_s.get(self.part, 0.0) + now_s - self.began_s
        self.began_s = now_s

    def add(self, seconds: Mapping[str, float]) -> None:
        """What earlier attempts took, by part."""
        for part, took_s in seconds.items():
            self.took_s[part] = self.took_s.get(part, 0.0) + took_s

    def times(self) -> Times:
        """What every part took, the one at work so far."""
        self._end()
        took_s: dict[str, Any] = {part: round(s, 3) for part, s in self.took_s.items()}
        return Times(total_s=round(sum(took_s.values()), 3), **took_s)


def watch_tokens(wait: Wait, *, width: int, limit: int) -> Callable[[Any, Any], Any]:
    """A logits processor that shows how long the answers are that are generated together, and
    changes no logits; nothing is read from the device.

    Args:
        wait: For the answers.
        width: Tokens of the prompts, with their padding; 1 for a decoder of its own.
        limit: The longest answer, in tokens.
    """

    def look(ids_BS: Any, logits_BV: Any) -> Any:
        wait.at(text=f"token {ids_BS.shape[1] - width:,} of at most {limit:,}")
        return logits_BV

    return look


# --------------------------------------------------------------------------- metrics.jsonl

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


def cut_metrics(path: Path, *, stage: str, task: str | None, after: int, disk: Disk = DISK) -> int:
    """Remove the lines of this stage after a step, which a resumed run writes again, and those that
    cannot be read; how many these were.
    """
    if not path.is_file():
        return 0
    kept, dropped = [], 0
    lines = DISK.read(path).split(b"\n")
    for line in lines[:-1]:  # behind the last end of a line: what a killed process did not finish
        record = metrics_line(line)
        if record is None:
            dropped += bool(line.strip())
        elif record["step"] <= after or not _is_of(record, stage, task):
            kept.append(line + b"\n")
    write_atomically(path, b"".join(kept), disk=disk)
    return dropped


def stage_lines(path: Path, *, stage: str, task: str | None) -> list[dict[str, Any]]:
    """The lines of a stage in metrics.jsonl, those of earlier attempts included."""
    lines = DISK.read(path).split(b"\n") if path.is_file() else []
    found = filter(None, map(metrics_line, lines))
    return [record for record in found if _is_of(record, stage, task)]


def _is_of(record: Mapping[str, Any], stage: str, task: str | None) -> bool:
    return (record.get("stage"), record.get("task")) == (stage, task)


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is none, such as one that a disk has damaged."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if isinstance(record.get("loss"), int | float | None) else None
