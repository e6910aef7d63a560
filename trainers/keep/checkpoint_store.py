"""The checkpoints of one stage: written so that a power cut leaves whole ones alone, and read only
if they are what was written.

A checkpoint is written into a temporary folder. Once every process has written its part, each file
is synced and recorded with its size and SHA-256 in `complete.json`, that file is synced too, and
only then the folder gets its name, `checkpoint-STEP`. Older ones are deleted after the new name is
on the disk. On load the newest one is verified; a damaged one is moved aside, the one before it is
used. `depends_on` says, part by part, what a checkpoint goes on from: one of other settings or data
is not used, but stays until a new one is complete.

Nothing here needs torch: tests/faults/simulator drives this code on a disk that fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from advisor.ground.errors import MachineNotReady
from advisor.ground.files import DISK, ELSEWHERE, TEMPORARY, Disk, cannot_write
from trainers.job.files import digest_of, json_value

COMPLETE: Final = "complete.json"
TRAINER_STATE: Final = "trainer_state.json"  # of transformers' Trainer; PPO writes none
PREFIX: Final = "checkpoint-"
DAMAGED: Final = "damaged-"
SAVING: Final = f"{TEMPORARY}saving"  # holds the checkpoint that is being written
REMOVED: Final = f"{TEMPORARY}removed-"
REPLACED: Final = f"{TEMPORARY}replaced-"
KEPT = 2  # complete checkpoints, and as many damaged ones
SHOWN_FILES = 3
DIVIDED, PROCESSES = "divided", "processes"
CHANGED = {  # what a person calls a part that is not as it was
    "base_model": "the base model has changed",
    "start": "the model that the stage starts from has changed",
    "rows": "the rows have changed",
    "reward": "what gives the reward has changed",
}

Say = Callable[[str], None]
Needs = Sequence[str] | Callable[[int], Sequence[str]]


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
        return {**self.parts, "settings": fingerprint(self.settings), **divided}

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """What is not as it was when a checkpoint was written, in words; none: it can be used."""
        before, now = record["depends_on"], self.depends_on
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        found = []
        for key in changed:
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
        before = record.get("settings")
        now = json_value(self.settings)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
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

    One process writes the checkpoint's own files with `begin`, `complete` and `newest`; the others
    write theirs between `begin` and `complete`, and look with `newest(repair=False)` once the first
    one has looked.
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

    def unfinished(self, step: int) -> Path:
        """Where the checkpoint of a step is written before it is complete."""
        return self.folder / SAVING / f"{PREFIX}{step}"

    def begin(self, step: int) -> Path:
        """The empty folder for the checkpoint of a step. Raises MachineNotReady."""
        place = self.unfinished(step)
        try:
            self.disk.remove(self.folder / SAVING)
            self.disk.make_folder(place)
        except OSError as error:
            raise cannot_write(place, error, way_out=ELSEWHERE) from error
        return place

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write files of the unfinished checkpoint. If the disk does not take them, their part is
        removed, so that there is room to record the failure.

        Raises MachineNotReady.
        """
        try:
            yield
        except SafetensorError as error:  # a full disk, in the words of its library
            self.disk.discard(self.folder / SAVING)
            raise disk_refused(self.folder, error) from error
        except OSError as error:
            self.disk.discard(self.folder / SAVING)
            if error.errno is None:  # nothing that the system said
                raise
            raise cannot_write(self.folder, error, way_out=ELSEWHERE) from error

    def complete(
        self, step: int, about: Mapping[str, Any], *, beside: Sequence[str] = ()
    ) -> Checkpoint:
        """Give the checkpoint its name, once every process has written its part, and delete those
        that are not needed any more.

        Raises MachineNotReady if the disk does not take it; the checkpoints before it then stay.

        Args:
            step: Optimizer steps (or updates) done.
            about: What a resumed run shows or needs to know: steps, learning_rate, epoch, ...
            beside: Files of the stage's checkpoint folder that it needs as well.
        """
        place, target = self.unfinished(step), self.folder / f"{PREFIX}{step}"
        try:
            record = {
                **json_value(about),
                "step": step,
                "processes": self.dependencies.processes,
                "depends_on": self.dependencies.depends_on,
                "settings": json_value(self.dependencies.settings),
                "versions": dict(self.versions),
                "files": {name: self._content(place / name) for name in self.disk.files(place)},
                "beside": {name: self._content(self.folder / name) for name in beside},
            }
            record["sha256"] = _digest_of_record(record)
            text = json.dumps(record, indent=2, allow_nan=False)
            self.disk.write(place / COMPLETE, text.encode() + b"\n")
            self.disk.sync_tree(place)
            if self.metrics is not None and self.metrics.is_file():
                self.disk.sync(self.metrics)
            self._put(place, target)
            self._delete_older(step)
        except OSError as error:
            self.disk.discard(self.folder / SAVING)
            raise cannot_write(target, error, way_out=ELSEWHERE) from error
        return Checkpoint(path=target, record=record)

    def _content(self, path: Path) -> dict[str, Any]:
        return {"bytes": self.disk.size(path), "sha256": self.disk.digest(path)}

    def _put(self, place: Path, target: Path) -> None:
        """Rename the finished folder; one of the same step stays until the new one has its name."""
        old = self.folder / f"{REPLACED}{target.name}"
        if target.name in self.disk.names(self.folder):
            self.disk.rename(target, old)
        self.disk.rename(place, target)
        # The names of the folders above may be new, too: run/stages/STAGE/checkpoints.
        for folder in (self.folder, *self.folder.parents[:4]):
            self.disk.sync(folder)
        self.disk.remove(old)
        self.disk.remove(self.folder / SAVING)

    def _delete_older(self, step: int) -> None:
        """Delete all but the newest complete checkpoints of this run, now that the one of `step` is
        on the disk.
        """
        own = [
            number
            for number in self._steps()
            if number <= step and self._is_own(self.folder / f"{PREFIX}{number}")
        ]
        kept = {f"{PREFIX}{number}" for number in sorted(own)[-KEPT:]}
        for name in self.disk.names(self.folder):
            if name.startswith(PREFIX) and name not in kept:
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete a folder under another name, so that no half of it is ever taken for a whole."""
        removed = self.folder / f"{REMOVED}{name}"
        self.disk.remove(removed)
        self.disk.rename(self.folder / name, removed)
        self.disk.remove(removed)

    def _is_own(self, path: Path) -> bool:
        try:
            return not self.dependencies.differences(self._read(path))
        except (Damaged, OSError):
            return False

    def records(self) -> list[Mapping[str, Any]]:
        """The records of the complete checkpoints of this run that are there, oldest first."""
        paths = [self.folder / f"{PREFIX}{step}" for step in self._steps()]
        return [self._read(path) for path in paths if self._is_own(path)]

    # ---------------------------------------------------------------- reading

    def newest(
        self, say: Say = lambda _: None, *, repair: bool = True, requires: Needs = ()
    ) -> Checkpoint | None:
        """The newest checkpoint that this run can go on from, verified; None: begin at the start.

        Says what is wrong with those that are not used, and what happens instead.

        Args:
            say: Takes each message.
            repair: Move damaged ones aside and remove what a killed run left. Only the process that
                writes does; the others find what it left, and need not verify it again.
            requires: Files that every checkpoint must have; or those that one of so many processes
                must have.

        Raises MachineNotReady if a damaged one cannot be moved.
        """
        if repair:
            self._tidy()
        others: dict[str, list[str]] = {}
        moved = False
        for step in reversed(self._steps()):
            path = self.folder / f"{PREFIX}{step}"
            try:
                record = self._read(path)
                if changed := self.dependencies.differences(record):
                    others.setdefault("; ".join(changed), []).append(path.name)
                    continue
                if repair:
                    self._verify(path, record, requires)
            except (Damaged, OSError) as error:
                if repair:
                    moved = True
                    said = f"cannot be read ({error})" if isinstance(error, OSError) else error
                    say(f"{path.name} {said}{self._move_aside(path.name)}")
                continue
            self._say_unused(others, say)
            for line in (
                *self._other_versions(path.name, record),
                *self._other_processes(path.name, record),
            ):
                say(line)
            return Checkpoint(path=path, record=record)
        self._say_unused(others, say)
        if others or moved:
            stay = "; what is there stays until a new one is complete" if others else ""
            say(f"no checkpoint can be used: starting from the beginning{stay}")
        return None

    def _names(self) -> list[str]:
        return self.disk.names(self.folder)

    def _steps(self) -> list[int]:
        """The steps of all checkpoints there, complete or not, in order."""
        found = (re.fullmatch(rf"{PREFIX}([1-9][0-9]{{0,14}})", name) for name in self._names())
        return sorted(int(match[1]) for match in found if match)

    def _tidy(self) -> None:
        """Remove what a killed run left; a checkpoint that was being replaced gets its name
        back.
        """
        try:
            names = self._names()
            for name in names:
                target = name.removeprefix(REPLACED)
                if name.startswith(REPLACED) and target not in names:
                    self.disk.rename(self.folder / name, self.folder / target)
                    self.disk.sync(self.folder)
                elif name.startswith(TEMPORARY):
                    self.disk.remove(self.folder / name)
        except OSError as error:
            raise cannot_write(self.folder, error, way_out=ELSEWHERE) from error

    def _read(self, path: Path) -> dict[str, Any]:
        """What complete.json says. Raises Damaged."""
        try:
            record = json.loads(self.disk.read(path / COMPLETE))
        except FileNotFoundError:
            raise Damaged(f"has no {COMPLETE}: it was not finished") from None
        except NotADirectoryError:
            raise Damaged("is not a folder") from None
        except (ValueError, RecursionError):
            raise Damaged(f"is damaged ({COMPLETE} is not JSON)") from None
        if not isinstance(record, dict):
            raise Damaged(f"is damaged ({COMPLETE} is not an object)")
        if "depends_on" not in record:
            raise Damaged(f"is damaged ({COMPLETE} does not say what it depends on)")
        try:
            is_as_written = record.get("sha256") == _digest_of_record(record)
        except RecursionError:  # the parser nests deeper than what walks its values
            is_as_written = False
        if not is_as_written:
            raise Damaged(f"is damaged ({COMPLETE} is not what was written)")
        if f"{PREFIX}{record.get('step')}" != path.name:
            raise Damaged(f"is damaged ({COMPLETE} is that of step {record.get('step')})")
        return record

    def _verify(self, path: Path, record: Mapping[str, Any], requires: Needs) -> None:
        """Raise Damaged if a file is not what was written, or is not there."""
        listed = record["files"]
        needed = requires(_written_by(record)) if callable(requires) else requires
        faults = [f"{name} is missing" for name in needed if name not in listed]
        for folder, files in ((path, listed), (self.folder, record["beside"])):
            for name, content in files.items():
                faults += filter(None, [self._fault(folder / name, name, content)])
        if not faults and TRAINER_STATE in listed:
            faults += self._fault_of_step(path, record["step"])
        if faults:
            more = f", and {len(faults) - SHOWN_FILES} more" if len(faults) > SHOWN_FILES else ""
            raise Damaged(f"is damaged ({', '.join(faults[:SHOWN_FILES])}{more})")

    def _fault(self, path: Path, name: str, content: Mapping[str, Any]) -> str | None:
        try:
            size = self.disk.size(path)
            if size != content["bytes"]:
                return f"{name} has {size:,} bytes instead of {content['bytes']:,}"
            if self.disk.digest(path) != content["sha256"]:
                return f"{name} has other content than was written"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        return None

    def _fault_of_step(self, path: Path, step: int) -> list[str]:
        """What is wrong with the step that transformers' Trainer goes on from."""
        try:
            found = json.loads(self.disk.read(path / TRAINER_STATE))["global_step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return [f"{TRAINER_STATE} does not say its step"]
        return [] if found == step else [f"{TRAINER_STATE} is that of step {found}"]

    def _move_aside(self, name: str) -> str:
        """Rename a damaged checkpoint, so that it is not used; the last few are kept. Returns what
        was done, for a message.
        """
        aside = f"{DAMAGED}{name}"
        try:
            self.disk.remove(self.folder / aside)
            self.disk.rename(self.folder / name, self.folder / aside)
            self.disk.sync(self.folder)
            kept = [other for other in self._names() if other.startswith(DAMAGED)]
            kept.sort(key=lambda other: int(other.rpartition("-")[2]))
            for old in kept[:-KEPT]:
                self.disk.remove(self.folder / old)
        except OSError as error:
            raise cannot_write(self.folder / name, error, way_out=ELSEWHERE) from error
        return f": moved to {aside}, and not used"

    def _say_unused(self, others: Mapping[str, Sequence[str]], say: Say) -> None:
        for reason, names in others.items():
            verb = "is" if len(names) == 1 else "are"
            say(f"{' and '.join(sorted(names))} {verb} not used: {reason}")

    def _other_processes(self, name: str, record: Mapping[str, Any]) -> list[str]:
        count = _written_by(record)
        if count == self.dependencies.processes:
            return []
        return [
            f"{name} was written by {count} process{'es' if count != 1 else ''}, this run has"
            f" {self.dependencies.processes}: each step has the same rows as before; random numbers"
            " (dropout) are others from here on"
        ]

    def _other_versions(self, name: str, record: Mapping[str, Any]) -> list[str]:
        before = record.get("versions")
        changed = (
            [
                f"{library} {before[library]} -> {version}"
                for library, version in self.versions.items()
                if before.get(library) not in (None, version)
            ]
            if isinstance(before, dict)
            else []
        )
        if not changed:
            return []
        return [
            f"{name} was written with other versions of libraries ({', '.join(changed)}): the run"
            " goes on from it, and may differ slightly from one that was never stopped"
        ]


def _written_by(record: Mapping[str, Any]) -> int:
    """How many processes wrote a checkpoint."""
    count = record.get(PROCESSES, 1)
    return count if isinstance(count, int) else 1


def disk_refused(folder: Path, error: SafetensorError) -> MachineNotReady:
    """The error of a file of tensors that could not be written."""
    return MachineNotReady(
        f"cannot be written: {error}", where=str(folder), hint=f"free some space, or {ELSEWHERE}"
    )


def _digest_of_record(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without this digest itself."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return digest_of(rest)
