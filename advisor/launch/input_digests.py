"""What the paths of a plan hold: a run is resumed only with the model and the data it began with,
wherever they lie now.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from advisor.ground.content import (
    READ_BYTES_PER_S,
    FileContent,
    FolderContent,
    KnownFiles,
    files_digest,
    model_files,
    total_bytes,
)
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import MOST_CONFIG_BYTES, bytes_of
from advisor.ground.units import format_gib
from advisor.launch.base_check import cached_snapshot
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.paths import path_from, with_paths
from advisor.plan.read import resolve_path
from advisor.plan.record import RunRecord
from advisor.plan.write import digest, plan_digest

Say = Callable[[str], None]
What = Literal["model", "data", "file"]
IN_WORDS = {"model": "the model", "data": "the data", "file": "a file that the plan names"}
LONG_READ_S = 5.0  # reading that takes longer is announced
MOST_FILES = 200  # of one input, by name in run.json; of more, only the digest of all is kept


@dataclass(frozen=True, slots=True)
class InputContent:
    """What a model folder, a data file or another file of the plan holds."""

    digest: str  # 64 hex digits; 16 where an earlier version recorded it
    files: Mapping[str, FileContent] | None = None  # None: not known, or very many


def recorded_inputs(record: RunRecord) -> dict[str, InputContent]:
    """What a run read, by 'model', 'data PATH' and 'file PATH'."""
    return {
        key: InputContent(digest, record.input_files.get(key))
        for key, digest in record.inputs.items()
    }


def _texts(value: Any) -> Iterator[str]:
    """Every value in the options of a stage as text, those in lists and maps included."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    else:
        yield str(value)


@dataclass(slots=True)
class Inputs:
    """The model, data and other files that a plan names, each read once, when first asked for."""

    plan: Plan
    plan_path: Path
    say: Say | None = None
    known: KnownFiles = field(default_factory=KnownFiles)
    # path of the plan -> the same as the plan in the run folder names it: there, a path stays the
    # same whichever plan the run is called with, and wherever the project is moved
    names: Mapping[str, str] = field(default_factory=dict)
    _read: dict[str, InputContent | None] = field(default_factory=dict)

    def remember(self, record: RunRecord) -> None:
        """Files that run.json knows by size and time need not be read again."""
        self.known = record.known_files

    def name_as_in(self, copy: Plan) -> None:
        """Name the inputs as the plan in the run folder does."""
        self.names = dict(zip(_paths_of(self.plan), _paths_of(copy), strict=True))

    def texts(self) -> dict[str, What]:
        """Every path of the plan as it is written, and what it stands for."""
        found: dict[str, What] = dict.fromkeys(_paths_of(self.plan), "file")
        data = [self.plan.data.path] if self.plan.data else []
        data += [stage.data for stage in self.plan.stages if stage.data is not None]
        data += [task.data.path for task in self.plan.tasks]
        return found | dict.fromkeys(data, "data") | {self.plan.model: "model"}

    def key(self, text: str) -> str:
        """The name of an input in run.json: 'model', 'data PATH' or 'file PATH'."""
        what = self.texts()[text]
        return "model" if what == "model" else f"{what} {self.names.get(text, text)}"

    def text(self, key: str) -> str:
        """The path that the plan has for the name of an input."""
        return next(text for text in self.texts() if self.key(text) == key)

    def content(self, text: str) -> InputContent | None:
        """What a path holds; None for what is not here, such as a hub id that is not in the cache.

        Raises InputError or MachineNotReady if it cannot be read.
        """
        if text not in self._read:
            self._read[text] = self._content(text)
        return self._read[text]

    def of_entries(self, entries: Sequence[Entry]) -> dict[str, InputContent]:
        """Name of an input -> what it holds, of those that the entries read."""
        if not entries:
            return {}
        texts = self.texts()
        wanted = {self.plan.model}
        for entry in entries:
            own = list(_texts(entry.stage.options))
            wanted |= {entry.data.path, entry.start_folder or "", *own}
            wanted |= {value.rpartition(":")[0] for value in own}
        return {
            self.key(text): content
            for text in texts
            if text in wanted and (content := self.content(text)) is not None
        }

    def content_digests(self) -> dict[str, str]:
        """What the plan says, with contents in place of its paths: 'values' without any of them,
        'plan' with what they hold, and both without the tasks, since a run may gain tasks.

        A hub id stays as it is.
        """

        def held(text: str) -> str:
            found = self.content(text) if self._path(text).exists() else None
            return text if found is None else f"content {found.digest}"

        return self._both("values", self._blank) | self._both("plan", held) | self._tasks(held)

    def is_same_plan(self, digests: Mapping[str, str]) -> bool:
        """Whether a run with these `content_digests` trained this plan on these contents.

        Nothing is read if the plan differs in more than its paths.
        """
        return self.differs_in_contents(digests) and any(
            digests.get(name) == found
            for name, found in self.content_digests().items()
            if name in ("plan", "plan without tasks")
        )

    def differs_in_contents(self, digests: Mapping[str, str]) -> bool:
        """Whether nothing but paths can be different."""
        own = self._both("values", self._blank)
        return any(digests.get(name) == found for name, found in own.items())

    def changed_since(self, before: Mapping[str, InputContent]) -> list[str]:
        """'the model is another one: model.safetensors has other content': what the plan's paths
        hold and a run did not begin with.
        """
        now = {
            self.key(text): held
            for text in self.texts()
            if (held := self.content(text)) is not None
        }
        return [
            f"{IN_WORDS[_what(key)]} is not the same: {changed}"
            for key, changed in _changes(before, now, self)
        ]

    def _blank(self, text: str) -> str:
        return "a path" if self._path(text).exists() else text

    def _both(self, name: str, moved: Callable[[str], str]) -> dict[str, str]:
        plan = with_paths(self.plan, moved)
        found = {name: plan_digest(plan)}
        if plan.tasks:
            found[f"{name} without tasks"] = plan_digest(replace(plan, tasks=()))
        return found

    def _tasks(self, moved: Callable[[str], str]) -> dict[str, str]:
        return {
            f"task {name}": found
            for name, found in task_digests(with_paths(self.plan, moved)).items()
        }

    def _path(self, text: str) -> Path:
        return resolve_path(self.plan_path, text)

    def _content(self, text: str) -> InputContent | None:
        path, what = self._path(text), self.texts()[text]
        if what == "data":
            return self._data(path)
        if path.is_file():
            return self._digest({path.name: path}, is_folder=False)
        folder: Path | None = path
        if not path.is_dir():
            folder = cached_snapshot(text, self.plan.revision) if what == "model" else None
        if folder is None:
            return None
        return self._digest(
            {file.relative_to(folder).as_posix(): file for file in model_files(folder)},
            is_folder=True,
        )

    def _data(self, path: Path) -> InputContent | None:
        from advisor.data.read.files import find_data

        if not path.exists():
            return None
        try:
            found = find_data(path)
        except InputError:  # the checks of the data say what is wrong
            return None
        root = found.root or path
        return self._digest(
            {
                file.path.relative_to(root).as_posix() if found.folder else path.name: file.path
                for file in found.files
            },
            is_folder=found.folder,
        )

    def _digest(self, paths: Mapping[str, Path], *, is_folder: bool) -> InputContent:
        unread = total_bytes(path for path in paths.values() if self.known.find(path) is None)
        if self.say is not None and unread > LONG_READ_S * READ_BYTES_PER_S:
            self.say(
                f"reading {format_gib(unread)} of {next(iter(paths.values())).parent} once, to know"
                " later whether it has changed"
            )
        found = files_digest(paths, known=self.known)
        return _as_input(found, is_folder=is_folder)


def _paths_of(plan: Plan) -> list[str]:
    """Every path as it is written, in the order of the plan."""
    found = []

    def note(text: str) -> str:
        found.append(text)
        return text

    with_paths(plan, note)
    return found


def _as_input(found: FolderContent, *, is_folder: bool) -> InputContent:
    """A single file counts without its name, so that it may be renamed."""
    (single,) = found.files.values() if not is_folder else (None,)
    return InputContent(
        digest=found.digest if single is None else single.sha256,
        files=found.files if len(found.files) <= MOST_FILES else None,
    )


def task_digests(plan: Plan) -> dict[str, str]:
    """Task -> digest of its data and its overrides."""
    return {
        task.name: digest(
            {"data": task.data.path, "mapping": task.data.mapping, "overrides": task.overrides}
        )
        for task in plan.tasks
    }


# --------------------------------------------------------------------------- what has changed


def refuse_changed(
    before: Mapping[str, InputContent],
    now: Mapping[str, InputContent],
    inputs: Inputs,
    folder: Path,
    *,
    growing: bool = False,
) -> None:
    """Raise InputError, with every file that changed, if the run in the folder began with other
    content.

    Content is compared: the same file may have another path now. What an earlier version
    recorded is compared as it did.

    Args:
        growing: The run may have gained tasks; their data are new, not changed.
    """
    if growing:
        now = {key: value for key, value in now.items() if key in before or key == "model"}
    faults = [
        Fault(
            where=str(folder),
            what=f"{IN_WORDS[_what(key)]} has changed since this run began: {changed}",
            allowed="a run is resumed with the model and the data it began with",
            hint=(
                "put the old content back, start a new run with --output DIR, or delete this folder"
            ),
        )
        for key, changed in _changes(before, now, inputs)
    ]
    if faults:
        raise InputError(faults=faults)


def _changes(
    before: Mapping[str, InputContent], now: Mapping[str, InputContent], inputs: Inputs
) -> Iterable[tuple[str, str]]:
    """(key, what changed in words) of each input that held something else; a path that is new is
    compared with all inputs of its kind.
    """
    for key, content in now.items():
        same_kind = {name: old for name, old in before.items() if _what(name) == _what(key)}
        if not same_kind:  # an earlier version recorded model and data alone
            continue
        if key in before and not _is_old(before[key]):
            same_kind = {key: before[key]}
        if any(_is_same(old, content, key, inputs) for old in same_kind.values()):
            continue
        old = before.get(key) or next(iter(same_kind.values()))
        shown = inputs.text(key)
        is_file = resolve_path(inputs.plan_path, shown).is_file()
        named = [
            f"{shown if is_file else f'{shown}/{name}'} {change}"
            for name, change in changed_files(old, content)
        ]
        yield key, "; ".join(named) or shown


def changed_files(old: InputContent, new: InputContent) -> list[tuple[str, str]]:
    """('model.safetensors', 'has other content (the same size)'): each file that differs; empty if
    no names are known.
    """
    if old.files is None or new.files is None:
        return []
    pairs = [
        (name, old.files.get(name), new.files.get(name))
        for name in sorted({*old.files, *new.files})
    ]
    if len(old.files) == len(new.files) == 1:  # a single file may have another name
        ((name, held),) = new.files.items()
        pairs = [(name, next(iter(old.files.values())), held)]
    said = []
    for name, before, now in pairs:
        if before is None:
            said.append((name, "is new"))
        elif now is None:
            said.append((name, "is gone"))
        elif not before.holds_the_same(now):
            size = (
                "the same size"
                if before.bytes == now.bytes
                else f"{before.bytes:,} bytes then, {now.bytes:,} now"
            )
            said.append((name, f"has other content ({size})"))
    return said


def renamed(
    record: RunRecord, inputs: Inputs, now: Mapping[str, InputContent], folder: Path
) -> list[str]:
    """What has another path than when the run began, and the same content, in words."""
    said = []
    named = {inputs.key(text) for text in inputs.texts()}
    for key, content in now.items():
        if key == "model":
            # A run that was called by the plan in its folder has the path from there.
            own = (inputs.plan.model, inputs.names.get(inputs.plan.model))
            if record.model is not None and record.model not in own:
                said.append(_renamed("the model", record.model, inputs.plan.model))
        elif key not in record.inputs:
            old = [
                name
                for name, digest in record.inputs.items()
                if name not in named and _what(name) == _what(key) and digest == content.digest
            ]
            if old:
                before = _from_here(path_from(folder.resolve(), _path(old[0])))
                said.append(_renamed(IN_WORDS[_what(key)], before, inputs.text(key)))
    return said


def _from_here(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd().resolve()) else str(path)


def merged(
    before: Mapping[str, InputContent],
    now: Mapping[str, InputContent],
    planned: Mapping[str, InputContent],
) -> dict[str, InputContent]:
    """The inputs to record: what earlier stages read stays, under its present path.

    Args:
        before: What is recorded.
        now: What the stages that are left read.
        planned: What all stages read: the first call records all of it, so that a stage that begins
            later reads what the run began with.
    """
    digests = {content.digest for content in now.values()}
    kept = {
        key: content
        for key, content in before.items()
        if not _is_old(content) and (key in now or content.digest not in digests)
    }
    return {**planned, **kept, **now}


def recorded_by_earlier_version(before: Mapping[str, InputContent]) -> bool:
    """Whether the model was recorded by the names and sizes of its weights only."""
    model = before.get("model")
    return model is not None and _is_old(model)


def _renamed(what: str, old: str, new: str) -> str:
    return f"{what} was {old} when this run began and is {new} now: the same content"


def _what(key: str) -> What:
    first = key.split(" ")[0]
    return "model" if first == "model" else "data" if first == "data" else "file"


def _path(key: str) -> str:
    return key.partition(" ")[2]


def _is_old(content: InputContent) -> bool:
    return len(content.digest) < 64


def _is_same(old: InputContent, now: InputContent, key: str, inputs: Inputs) -> bool:
    if not _is_old(old):
        is_listed = bool(old.files) and bool(now.files)
        return old.digest == now.digest or (is_listed and not changed_files(old, now))
    path = resolve_path(inputs.plan_path, inputs.text(key))
    return old.digest == old_digest(path, _what(key))


def old_digest(path: Path, what: What) -> str | None:
    """What earlier versions recorded: of data the content, of a model its configuration and the
    names and sizes of its weights. None for what they did not record.
    """
    from advisor.data.read.files import content_digest

    if what == "data":
        return content_digest(path)[:16]
    if what == "model" and path.is_dir():
        found = hashlib.sha256(bytes_of(path / "config.json", most_bytes=MOST_CONFIG_BYTES))
        for file in sorted(path.glob("*.safetensors")):
            found.update(f"\0{file.name} {file.stat().st_size}".encode())
        return found.hexdigest()[:16]
    return None
