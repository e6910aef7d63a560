"""What a bundle carries: the files that a plan names, each with its place in the bundle and its
digest, and what has to be fetched or copied on the other machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.data.read.source import find_data
from advisor.extras.jobs.fetch import data_of, hub_kind
from advisor.ground.errors import Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.files import text_of
from advisor.ground.resources import method_roots
from advisor.ground.terminal import mask_secrets
from advisor.plan.entries import with_paths
from advisor.plan.model import Plan
from advisor.plan.read import resolve_path
from advisor.record.content import model_files, read_contents, total_bytes

MOST_BYTES = 2 << 30  # of one data set or model; more is named by its digest, not carried
ARROW_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")  # beside Arrow files
# What sha256sum, a shell and an archive take without a word, on every system.
UNSAFE = re.compile(r"[^\w.+@=, -]")


class Contents:
    """What a bundle carries. Raises InputError for missing paths and for secrets."""

    def __init__(self, plan: Plan, plan_path: Path) -> None:
        self._named, self._path = plan, plan_path.resolve()
        self.files: dict[str, Path] = {}  # name in the bundle -> file, links followed
        self.sums: dict[str, str] = {}  # the same name -> SHA-256
        self.left_sums: dict[str, str] = {}  # of what is too large: copied there by hand
        # Of that: (place in the bundle, where it lies here, bytes).
        self.left: list[tuple[str, Path, int]] = []
        self.fetched: list[tuple[str, str]] = []  # there: (model or data set, its name on the hub)
        self.notes: list[str] = []
        self._places: dict[Path, str] = {}  # where it lies here -> in the bundle
        self._taken: set[str] = set()  # names in the bundle, in lower case
        faults: list[Fault] = []
        moved = with_paths(plan, lambda text: self._place(text, faults))
        if faults:
            raise InputError(faults=faults)
        self._own_methods()
        origin = replace(plan.origin, answers=self._answers(plan.origin.answers))
        self.plan = replace(moved, origin=origin)  # with its paths in the bundle

    def _place(self, text: str, faults: list[Fault]) -> str:
        """Where a path of the plan lies in the bundle."""
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
                place = self._free(f"files/{safe_name(path.stem)}")
                inside = {os.path.relpath(file, path.parent): file for file in together}
                if outside := [str(file) for name, file in inside.items() if name[:2] == ".."]:
                    raise InputError(
                        f"it names {outside[0]}, which is not in its folder",
                        where=str(path),
                        hint="move that file into the folder, so that both can be packed",
                    )
                self._carry(place, path.parent, inside)
                return f"{place}/{path.name}"
        if text in data_of(self._named):
            kind, inside = "data", _data_files(path)
        elif path.is_dir():
            kind, inside = "models", model_files(path)
            if not inside:
                allowed = "a folder in Hugging Face layout, or a hub id"
                raise InputError("holds no model", where=str(path), allowed=allowed)
        else:
            kind, inside = "files", {"": path}
            _refuse_secrets(path)
        place = self._free(f"{kind}/{safe_name(path.name)}")
        self._carry(place, path, inside)
        return place

    def _carry(self, place: str, source: Path, inside: Mapping[str, Path]) -> None:
        """Carry files, by their names inside a place of the bundle."""
        size, contents = total_bytes(inside.values()), read_contents(inside)
        own = {name: self._free(f"{place}/{name}") if name else place for name in sorted(inside)}
        sums = {own[name]: content.sha256 for name, content in contents.items()}
        if size > MOST_BYTES:
            self.left.append((place, source, size))
            self.left_sums |= sums
        else:
            self.files |= {own[name]: path.resolve() for name, path in inside.items()}
            self.sums |= sums

    def _free(self, name: str) -> str:
        """'data/train-2.jsonl' where another file is called data/train.jsonl already."""
        folder, _, last = name.rpartition("/")
        stem, dot, endings = last.partition(".")
        number, unique = 1, name
        while unique.lower() in self._taken:
            number += 1
            unique = f"{folder}/{stem}-{number}{dot}{endings}"
        self._taken.add(unique.lower())
        return unique

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
        """Carry the folders of ADVISE_METHODS that bring a method of this plan."""
        used = [f"objectives/{stage.objective}.yaml" for stage in self._named.stages]
        used += [f"updates/{stage.update}.yaml" for stage in self._named.stages]
        for root in method_roots()[1:]:
            if any((root / "rules" / name).is_file() for name in used):
                inside = source_files(root, ("rules", "trainers", "estimate"))
                for path in inside.values():
                    _refuse_secrets(path)
                self._carry(self._free(f"methods/{safe_name(root.name)}"), root, inside)


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
    return {"/".join(map(safe_name, file.relative_to(path).parts)): file for file in files}


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
