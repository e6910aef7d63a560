"""The checkpoints of one stage: a power cut leaves whole ones alone, and only what is as it was
written is read.

A checkpoint is a folder, `checkpoint-STEP`. Once every process has written its part, the files are
synced, and `complete.json` is written last, with the size and SHA-256 of each: a folder without it
was not finished. Older ones are deleted after it is on the disk. On load the newest one is
verified; one that is damaged gives way to the one before it. `Dependencies` says, part by part,
what a checkpoint goes on from: one of other settings or data is not used, but stays until a new one
is complete.

Checkpoints depend on content: a project that was moved changes nothing, other weights in the same
file do. Versions of libraries are no part: after an upgrade the checkpoints are used, and a message
says so. Nor is how an optimizer step is cut into micro-batches, by one process or several: its rows
are the same, unless they are grouped by length.

Nothing here needs torch: tests/faults/simulator drives this code on a disk that fails.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import asdict, replace
from safetensors import SafetensorError

from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.ground.files import DISK, ELSEWHERE, NO_SPACE, Disk, cannot_write, free_bytes
from advisor.ground.units import format_gib
from advisor.methods.stage import stage_keys
from advisor.plan.entries import path_from, stage_paths
from advisor.record.content import file_digest, folder_digest
from advisor.record.files import read_record
from trainers.job.files import digest_of, json_value
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.say.progress import cut_metrics, stage_lines, tell
from trainers.step.sharding import from_main, is_sharded

COMPLETE: Final = "complete.json"
PREFIX: Final = "checkpoint-"
ASIDE: Final = "-aside"  # behind the name of one whose step is being written once more
KEPT = 2  # complete checkpoints
SHOWN_FILES = 3
FORM = "2"  # of the files in a checkpoint; another one cannot be read
CHANGED = {  # what a person calls a part that is not as it was
    "base_model": "the base model has changed",
    "start": "the model that the stage starts from has changed",
    "rows": "the rows have changed",
    "reward": "what gives the reward has changed",
    "form": "another version of these trainers wrote it, in a form that this one does not read",
    "divided": "whether each process holds a part of the model has changed (launch.strategy)",
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
        divided = {"divided": "true"} if self.divided else {}
        settings = fingerprint(self.settings)
        return {**self.parts, "settings": settings, "form": FORM, **divided}

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """What is not as it was when a checkpoint was written, in words; none: it can be used."""
        changed = _changed(record["depends_on"], self.depends_on)
        found = [CHANGED.get(key, f"{key} has changed") for key in changed if key != "settings"]
        if "settings" in changed:
            before, now = record.get("settings") or {}, json_value(self.settings)
            found += [
                f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}"
                for key in _changed(before, now)
            ] or ["the settings have changed"]
        return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


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
        return self.folder / f"{PREFIX}{step}"

    def begin(self, step: int) -> Path:
        """The empty folder for the checkpoint of a step; what a killed run left unfinished is
        removed, and a complete one of the same step is put aside until the new one is. Raises
        MachineNotReady.
        """
        place = self.place(step)
        with self.writing(step):
            for name in self.disk.names(self.folder):
                path = self.folder / name
                if name.startswith(PREFIX) and COMPLETE not in self.disk.names(path):
                    self.disk.remove(path)
                elif name == place.name:
                    self.disk.remove(self.folder / f"{name}{ASIDE}")
                    self.disk.rename(path, self.folder / f"{name}{ASIDE}")
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
            size = self._usual_size(self.place(step))
            self.disk.discard(self.place(step))
            if isinstance(error, OSError) and error.errno is None:  # nothing that the system said
                raise
            raise disk_refused(self.folder, error, size) from error

    def _usual_size(self, unfinished: Path) -> str:
        """What a checkpoint of the stage takes, in words; empty if that cannot be told."""

        def size(path: Path) -> int:
            return sum(self.disk.size(path / name) for name in self.disk.files(path))

        with suppress(OSError):  # another process has just removed it
            whole = [path for path in map(self.place, self._steps()) if path != unfinished]
            if whole:
                return f"about {format_gib(max(map(size, whole)))}"
            return f"more than {format_gib(size(unfinished))}"
        return ""

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
                "files": {
                    name: {
                        "bytes": self.disk.size(place / name),
                        "sha256": self.disk.digest(place / name),
                    }
                    for name in self.disk.files(place)
                },
            }
            record["sha256"] = _digest_of_record(record)
            text = json.dumps(record, indent=2, allow_nan=False)
            self.disk.replace(place / COMPLETE, text.encode() + b"\n")
            # The names of the folders above may be new, too: run/stages/STAGE/checkpoints.
            for folder in (self.folder, *self.folder.parents[:4]):
                self.disk.sync(folder)
        self._delete_older(step)
        return Checkpoint(place, record)

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
        for name in self.disk.names(self.folder):
            place = self.folder / name.removesuffix(ASIDE)
            if name.endswith(ASIDE) and COMPLETE not in self.disk.names(place):
                self.disk.remove(place)
                self.disk.rename(self.folder / name, place)
        others = damaged = False
        for step in reversed(self._steps()):
            path = self.place(step)
            try:
                record = self._read(path)
                if changed := self.dependencies.differences(record):
                    say(f"{path.name} is not used: {'; '.join(changed)}")
                    others = True
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
            self._say_what_differs(found, say)
            return found
        if others or damaged:
            stay = "; what is there stays until a new one is complete" if others else ""
            say(f"no checkpoint can be used: starting from the beginning{stay}")
        return None

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

    def _say_what_differs(self, found: Checkpoint, say: Say) -> None:
        """What is not as it was, and does not keep the run from going on."""
        count, now = found.record["processes"], self.dependencies.processes
        if count != now:
            say(
                f"{found.path.name} was written by {count} process{'es' if count != 1 else ''},"
                f" this run has {now}: each step has the same rows as before; random numbers"
                " (dropout) are others from here on"
            )
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


def disk_refused(folder: Path, error: OSError | SafetensorError, size: str = "") -> MachineNotReady:
    """The error of files that could not be written.

    Args:
        size: What they take together, if it is known: '1.2 GiB'.
    """
    if isinstance(error, OSError) and error.errno not in NO_SPACE:
        return cannot_write(folder, error, way_out=ELSEWHERE)
    # A full disk, in the words of the system or of the library.
    said = "no space left to write it"
    takes = f": it takes {size}, and {format_gib(free_bytes(folder))} are free" if size else ""
    return MachineNotReady(
        said if isinstance(error, OSError) else f"cannot be written: {error}",
        where=str(folder),
        hint=f"free some space{takes} (stages/*/checkpoints/ of runs that are done can go), or"
        f" {ELSEWHERE}",
    )


def _digest_of_record(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without this digest itself."""
    return digest_of({key: value for key, value in record.items() if key != "sha256"})


# --------------------------------------------------------------------------- of a stage

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
    parts = {"base_model": base_digest(job, model), **_files(job), **parts}
    if job.start is not None:
        parts["start"] = folder_digest(job.start)
    return Dependencies(
        parts={name: digest[:16] for name, digest in parts.items()},
        settings=settings,
        processes=processes,
        divided=is_sharded(job),
    )


def base_digest(job: Job, model: Any = None) -> str:
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
