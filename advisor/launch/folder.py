"""The folder of one run: who may use it, and what it already holds.

A kernel lock (flock) keeps a second run out. The child processes inherit it: it is held as long as
any process of the run is alive, and the kernel releases it when the last one ends, however that
happens. So there is never a stale lock.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from advisor.ground.errors import Fault, InputError, MachineNotReady
from advisor.ground.files import ELSEWHERE, PLAN_FILE, TEMPORARY, cannot_write, text_of
from advisor.launch.input_digests import Inputs, recorded_inputs
from advisor.plan.entries import Entry
from advisor.plan.record import ADJUSTED, DONE, DRY_RUN, FAILED, RECORD, RunRecord
from advisor.plan.record_files import read_record

LOCK = ".lock"
METRICS = "metrics.jsonl"
MACHINES = ".machines"  # what each of several has to say
# What `advise` itself may leave before a run begins.
BEFORE_A_RUN = {LOCK, MACHINES, DRY_RUN, PLAN_FILE}
LOCK_WAIT_S = 10.0  # the children of a killed run need a moment to end
OTHER_FOLDER = "choose another folder with --output DIR, or delete this one"


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two runs the same run."""

    digests: frozenset[str]  # of the plan as given, and of its copy in the run folder
    max_steps: int | None
    # name -> digests by its paths; a run may gain tasks, and those it has stay trained
    tasks: Mapping[str, frozenset[str]] = field(default_factory=dict)
    inputs: Inputs | None = None  # what the plan's paths hold; None: paths alone decide

    def matches(self, record: RunRecord) -> bool:
        """Whether a record is of this plan: by its text, or by what its paths hold."""
        if self.digests & set(record.digests.values()):
            return True
        if self.inputs is None or not self.inputs.differs_in_contents(record.content_digests):
            return False
        self.inputs.remember(record)
        return self.inputs.is_same_plan(record.content_digests)

    def changed_tasks(self, record: RunRecord) -> list[str]:
        """The tasks of a record that are missing or others in this plan."""
        others = [
            name
            for name, digest in record.tasks.items()
            if digest not in self.tasks.get(name, frozenset())
        ]
        if not others or self.inputs is None:
            return others
        self.inputs.remember(record)
        held = self.inputs.content_digests()
        return [
            name
            for name in others
            if held.get(key := f"task {name}") is None
            or held[key] != record.content_digests.get(key)
        ]


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


def find_record(folder: Path, identity: Identity) -> RunRecord | None:
    """The record of this very run in the folder, or None if a run may begin there.

    Raises InputError if the folder holds anything else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file; a run needs a folder",
            where=str(folder),
            hint="choose another one with --output DIR",
        )
    try:
        record = read_record(folder, hint=OTHER_FOLDER)
        names = sorted(
            entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY)
        )
    except PermissionError as error:
        raise cannot_write(folder, error, way_out=ELSEWHERE) from None
    if record is None:
        _refuse_foreign_files(folder, names)
    elif _has_trained_nothing(folder, record) and not identity.matches(record):
        return None  # a plan that was refused before its first step, and is corrected now
    else:
        _refuse_another_run(folder, record, identity)
    return record


def refuse_other_methods(record: RunRecord, entries: Sequence[Entry], folder: Path) -> None:
    """Raise InputError if the record says that a stage of the plan was trained in another way: it
    is damaged, since it was found to be of this very plan.
    """
    faults = [
        Fault(
            where=str(folder / RECORD),
            what=(f"stage {entry.name}: {key} is {there!r}, and {wanted} in the plan"),
            hint=OTHER_FOLDER,
        )
        for entry in entries
        if (stage := record.stage(entry.name)) is not None
        for key, there, wanted in (
            ("objective", stage.objective, entry.stage.objective),
            ("update", stage.update, entry.stage.update),
        )
        if there != wanted
    ]
    if faults:
        raise InputError(faults=faults)


def _has_trained_nothing(folder: Path, record: RunRecord) -> bool:
    """Whether a run ended before its first step: nothing is lost if another one begins there."""
    return (
        record.status == FAILED
        and all(stage.status != DONE for stage in record.stages)
        and not (folder / METRICS).exists()
        and not any(folder.glob("stages/*/checkpoints/*"))
        and not any(folder.glob("stages/*/*.safetensors"))
        and not any(folder.glob(f"stages/*/{ADJUSTED}"))
    )


def _refuse_foreign_files(folder: Path, names: list[str]) -> None:
    foreign = [name for name in names if name not in BEFORE_A_RUN]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise InputError(
            f"{folder} holds other files ({', '.join(foreign[:3])}{more})",
            "an empty or new folder",
            "choose another one with --output DIR",
            where=str(folder),
        )


def _refuse_another_run(folder: Path, record: RunRecord, identity: Identity) -> None:
    is_same = identity.matches(record)
    changed = identity.changed_tasks(record) if is_same and identity.tasks else []
    if changed:
        verb = "is" if len(changed) == 1 else "are"
        raise InputError(
            f"{folder} holds other tasks: {', '.join(changed)} {verb} missing or changed in this"
            " plan",
            where=str(folder),
            allowed="the same tasks and new ones",
            hint="choose another folder with --output DIR",
        )
    if not is_same:
        named = f" of plan '{record.name}'" if record.name else ""
        raise InputError(
            f"{folder} holds another run{named} ({record.status}): {_difference(record, identity)}",
            where=str(folder),
            hint=(
                "choose another folder with --output DIR; to resume that run: advise run"
                f" {shlex.quote(str(folder / PLAN_FILE))}"
            ),
        )
    if record.max_steps != identity.max_steps:
        steps = record.max_steps
        held = f"a trial run of at most {steps} steps per stage" if steps else "the whole run"
        again = f"add --max-steps {steps}" if steps else "leave --max-steps out"
        raise InputError(
            f"{folder} holds {held}",
            where=str(folder),
            hint=f"choose another folder with --output DIR, or {again} to resume it",
        )


def _difference(record: RunRecord, identity: Identity) -> str:
    """What makes the plan of a record another one."""
    inputs = identity.inputs
    if inputs is None or not inputs.differs_in_contents(record.content_digests):
        return "its model, data or stages are not those of this plan"
    changed = inputs.changed_since(recorded_inputs(record))
    return f"the settings are the same, and {'; '.join(changed) or 'the files are others'}"


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
    """The process that took the lock of a run folder; None if it is gone, whatever its children
    do, or if it is on another machine.
    """
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
                    hint=(
                        "choose a folder on a local disk with --output DIR; for several machines,"
                        " one on a shared disk that is mounted with locks (Lustre: flock)"
                    ),
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
