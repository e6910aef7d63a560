"""What a bundle carries: the files that a plan names, each with its place in the bundle and its
digest, and what has to be fetched or copied on the other machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from advisor.data.read.files import find_data
from advisor.data.read.hub import is_hub_id
from advisor.ground.content import model_files, read_contents, total_bytes
from advisor.ground.errors import Fault, InputError
from advisor.ground.extras import extras
from advisor.ground.files import text_of
from advisor.ground.resources import method_roots
from advisor.ground.secrets import masked
from advisor.plan.model import Plan
from advisor.plan.paths import with_paths
from advisor.plan.read import resolve_path

MOST_BYTES = 2 << 30  # of one data set or model; more is named by its digest, not carried
Kind = Literal["data", "models", "files"]
ARROW_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")  # beside Arrow files
# What sha256sum, a shell and an archive take without a word, on every system.
UNSAFE = re.compile(r"[^\w.+@=, -]")
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
YAML = (".yaml", ".yml")  # names of files, never of the hub


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """One file of the bundle, or one that has to be copied there by hand."""

    name: str  # its path in the bundle, with `/`
    source: Path  # where it lies here, links followed
    size_bytes: int
    sha256: str
    is_included: bool


@dataclass(slots=True)
class Contents:
    """The plan with its paths in the bundle, and what these paths hold."""

    plan: Plan
    files: list[Carried] = field(default_factory=list)
    # (model or data set, its name on the hub): fetched on the other machine.
    fetched: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    method_folders: list[str] = field(default_factory=list)  # in the bundle, for ADVISE_METHODS


def contents_of(plan: Plan, plan_path: Path) -> Contents:
    """What the bundle of a plan carries. Nothing is written.

    Raises InputError with every path of the plan that is not there, and for a secret in a file.
    """
    return _Collector(plan, plan_path).contents()


def hub_names(plan: Plan, plan_path: Path) -> list[tuple[str, str]]:
    """(model or data set, its name) of what a plan takes from the hub: no file or folder is called
    so.
    """
    data, found = _data_of(plan), []

    def noted(text: str) -> str:
        kind: Kind = "data" if text in data else "models"
        what = _on_hub(text, kind)
        is_own = text.endswith(YAML) or (plan.launch.vllm and text == plan.launch.vllm.python)
        if what and not is_own and not resolve_path(plan_path, text).exists():
            found.append((what, text))
        return text

    with_paths(plan, noted)
    return list(dict.fromkeys(found))


def _data_of(plan: Plan) -> set[str]:
    """The paths of a plan that are data."""
    return {
        *([plan.data.path] if plan.data else []),
        *(stage.data for stage in plan.stages if stage.data is not None),
        *(task.data.path for task in plan.tasks),
    }


def _on_hub(text: str, kind: Kind) -> str | None:
    """ "model" or "data set" for what may be a name on the hub."""
    if kind == "data":
        return "data set" if is_hub_id(text) else None
    return "model" if MODEL_ID.fullmatch(text) else None


class _Collector:
    """Gives every path of the plan its place in the bundle."""

    def __init__(self, plan: Plan, plan_path: Path) -> None:
        self.plan, self.plan_path = plan, plan_path
        self.found = Contents(plan=plan)
        self.faults: list[Fault] = []
        self.moved: dict[tuple[Kind, str], str] = {}  # what a path was called -> in the bundle
        self.taken: set[str] = set()  # names in the bundle, in lower case
        self.data = _data_of(plan)
        server = plan.launch.vllm
        self.interpreter = server.python if server is not None else None

    def contents(self) -> Contents:
        moved = with_paths(self.plan, self._place)
        places = {text: place for (_, text), place in self.moved.items()}
        origin = replace(self.plan.origin, answers=self._answers(self.plan.origin.answers, places))
        self._own_methods()
        if self.faults:
            raise InputError(faults=dict.fromkeys(self.faults))
        self.found.plan = replace(moved, origin=origin)
        return self.found

    def _place(self, text: str) -> str:
        """Where a path of the plan lies in the bundle."""
        if text == self.interpreter:
            self.found.notes.append(
                f"launch.vllm.python: {text} must be there, or be corrected in plan.yaml"
            )
            return text
        kind: Kind = "data" if text in self.data else "models"
        path = resolve_path(self.plan_path, text)
        for name in self.plan.extras:
            if together := extras()[name].files_with(path.resolve()):
                return self._together(path, together)
        if not path.exists():
            return self._not_here(text, path, kind)
        if kind == "models" and path.is_file():
            kind = "files"
        key = (kind, str(path.resolve()))
        if key not in self.moved:
            try:
                self.moved[key] = self._take(path, kind)
            except InputError as error:
                self.faults += error.faults
                self.moved[key] = text
        self.moved[(kind, text)] = self.moved[key]
        return self.moved[key]

    def _together(self, path: Path, files: Sequence[Path]) -> str:
        """Where a file lies in the bundle, in one folder with the files that it needs."""
        key: tuple[Kind, str] = ("files", str(path.resolve()))
        if key not in self.moved:
            folder = path.resolve().parent
            inside = {}
            for file in files:
                name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""
                if not name or name != "/".join(map(safe_name, name.split("/"))):
                    self.found.notes.append(
                        f"{path.name} names {file.name}, which is not in the"
                        " bundle: put it beside that file, under a name without odd characters"
                    )
                    continue
                inside[name] = file
            place = self._free(f"files/{safe_name(path.stem)}")
            self._carry(place, inside)
            self.moved[key] = f"{place}/{path.name}"
        return self.moved[key]

    def _not_here(self, text: str, path: Path, kind: Kind) -> str:
        """A name on the hub is fetched on the other machine; everything else is a fault."""
        what = None if text.endswith(YAML) else _on_hub(text, kind)
        if what is not None:
            if (what, text) not in self.found.fetched:
                self.found.fetched.append((what, text))
            return text
        return self._missing(text, path)

    def _missing(self, text: str, path: Path) -> str:
        self.faults.append(
            Fault(
                what=f"{self.plan_path.name} names {text}, and there is no {path}",
                allowed="files and folders that are there, or names on the hub",
                hint="correct the plan, then export it again",
            )
        )
        return text

    # ------------------------------------------------------------------------- files

    def _take(self, path: Path, kind: Kind) -> str:
        """Carry a file or folder. Returns its place in the bundle."""
        place = self._free(f"{kind}/{safe_name(path.resolve().name)}")
        if kind == "data":
            inside = _data_files(path)
        elif kind == "models":
            inside = model_files(path)
        else:
            inside = {"": path}
            _refuse_secrets(path)
        if not inside:
            raise InputError(
                "holds no model",
                where=str(path),
                allowed="a folder in Hugging Face layout, or a hub id",
            )
        self._carry(place, inside)
        return place

    def _carry(self, place: str, inside: Mapping[str, Path]) -> None:
        """Carry files, by their names inside a place of the bundle."""
        size = total_bytes(inside.values())
        is_included = size <= MOST_BYTES
        inner: set[str] = set()
        held = read_contents(inside)
        for name, source in sorted(inside.items()):
            own = _unique("/".join(map(safe_name, name.split("/"))), inner) if name else ""
            self.found.files.append(
                Carried(
                    name=f"{place}/{own}" if own else place,
                    source=source.resolve(),
                    size_bytes=source.stat().st_size,
                    sha256=held[name].sha256,
                    is_included=is_included,
                )
            )

    def _free(self, place: str) -> str:
        return _unique(place, self.taken)

    # ------------------------------------------------------------------------- the rest

    def _answers(self, value: Any, places: Mapping[str, str]) -> Any:
        """The answers with paths as in the bundle: those of this machine mean nothing there."""
        if isinstance(value, Mapping):
            return {key: self._answers(part, places) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._answers(part, places) for part in value]
        if not isinstance(value, str):
            return value
        if value in places:
            return places[value]
        path = resolve_path(self.plan_path, value)
        absolute = os.path.isabs(os.path.expanduser(value))
        return places.get(str(path.resolve()), path.name if absolute else value)

    def _own_methods(self) -> None:
        """Carry the folders of ADVISE_METHODS that bring a method of this plan."""
        used = {("objectives", stage.objective) for stage in self.plan.stages}
        used |= {("updates", stage.update) for stage in self.plan.stages}
        for root in method_roots()[1:]:
            if not any((root / "rules" / axis / f"{name}.yaml").is_file() for axis, name in used):
                continue
            place = self._free(f"methods/{safe_name(root.name)}")
            inside = {
                path.relative_to(root).as_posix(): path
                for folder in ("rules", "trainers", "estimate")
                for path in sorted((root / folder).rglob("*"))
                if path.is_file()
                and "__pycache__" not in path.parts
                and not any(part.startswith(".") for part in path.relative_to(root).parts)
            }
            for path in inside.values():
                _refuse_secrets(path)
            self._carry(place, inside)
            self.found.method_folders.append(place)


def _data_files(path: Path) -> dict[str, Path]:
    """Name in the bundle -> file, of the files that are read of a data path and no others."""
    found = find_data(path)
    if not path.is_dir():
        return {"": path}
    files = [file.path for file in found.files]
    if found.container == "arrow":
        folders = {folder for file in files for folder in (file.parent, file.parent.parent, path)}
        files += [
            folder / note
            for folder in folders
            for note in ARROW_NOTES
            if folder.is_relative_to(path) and (folder / note).is_file()
        ]
    return {file.relative_to(path).as_posix(): file for file in files}


def _refuse_secrets(path: Path) -> None:
    """Raise InputError if a file of the user's own code holds what looks like a secret."""
    text = text_of(path, errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if masked(line) != line:
            raise InputError(
                "this looks like a secret, and a bundle is made to be copied",
                where=f"{path}:{number}",
                hint="let the code read it from the environment: os.environ['NAME']",
            )


def safe_name(name: str) -> str:
    """A file name that every tool on the way takes as it is."""
    plain = UNSAFE.sub("_", name).strip(" ")
    return f"_{plain}" if plain[:1] in ("-", ".", "") else plain


def _unique(name: str, taken: set[str]) -> str:
    """'data/train-2.jsonl' where another file is called data/train.jsonl already."""
    folder, _, last = name.rpartition("/")
    stem, dot, endings = last.partition(".")
    number, unique = 1, name
    while unique.lower() in taken:
        number += 1
        unique = "/".join(filter(None, (folder, f"{stem}-{number}{dot}{endings}")))
    taken.add(unique.lower())
    return unique
