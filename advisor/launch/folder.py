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
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.ground.errors import MachineNotReady
from advisor.ground.files import ELSEWHERE, TEMPORARY, cannot_write, open_regular, text_of
from advisor.ground.progress import View, read_view
from advisor.record.files import read_record, refuse_links_out
from advisor.record.run import DONE, DRY_RUN, METRICS, RECORD, RUNNING, RunRecord, StageRecord

LOCK = ".lock"
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


def is_untrained(folder: Path) -> bool:
    """Whether a run has saved nothing yet, no checkpoint either."""
    return not any(folder.glob("stages/**/*.safetensors"))


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    import fcntl

    try:
        fd = _open_lock(folder, os.O_RDONLY)
    except OSError:
        return False
    try:  # shared, so that two who look do not take each other for a run
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(fd)
    return False


def _open_lock(folder: Path, flags: int) -> int:
    return os.open(folder / LOCK, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def process_of(folder: Path) -> int | None:
    """The process that locked a run folder; None if it is gone, or on another machine."""
    process, host = holder(folder)
    if process < 1 or host not in ("", socket.gethostname()):
        return None
    try:
        os.kill(process, 0)
    except PermissionError:
        return process
    except (OSError, OverflowError):
        return None
    return process


def holder(folder: Path) -> tuple[int, str]:
    """(process, machine) as the lock's file says; (0, '') if it says nothing."""
    try:
        process, *host = text_of(folder / LOCK).split()
        return int(process), "".join(host)
    except (OSError, ValueError):
        return 0, ""


class RunFolder:
    """A run folder while this process holds its lock. Use it as a context manager."""

    def __init__(self, path: Path, *, if_taken: str = "") -> None:
        self.path = path
        self.if_taken = if_taken or (
            "wait for it, stop it, or choose another folder with --output DIR"
        )
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
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while (fd := self._try_to_lock()) is None:
            process, host = holder(self.path)
            if time.monotonic() > deadline_s or process_of(self.path) is not None:
                on = "" if host in ("", socket.gethostname()) else f" on {host}"
                who = f" (process {process}{on})" if process_of(self.path) or on else ""
                raise MachineNotReady(
                    f"another `advise run` is working in this folder{who}",
                    where=str(self.path),
                    hint=self.if_taken,
                )
            time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()} {socket.gethostname()}\n".encode())
        self.lock_fd = fd

    def _try_to_lock(self) -> int | None:
        """The locked file; None if another process has it. Raises OSError."""
        import fcntl

        path = self.path / LOCK
        fd = _open_lock(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been deleted and made again in between.
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            os.close(fd)
            raise MachineNotReady(
                f"this file system cannot lock files ({error.strerror})",
                where=str(self.path),
                hint="choose a folder on a local disk with --output DIR; for several machines, one"
                " on a shared disk that is mounted with locks (Lustre: flock)",
            ) from None
        os.close(fd)
        return None

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


class LiveRun(Struct, frozen=True, kw_only=True):
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
    def sentence(self) -> str:
        """'stage sft (1 of 2): training: 12 of 108 steps, ...'."""
        said = self.view.line(named=False) if self.view is not None else ""
        if self.stage is None:
            return said or "between two stages"
        done = sum(stage.status == DONE for stage in self.record.stages)
        at = f"stage {self.stage.name} ({done + 1} of {len(self.record.stages)})"
        return f"{at}: {said or 'it has just begun'}"

    def to_dict(self) -> dict[str, Any]:
        """The `progress` of a run as JSON."""
        view, used, limit = self.view, None, None
        waits = view.waits if view is not None else ()
        steps = next((wait for wait in waits if wait.unit in STEPS), None)
        if view is not None and view.memory is not None:
            used, limit = view.memory
        return {
            "process": self.process,
            "stage": self.stage.name if self.stage is not None else None,
            "doing": [wait.what for wait in waits],
            "step": steps.done if steps else None,
            "total": steps.total if steps else None,
            "eta_s": steps.seconds_left(view.now_s) if steps and view else None,
            "memory_bytes": used,
            "memory_limit_bytes": limit,
            "text": self.sentence,
        }


def refuse_live(folder: Path) -> None:
    """Raise RunIsLive if a process that is alive works in the folder."""
    if is_locked(folder) and (process := process_of(folder)) is not None:
        raise RunIsLive(folder, process)


def read_live(folder: Path) -> LiveRun | None:
    """How far the run is; None if nobody works on it any more."""
    process = process_of(folder) if is_locked(folder) else None
    record = read_record(folder) if process is not None else None
    if process is None or record is None:
        return None
    return LiveRun(folder=folder, process=process, record=record, view=read_view(folder))


def last_logged(folder: Path, stage: str, task: str | None) -> dict[str, Any] | None:
    """What was logged last of a stage, by the end of metrics.jsonl; None: nothing was."""
    try:
        with open_regular(folder / METRICS) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = [metrics_line(line) for line in file.read().split(b"\n")]
    except OSError:
        return None
    own = [one for one in lines if one and (one.get("stage"), one.get("task")) == (stage, task)]
    return own[-1] if own else None


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is none, such as one that is being written."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            return found
    return None
