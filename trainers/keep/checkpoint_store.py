"""The checkpoints of one stage: a power cut leaves whole ones alone, and only what is as it was
written is read.

A checkpoint is a folder, `checkpoint-STEP`. Once every process has written its part, the files are
synced, and `complete.json` is written last, with the size and SHA-256 of each: a folder without it
was not finished. Older ones are deleted after it is on the disk. On load the newest one is
verified; one that is damaged gives way to the one before it. `Dependencies` says, part by part,
what a checkpoint goes on from: one of other settings or data is not used, but stays until a new one
is complete.

Nothing here needs torch: tests/faults/simulator drives this code on a disk that fails.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError

from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.ground.files import DISK, ELSEWHERE, Disk, cannot_write
from trainers.job.files import digest_of, json_value

COMPLETE: Final = "complete.json"
PREFIX: Final = "checkpoint-"
KEPT = 2  # complete checkpoints
SHOWN_FILES = 3
DIVIDED = "divided"
FORM = "2"  # of the files in a checkpoint; another one cannot be read
CHANGED = {  # what a person calls a part that is not as it was
    "base_model": "the base model has changed",
    "start": "the model that the stage starts from has changed",
    "rows": "the rows have changed",
    "reward": "what gives the reward has changed",
    "form": "another version of these trainers wrote it, in a form that this one does not read",
}

Say = Callable[[str], None]


def fingerprint(value: Any) -> str:
    """A short digest of a value."""
    return digest_of(value)[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dependencies:
    """What a checkpoint goes on from, in parts that can be named. It holds content, not paths."""

    parts: Mapping[str, str]  # name -> digest: rows, base model, ...
    settings: Mapping[str, Any] = field(default_factory=dict)  # as they can be shown
    processes: int = 1  # of this run; a checkpoint of any other number can be gone on from
    divided: bool = False  # each process holds a part of the model

    @property
    def depends_on(self) -> dict[str, str]:
        """Name of the part -> digest."""
        divided = {DIVIDED: "true"} if self.divided else {}
        settings = fingerprint(self.settings)
        return {**self.parts, "settings": settings, "form": FORM, **divided}

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """What is not as it was when a checkpoint was written, in words; none: it can be used."""
        before, now = record["depends_on"], self.depends_on
        found = []
        for key in sorted({*before, *now}):
            if before.get(key) == now.get(key):
                continue
            if key == DIVIDED:
                had, has = ("a part", "all") if key in before else ("all", "a part")
                found.append(
                    f"each process held {had} of the model when it was written, and holds {has} of"
                    " it in this run (launch.strategy)"
                )
            elif key == "settings":
                found += self._changed_settings(record) or ["the settings have changed"]
            else:
                found.append(CHANGED.get(key, f"{key} has changed"))
        return found

    def _changed_settings(self, record: Mapping[str, Any]) -> list[str]:
        before, now = record.get("settings"), json_value(self.settings)
        if not isinstance(before, dict):
            return []
        return [
            f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Checkpoint(NamedTuple):
    """A complete checkpoint, verified."""

    path: Path
    record: Mapping[str, Any]  # what complete.json holds

    @property
    def step(self) -> int:
        """Optimizer steps (or updates) done."""
        return int(self.record["step"])


class Damaged(Exception):
    """A checkpoint is not what was written; the text names what is wrong."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints in the folder of one stage.

    One process calls `begin`, `complete` and `newest`; the others write their files between the
    first two, and are told which checkpoint is the newest.
    """

    folder: Path
    dependencies: Dependencies
    versions: Mapping[str, str | None] = field(default_factory=dict)  # of the libraries
    # metrics.jsonl: its lines up to a checkpoint are not written again, so they have to be safe
    metrics: Path | None = None
    disk: Disk = DISK

    @property
    def digest(self) -> str:
        """One digest of everything that results depend on: an evaluation of the base with another
        one does not count.
        """
        return fingerprint([self.dependencies.depends_on, self.versions])

    # ---------------------------------------------------------------- writing

    def place(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"{PREFIX}{step}"

    def begin(self, step: int) -> Path:
        """The empty folder for the checkpoint of a step; what a killed run left unfinished is
        removed. Raises MachineNotReady.
        """
        place = self.place(step)
        with self.writing(step):
            for name in self.disk.names(self.folder):
                unfinished = COMPLETE not in self.disk.names(self.folder / name)
                if name == place.name or (name.startswith(PREFIX) and unfinished):
                    self.disk.remove(self.folder / name)
            self.disk.make_folder(place)
        return place

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Write files of the unfinished checkpoint. If the disk does not take them, their part is
        removed, so that there is room to record the failure.

        Raises MachineNotReady.
        """
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.disk.discard(self.place(step))
            if isinstance(error, OSError) and error.errno is None:  # nothing that the system said
                raise
            raise disk_refused(self.folder, error) from error

    def complete(self, step: int, about: Mapping[str, Any]) -> Checkpoint:
        """Mark the checkpoint as complete, once every process has written its part, and delete
        those that are not needed any more.

        Raises MachineNotReady if the disk does not take it; the checkpoints before it then stay.

        Args:
            step: Optimizer steps (or updates) done.
            about: What a resumed run shows or needs to know: steps, learning_rate, epoch, ...;
                `best_step` names an earlier checkpoint that stays with this one.
        """
        place = self.place(step)
        with self.writing(step):
            self.disk.sync_tree(place)
            if self.metrics is not None and self.metrics.is_file():
                self.disk.sync(self.metrics)
            record = {
                **json_value(about),
                "step": step,
                "processes": self.dependencies.processes,
                "depends_on": self.dependencies.depends_on,
                "settings": json_value(self.dependencies.settings),
                "versions": dict(self.versions),
                "files": {name: self._content(place / name) for name in self.disk.files(place)},
            }
            record["sha256"] = _digest_of_record(record)
            text = json.dumps(record, indent=2, allow_nan=False)
            self.disk.replace(place / COMPLETE, text.encode() + b"\n")
            # The names of the folders above may be new, too: run/stages/STAGE/checkpoints.
            for folder in (self.folder, *self.folder.parents[:4]):
                self.disk.sync(folder)
        self._delete_older(step)
        return Checkpoint(place, record)

    def _content(self, path: Path) -> dict[str, Any]:
        return {"bytes": self.disk.size(path), "sha256": self.disk.digest(path)}

    def _delete_older(self, step: int) -> None:
        """Delete all but the newest complete checkpoints of this run and those of their best steps,
        now that the one of `step` is on the disk.
        """
        own = [one for one in self._steps() if one <= step and self._is_own(self.place(one))]
        newest = own[-KEPT:]
        best = [self._read(self.place(one)).get("best_step") for one in newest]
        kept = {f"{PREFIX}{one}" for one in [*newest, *best]}
        for name in self.disk.names(self.folder):
            if name.startswith(PREFIX) and name not in kept:
                self.disk.discard(self.folder / name)

    def _is_own(self, path: Path) -> bool:
        try:
            return not self.dependencies.differences(self._read(path))
        except (Damaged, OSError):
            return False

    def verified(self, step: int) -> Path:
        """The checkpoint of an earlier step, whose weights become the result.

        Raises TrainingFailed if it is not what was written.
        """
        path = self.place(step)
        try:
            self._verify(path, self._read(path))
        except (Damaged, OSError) as error:
            raise TrainingFailed(
                f"the checkpoint of the best step, {path.name}, {error}",
                where=str(self.folder),
                hint="remove this folder, to train the stage again",
            ) from error
        return path

    # ---------------------------------------------------------------- reading

    def newest(self, say: Say = lambda _: None) -> Checkpoint | None:
        """The newest checkpoint that this run can go on from, verified; None: begin at the start.

        Says what is wrong with those that are not used, and what happens instead.
        """
        others: dict[str, list[str]] = {}
        damaged, found = False, None
        for step in reversed(self._steps()):
            path = self.place(step)
            try:
                record = self._read(path)
                if changed := self.dependencies.differences(record):
                    others.setdefault("; ".join(changed), []).append(path.name)
                    continue
                self._verify(path, record)
            except (Damaged, OSError) as error:
                said = f"cannot be read ({error})" if isinstance(error, OSError) else error
                say(f"{path.name} {said}, and is not used")
                if isinstance(error, Damaged):  # an error of the disk may pass by
                    self.disk.discard(path / COMPLETE)  # it counts as unfinished from here on
                damaged = True
                continue
            found = Checkpoint(path, record)
            break
        for reason, names in others.items():
            verb = "is" if len(names) == 1 else "are"
            say(f"{' and '.join(sorted(names))} {verb} not used: {reason}")
        if found is not None:
            self._say_other_versions(found, say)
            self._say_other_processes(found, say)
        elif others or damaged:
            stay = "; what is there stays until a new one is complete" if others else ""
            say(f"no checkpoint can be used: starting from the beginning{stay}")
        return found

    def _steps(self) -> list[int]:
        """The steps of all checkpoints there, complete or not, in order."""
        names = self.disk.names(self.folder)
        found = (re.fullmatch(rf"{PREFIX}([1-9][0-9]{{0,14}})", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def _read(self, path: Path) -> dict[str, Any]:
        """What complete.json says. Raises Damaged."""
        try:
            record: dict[str, Any] = json.loads(self.disk.read(path / COMPLETE))
            is_as_written = record["sha256"] == _digest_of_record(record)
        except FileNotFoundError:
            raise Damaged(f"has no {COMPLETE}: it was not finished") from None
        except NotADirectoryError:
            raise Damaged("is not a folder") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            is_as_written = False
        if not is_as_written:
            raise Damaged(f"is damaged ({COMPLETE} is not what was written)")
        if f"{PREFIX}{record['step']}" != path.name:
            raise Damaged(f"is damaged ({COMPLETE} is that of step {record['step']})")
        return record

    def _verify(self, path: Path, record: Mapping[str, Any]) -> None:
        """Raise Damaged if a file is not what was written, or is not there, in the checkpoint or in
        that of its best step.
        """
        best = record.get("best_step")
        if best not in (None, record["step"]):
            self._verify(self.place(best), self._read(self.place(best)))
        files = record["files"].items()
        faults = [self._fault(name, path / name, known) for name, known in files]
        if found := [fault for fault in faults if fault]:
            more = f", and {len(found) - SHOWN_FILES} more" if len(found) > SHOWN_FILES else ""
            raise Damaged(f"is damaged ({', '.join(found[:SHOWN_FILES])}{more})")

    def _fault(self, name: str, path: Path, known: Mapping[str, Any]) -> str | None:
        try:
            size = self.disk.size(path)
            if size != known["bytes"]:
                return f"{name} has {size:,} bytes instead of {known['bytes']:,}"
            if self.disk.digest(path) != known["sha256"]:
                return f"{name} has other content than was written"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        return None

    def _say_other_processes(self, found: Checkpoint, say: Say) -> None:
        count, now = found.record["processes"], self.dependencies.processes
        if count != now:
            say(
                f"{found.path.name} was written by {count} process{'es' if count != 1 else ''},"
                f" this run has {now}: each step has the same rows as before; random numbers"
                " (dropout) are others from here on"
            )

    def _say_other_versions(self, found: Checkpoint, say: Say) -> None:
        before = found.record["versions"]
        changed = [
            f"{library} {before[library]} -> {version}"
            for library, version in self.versions.items()
            if before.get(library) not in (None, version)
        ]
        if changed:
            say(
                f"{found.path.name} was written with other versions of libraries"
                f" ({', '.join(changed)}): the run goes on from it, and may differ slightly from"
                " one that was never stopped"
            )


def disk_refused(folder: Path, error: OSError | SafetensorError) -> MachineNotReady:
    """The error of files that could not be written."""
    if isinstance(error, OSError):
        return cannot_write(folder, error, way_out=ELSEWHERE)
    return MachineNotReady(  # a full disk, in the words of its library
        f"cannot be written: {error}", where=str(folder), hint=f"free some space, or {ELSEWHERE}"
    )


def _digest_of_record(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without this digest itself."""
    return digest_of({key: value for key, value in record.items() if key != "sha256"})


# --------------------------------------------------------------------------- when to save

LARGEST_SHARE = 0.05  # of the time that saving may take
SHORT_S = 1.0  # a save that takes less is not put off


@dataclass
class SaveClock:
    """When to save: after so many steps or so many minutes, whichever comes first, but later where
    saving would take more than a small share of the time and the plan does not name the steps.
    """

    every: int  # steps between checkpoints
    is_asked: bool  # the plan names them
    minutes: float | None  # the longest time between checkpoints; None: steps alone count
    now_s: Callable[[], float] = time.monotonic
    took_s: float = 0.0  # the last save

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Training begins, or a checkpoint has just been written."""
        self.last_s, self.is_waiting = self.now_s(), False

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        trained_s = self.now_s() - self.last_s
        is_step = step % self.every == 0
        is_late = self.minutes is not None and trained_s >= self.minutes * 60
        self.is_waiting = self.is_waiting or is_step or is_late
        is_short = self.took_s <= LARGEST_SHARE * (trained_s + self.took_s)
        is_kept = is_step and (self.is_asked or self.took_s < SHORT_S)
        return is_kept or (self.is_waiting and is_short)

    def saved(self, took_s: float) -> None:
        """A checkpoint was written, and took so long."""
        self.took_s = took_s
        self.begin()
