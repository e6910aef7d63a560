"""What a bundle carries: the files that a plan names, each with its place in the bundle, and what
has to be fetched on the other machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.data.read.source import find_data
from advisor.extras.jobs.fetch import data_of, hub_kind
from advisor.ground.errors import Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.files import text_of
from advisor.ground.resources import method_roots
from advisor.ground.terminal import mask_secrets
from advisor.launch.checks.model import own_reward_faults
from advisor.methods.rewards import reward_parts
from advisor.plan.entries import with_paths
from advisor.plan.model import Plan
from advisor.plan.read import PlanOnDisk, resolve_path
from advisor.record.content import model_files

ARROW_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")  # beside Arrow files
# What sha256sum, a shell and an archive take without a word, on every system.
UNSAFE = re.compile(r"[^\w.+@=, -]")


class Contents:
    """What a bundle carries. Raises InputError for missing paths and for secrets."""

    def __init__(self, plan: Plan, plan_path: Path) -> None:
        self._named, self._path = plan, plan_path.resolve()
        self.files: dict[str, Path] = {}  # name in the bundle -> file
        self.fetched: list[tuple[str, str]] = []  # there: (model or data set, its name on the hub)
        self.notes: list[str] = []
        self._places: dict[Path, str] = {}  # where it lies here -> in the bundle
        faults: list[Fault] = []
        moved = with_paths(plan, lambda text: self._place(text, faults))
        faults += [
            replace(fault, where=f"stage {stage.name}")
            for stage in plan.stages
            for part in reward_parts(stage.options)
            for fault in own_reward_faults(PlanOnDisk(plan=plan, path=self._path), part)
        ]
        if faults:
            raise InputError(faults=faults)
        self._own_methods()
        origin = replace(plan.origin, answers=self._answers(plan.origin.answers))
        self.plan = replace(moved, origin=origin)  # with its paths in the bundle

    def _place(self, text: str, faults: list[Fault]) -> str:
        server = self._named.launch.vllm
        if server is not None and text == server.python:
            self.notes.append(
                f"launch.vllm.python: {text} must be there, or be corrected in plan.yaml"
            )
            return text
        path = resolve_path(self._path, text).resolve()
        if path not in self._places:
            self._places[path] = text
            try:
                self._places[path] = self._take(path, text)
            except InputError as error:
                faults += error.faults
        return self._places[path]

    def _take(self, path: Path, text: str) -> str:
        """Carry a file or folder. Returns its place in the bundle, or the name on the hub."""
        if not path.exists():
            kind = hub_kind(self._named, text)
            if kind is None:
                raise InputError(
                    f"{self._path.name} names {text}, and there is no {path}",
                    allowed="files and folders that are there, or names on the hub",
                    hint="correct the plan, then export it again",
                )
            self.fetched.append((kind, text))
            return text
        for name in self._named.extras:
            if together := extras()[name].files_with(path):
                inside = {os.path.relpath(file, path.parent): file for file in together}
                if outside := [str(file) for name, file in inside.items() if name[:2] == ".."]:
                    raise InputError(
                        f"it names {outside[0]}, which is not in its folder",
                        where=str(path),
                        hint="move that file into the folder, so that both can be packed",
                    )
                return f"{self._carry('files', path.stem, inside)}/{path.name}"
        if text in data_of(self._named):
            return self._carry("data", path.name, _data_files(path))
        if path.is_dir():
            if inside := model_files(path):
                return self._carry("models", path.name, inside)
            allowed = "a folder in Hugging Face layout, or a hub id"
            raise InputError("holds no model", where=str(path), allowed=allowed)
        _refuse_secrets(path)
        return self._carry("files", path.name, {"": path})

    def _carry(self, folder: str, name: str, inside: Mapping[str, Path]) -> str:
        """Carry files under a name that is still free; returns their place in the bundle."""
        stem, dot, endings = safe_name(name).partition(".")
        taken = {"/".join(one.split("/")[:2]).lower() for one in self.files}
        place, number = f"{folder}/{stem}{dot}{endings}", 1
        while place.lower() in taken:
            number += 1
            place = f"{folder}/{stem}-{number}{dot}{endings}"
        self.files |= {f"{place}/{inner}".rstrip("/"): path for inner, path in inside.items()}
        return place

    def _answers(self, value: Any) -> Any:
        """The answers with paths as in the bundle: those of this machine mean nothing there."""
        if isinstance(value, Mapping):
            return {key: self._answers(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._answers(part) for part in value]
        if not isinstance(value, str):
            return value
        path = resolve_path(self._path, value)
        is_absolute = os.path.isabs(os.path.expanduser(value))
        return self._places.get(path.resolve(), path.name if is_absolute else value)

    def _own_methods(self) -> None:
        used = [f"objectives/{stage.objective}.yaml" for stage in self._named.stages]
        used += [f"updates/{stage.update}.yaml" for stage in self._named.stages]
        for root in method_roots()[1:]:
            if any((root / "rules" / name).is_file() for name in used):
                inside = source_files(root, ("rules", "trainers", "estimate"))
                for path in inside.values():
                    _refuse_secrets(path)
                self._carry("methods", root.name, inside)


def source_files(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Name from the root -> file, of parts of a source tree: no caches, nothing hidden."""
    found = {}
    for place in (root / name for name in names):
        for path in (place, *place.rglob("*")):
            inner = path.relative_to(root)
            is_hidden = any(part.startswith(".") for part in inner.parts)
            if path.is_file() and not is_hidden and "__pycache__" not in inner.parts:
                found[inner.as_posix()] = path
    return found


def _data_files(path: Path) -> dict[str, Path]:
    """Name in the bundle -> file, of the files that are read of a data path and no others."""
    found = find_data(path)
    if not path.is_dir():
        return {"": path}
    files = [file.path for file in found.files]
    if found.container == "arrow":
        files += [note for note in path.rglob("*.json") if note.name in ARROW_NOTES]
    named = {"/".join(map(safe_name, file.relative_to(path).parts)): file for file in files}
    if len(named) < len(set(files)):
        what = "two of its files have the same name but for characters that an archive cannot hold"
        raise InputError(what, where=str(path), hint="rename one of them")
    return named


def _refuse_secrets(path: Path) -> None:
    """Raise InputError if a file of the user's own code holds what looks like a secret."""
    for number, line in enumerate(text_of(path, errors="replace").splitlines(), 1):
        if mask_secrets(line) != line:
            raise InputError(
                "this looks like a secret, and a bundle is made to be copied",
                where=f"{path}:{number}",
                hint="let the code read it from the environment: os.environ['NAME']",
            )


def safe_name(name: str) -> str:
    """A file name that every tool on the way takes as it is."""
    plain = UNSAFE.sub("_", name).strip(" ")
    return f"_{plain}" if plain[:1] in ("-", ".", "") else plain
