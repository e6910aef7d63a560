"""The folder of one run: who may use it, what it already holds, and its run.json.

A kernel lock (flock) keeps a second run out. The child processes inherit it, so it holds while
anything of the run is alive and is gone by itself when everything is, however it ended: no stale
lock can exist.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import ELSEWHERE, TEMPORARY, cannot_write, write_atomically

SCHEMA_VERSION = 1
LOCK, RECORD, DRY_RUN, PLAN = ".lock", "run.json", "dry_run.json", "plan.yaml"
# May lie in a folder that no run has begun in: what `advise` itself leaves there before a run.
BEFORE_A_RUN = {LOCK, DRY_RUN, PLAN}
LOCK_WAIT_S = 10.0  # children of a killed run need a moment to end


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What came of a plan: the folder with everything, and run.json (or dry_run.json) as a
    value.
    """

    folder: Path
    record: Mapping[str, Any]
    dry_run: bool = False
    already_done: bool = False  # it had been finished before, and nothing was done now

    @property
    def exit_code(self) -> int:
        """0: whatever went wrong has been raised instead."""
        return 0

    @property
    def status(self) -> str:
        return str(self.record.get("status", "done"))


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two runs the same run."""

    digests: frozenset[
        str
    ]  # of the plan as given, and of its copy in the folder with absolute paths
    max_steps: int | None
    tasks: Mapping[str, str] = field(
        default_factory=dict
    )  # name -> digest: a run may gain tasks, the others stay trained


def now() -> str:
    """The time as text: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_record(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder, or None where there is none.

    Raises InputError where it is not one of ours.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a run: {error}",
            hint="choose another folder with --output DIR, or delete this one",
        ) from None
    if (
        not isinstance(record, dict)
        or record.get("schema_version") != SCHEMA_VERSION
        or not isinstance(record.get("stages"), list)
    ):
        raise InputError(
            f"{path}: not a run.json of this version of advise",
            hint="choose another folder with --output DIR, or delete this one",
        )
    return record


def lock_holder(folder: Path, identity: Identity) -> dict[str, Any] | None:
    """The record of this very run in the folder, or None where it is free.

    Raises InputError where something else is there.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is a file, a folder is needed for the run",
            hint="choose another one with --output DIR",
        )
    try:
        record = read_record(folder)
        names = sorted(
            entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY)
        )
    except PermissionError as error:
        raise cannot_write(folder, error, way_out=ELSEWHERE) from None
    if record is None:
        foreign = [name for name in names if name not in BEFORE_A_RUN]
        if foreign:
            shown = ", ".join(foreign[:3]) + (
                f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            )
            raise InputError(
                f"{folder}: holds other files ({shown})",
                "an empty or new folder",
                "choose another one with --output DIR",
            )
        return None
    trained = record.get("tasks") or {}
    other = [name for name, digest in trained.items() if identity.tasks.get(name) != digest]
    if (
        identity.tasks
        and trained
        and other
        and identity.digests & set(record.get("digests", {}).values())
    ):
        raise InputError(
            f"{folder}: holds other tasks: {', '.join(other)} {'is' if len(other) == 1 else 'are'}"
            " not in this plan, or changed there",
            allowed="the same tasks and new ones",
            hint="choose another folder with --output DIR",
        )
    if not identity.digests & set(record.get("digests", {}).values()):
        named = f" of plan '{record.get('name')}'" if record.get("name") else ""
        raise InputError(
            f"{folder}: holds another run{named} ({record.get('status')}), made from other values"
            " of model, data or stages",
            hint=(
                "choose another folder with --output DIR; go on with that run: advise run"
                f" {shlex.quote(str(folder / PLAN))}"
            ),
        )
    if record.get("max_steps") != identity.max_steps:
        steps = record.get("max_steps")
        held = f"a trial of at most {steps} steps a stage" if steps else "the whole run"
        again = (
            f"add --max-steps {steps} to go on with the trial"
            if steps
            else "leave --max-steps out to go on with it"
        )
        raise InputError(
            f"{folder}: holds {held}", hint=f"choose another folder with --output DIR, or {again}"
        )
    return record


class RunFolder:
    """A folder that this process holds the lock of. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = False
        self.lock_fd = -1

    def __enter__(self) -> RunFolder:
        try:
            self.made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for leftover in self.path.glob(f"{TEMPORARY}*"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error, way_out=ELSEWHERE) from error
        return self

    def _lock(self) -> None:
        import fcntl

        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                if time.monotonic() > deadline or self._holder_lives():
                    raise MachineNotReady(
                        f"{self.path}: another `advise run` is working in this"
                        f" folder{self._holder()}",
                        hint="wait for it or stop it; or choose another folder with --output DIR",
                    ) from None
                time.sleep(0.1)
                continue
            except OSError as error:
                os.close(fd)
                raise MachineNotReady(
                    f"{self.path}: this file system cannot lock files ({error.strerror})",
                    hint="choose a folder on a local disk with --output DIR",
                ) from None
            try:  # somebody may have deleted the folder and made it anew in between
                if os.fstat(fd).st_ino == os.stat(self.path / LOCK).st_ino:
                    break
            except FileNotFoundError:
                pass
            os.close(fd)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self.lock_fd = fd

    def _pid(self) -> int | None:
        try:
            return int((self.path / LOCK).read_text())
        except (OSError, ValueError):
            return None

    def _holder_lives(self) -> bool:
        """True where the process that took the lock is alive; false where only its children still
        hold it.
        """
        pid = self._pid()
        if pid is None:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _holder(self) -> str:
        pid = self._pid()
        return f" (process {pid})" if pid else ""

    def __exit__(self, *_: object) -> None:
        if self.made and not (self.path / RECORD).exists() and not (self.path / DRY_RUN).exists():
            (self.path / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # leave no empty folder behind; one that is not empty stays
                self.path.rmdir()
        os.close(self.lock_fd)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        write_atomically(
            self.path / name,
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        )
