"""The folder of one run: who may use it, and how far the run is that is at work there.

A kernel lock (flock) keeps a second run out. The child processes inherit it: it is held as long as
any process of the run is alive, and the kernel releases it when the last one ends, however that
happens. So there is never a stale lock.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.ground.files import ELSEWHERE, TEMPORARY, cannot_write, text_of
from advisor.ground.progress import View, Wait, read_view
from advisor.record.files import read_record
from advisor.record.run import DONE, DRY_RUN, METRICS, RECORD, RUNNING, RunRecord, StageRecord

LOCK = ".lock"
MACHINES = ".machines"  # what each of several has to say
LOCK_WAIT_S = 10.0  # the children of a killed run need a moment to end


def now() -> str:
    """The time as text: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_done(record: RunRecord | None, name: str, folder: Path) -> bool:
    """Whether a stage is recorded as done and its result is still in its folder."""
    stage = record.stage(name) if record is not None else None
    return stage is not None and stage.status == DONE and has_result(folder / "stages" / name)


def has_result(folder: Path) -> bool:
    """Whether a stage's folder holds a trained module or model."""
    return any(folder.glob("*.safetensors"))


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    import fcntl

    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:  # shared, so that two who look do not take each other for a run
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def process_of(folder: Path) -> int | None:
    """The process that locked a run folder; None if it is gone, or on another machine."""
    process, host = _holder(folder)
    if process is None or host not in ("", socket.gethostname()):
        return None
    if process < 1:  # these mean groups of processes, which nobody may be told to kill
        return None
    try:
        os.kill(process, 0)
    except PermissionError:
        return process
    except (OSError, OverflowError):
        return None
    return process


def _holder(folder: Path) -> tuple[int | None, str]:
    """(process, machine) as the lock's file says; an empty name in one of an earlier version."""
    try:
        words = text_of(folder / LOCK).split()
        return int(words[0]), words[1] if len(words) > 1 else ""
    except (OSError, ValueError, IndexError):
        return None, ""


def refuse_links_out(folder: Path) -> None:
    """Raises InputError with each folder inside a run folder that leads out of it: a run writes,
    renames and deletes there. The run folder itself may be a link.
    """
    inside = [*folder.glob("*"), *folder.glob("stages/*"), *folder.glob("stages/*/*")]
    home = folder.resolve()
    faults = [
        Fault(
            where=str(path),
            what=f"is a link to {path.resolve()}, outside of the run folder",
            hint="put a folder in its place, or choose another run folder with --output DIR",
        )
        for path in inside
        if path.is_symlink() and path.is_dir() and not path.resolve().is_relative_to(home)
    ]
    if faults:
        raise InputError(faults=faults)


class RunFolder:
    """A run folder while this process holds its lock. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = False
        self.lock_fd = -1

    def __enter__(self) -> RunFolder:
        try:
            self.made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_links_out(self.path)
            self._lock()
            self._remove_leftovers()
        except OSError as error:
            raise cannot_write(self.path, error, way_out=ELSEWHERE) from error
        return self

    def _remove_leftovers(self) -> None:
        """Remove what a killed run had begun to write; nobody else works here any more.

        The folders of checkpoints are the trainers' own.
        """
        for folder in ("", "prepared/", "stages/*/"):
            for leftover in list(self.path.glob(f"{folder}{TEMPORARY}*")):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)

    def _lock(self) -> None:
        import fcntl

        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path / LOCK, flags, 0o644)
            if not stat.S_ISREG(os.fstat(fd).st_mode):  # reading a pipe waits for whoever writes
                os.close(fd)
                at = str(self.path / LOCK)
                raise InputError("is not a regular file", where=at, hint="remove it")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                process = process_of(self.path)
                if time.monotonic() > deadline or process is not None:
                    number, host = _holder(self.path)
                    who = f" (process {process})" if process is not None else ""
                    if number is not None and host not in ("", socket.gethostname()):
                        who = f" (process {number} on {host})"
                    raise MachineNotReady(
                        f"another `advise run` is working in this folder{who}",
                        where=str(self.path),
                        hint="wait for it, stop it, or choose another folder with --output DIR",
                    ) from None
                time.sleep(0.1)
                continue
            except OSError as error:
                os.close(fd)
                raise MachineNotReady(
                    f"this file system cannot lock files ({error.strerror})",
                    where=str(self.path),
                    hint="choose a folder on a local disk with --output DIR; for several machines,"
                    " one on a shared disk that is mounted with locks (Lustre: flock)",
                ) from None
            try:  # the folder may have been deleted and made again in between
                if os.fstat(fd).st_ino == os.stat(self.path / LOCK).st_ino:
                    break
            except FileNotFoundError:
                pass
            os.close(fd)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()} {socket.gethostname()}\n".encode())
        self.lock_fd = fd

    def __exit__(self, *_: object) -> None:
        if self.made and not (self.path / RECORD).exists() and not (self.path / DRY_RUN).exists():
            (self.path / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # an empty folder goes; one that is not empty stays
                self.path.rmdir()
        os.close(self.lock_fd)


STEPS = ("steps", "updates")  # units of the waits that count the steps of a stage
TAIL_BYTES = 2**16


class RunIsLive(MachineNotReady):
    """The run that was asked for is at work already."""

    def __init__(self, folder: Path, process: int) -> None:
        self.folder, self.process = folder, process
        super().__init__(
            f"this run is at work already (process {process})",
            where=str(folder),
            hint=f"`advise run {shlex.quote(str(folder))}` shows how far it is; to stop it, with"
            f" its last step saved: kill {process}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRun:
    """How far a run is that another process is working on."""

    folder: Path
    process: int
    record: RunRecord
    view: View | None  # what the trainer says of itself; None: nothing

    @property
    def stage(self) -> StageRecord | None:
        """The stage at work; None: none is."""
        return next((one for one in self.record.stages if one.status == RUNNING), None)

    @property
    def _wait(self) -> Wait | None:
        waits = self.view.waits if self.view is not None else ()
        return next((wait for wait in waits if wait.unit in STEPS), None)

    @property
    def steps(self) -> tuple[int | None, int | None]:
        """(steps of the stage that are done, all of them), as far as they are known."""
        if self._wait is not None:
            return self._wait.done, self._wait.total
        stage = self.stage
        return last_step(self.folder, stage.plan_stage, stage.task) if stage else (None, None)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step of the stage; None if that is not known."""
        return self._wait.seconds_left(self.view.now_s) if self._wait and self.view else None

    @property
    def sentence(self) -> str:
        """'stage sft (1 of 2): training: 12 of 108 steps, ...'."""
        step, total = self.steps
        said = self.view.line(named=False) if self.view is not None else ""
        if self.stage is None:
            return said or "between two stages"
        done = sum(stage.status == DONE for stage in self.record.stages)
        at = f"stage {self.stage.name} ({done + 1} of {len(self.record.stages)})"
        return f"{at}: {said or (f'step {step} of {total}' if step else 'it has just begun')}"

    def to_dict(self) -> dict[str, Any]:
        """The `progress` of a run as JSON."""
        used, limit = (self.view.memory if self.view is not None else None) or (None, None)
        step, total = self.steps
        return {
            "process": self.process,
            "stage": self.stage.name if self.stage is not None else None,
            "doing": [wait.what for wait in self.view.waits] if self.view is not None else [],
            "step": step,
            "total": total,
            "eta_s": self.eta_s,
            "memory_bytes": used,
            "memory_limit_bytes": limit,
            "text": self.sentence,
        }


def _live_process(folder: Path) -> int | None:
    return process_of(folder) if is_locked(folder) else None


def refuse_live(folder: Path) -> None:
    """Raise RunIsLive if a process that is alive works in the folder."""
    if (process := _live_process(folder)) is not None:
        raise RunIsLive(folder, process)


def read_live(folder: Path) -> LiveRun | None:
    """How far the run is; None if nobody works on it any more."""
    process = _live_process(folder)
    record = read_record(folder) if process is not None else None
    if process is None or record is None:
        return None
    return LiveRun(folder=folder, process=process, record=record, view=read_view(folder))


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
