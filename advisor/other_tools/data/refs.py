"""The data sets that a configuration names, and where they are: here, on the hub, or not at all."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.other_tools.reading.tool_file import KeyFault, ToolFile

FILE, HUB, MISSING, ELSEWHERE = "file", "hub", "missing", "elsewhere"
MAX_FILES = 200  # of one data set
MAX_LOOKED_AT = 20_000  # entries of folders, for one pattern
UP = 4  # folders above the file in which a relative path is looked for
REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "adl://", "oci://", "http://", "https://")
# Builders of `datasets`, whose files are named apart.
BUILDERS = ("json", "csv", "parquet", "arrow", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRef:
    """One data set that a file names.

    Attributes:
        key: The dotted key that names it.
        named: Its name there.
        evaluates: It is measured on, not trained on.
        place: file (it is here), hub, missing (a path that is not here) or elsewhere.
        files: What is here: files, or one folder.
        hub: The id on the model hub, with a folder behind it for a configuration of it.
        form: The tool's word for its format, or what it goes by.
        roles: Role of ours -> the column in which the tool looks for it. Empty: by our own reading.
        needs: Sets of columns of which the tool must find one whole. Empty: anything goes.
        lost: What a plan cannot say of it: sentences.
        why_not: Why a plan cannot hold it at all.
    """

    key: str
    named: str
    evaluates: bool = False
    place: str = MISSING
    files: tuple[Path, ...] = ()
    hub: str = ""
    form: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[tuple[str, ...], ...] = ()
    lost: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def path(self) -> str:
        """What a plan names: a file, a folder or a hub id; empty if there is no such thing."""
        if self.place == HUB:
            return self.hub
        if len(self.files) == 1:
            return os.fspath(self.files[0])
        return _own_folder(self.files)


def _own_folder(files: Sequence[Path]) -> str:
    """The folder that holds these files and no other ones; empty if there is none."""
    folders = {path.parent for path in files}
    if len(folders) != 1:
        return ""
    (folder,) = folders
    try:
        inside = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError:
        return ""
    return os.fspath(folder) if inside == {path.name for path in files} else ""


@dataclass(kw_only=True, slots=True)
class FileData:
    """All data sets of a file."""

    refs: list[DataRef] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # of how they are mixed: sentences
    notes: list[str] = field(default_factory=list)
    faults: list[KeyFault] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # of the file that were read here
    folder: str = ""  # where its data are, if that is not where it says

    @property
    def train(self) -> list[DataRef]:
        """Those that are trained on."""
        return [ref for ref in self.refs if not ref.evaluates]

    @property
    def evaluation(self) -> list[DataRef]:
        """Those that are measured on."""
        return [ref for ref in self.refs if ref.evaluates]


# --------------------------------------------------------------------------- finding


def placed(
    file: ToolFile, named: str, *, inside: str = "", files: Sequence[str] = ()
) -> dict[str, Any]:
    """Where a data set is, as arguments of DataRef.

    Args:
        named: A path or a hub id, as the file says it.
        inside: A folder that paths are meant from.
        files: File names that stand beside it (`data_files`), which may be patterns.
    """
    if named.startswith(REMOTE) or any(one.startswith(REMOTE) for one in files):
        return {"place": ELSEWHERE, "why_not": "it is on another machine: download it first"}
    if files and (named in BUILDERS or not named or found_at(file, named) is None):
        wanted = list(files)
        if named not in BUILDERS and named and is_hub_id(named):
            return {"place": HUB, "hub": named, "lost": (f"only its files {', '.join(files)}",)}
    elif files:
        wanted = [os.path.join(named, one) for one in files]
    else:
        wanted = [os.path.join(inside, named) if inside else named]
    here = [path for one in wanted for path in _matches(file, one)]
    if here:
        return {"place": FILE, "files": tuple(here[:MAX_FILES])}
    if not files and not inside and is_hub_id(named):
        return {"place": HUB, "hub": named}
    return {"place": MISSING}


def found_at(file: ToolFile, named: str) -> Path | None:
    """The file or folder of that name that a configuration means."""
    return found_near(file.path, named)


def found_near(path: Path, named: str) -> Path | None:
    """The file or folder of that name: beside the file at `path`, in a folder above it, or in the
    current one.
    """
    if not named or "\0" in named or len(named) > 1000:
        return None
    try:
        wanted = Path(named).expanduser()
    except RuntimeError:  # a user whose home is not known
        return None
    for folder in _folders(path, wanted):
        try:
            if (folder / wanted).exists():
                return folder / wanted
        except OSError:
            continue
    return None


def _folders(path: Path, wanted: Path) -> list[Path]:
    if wanted.is_absolute():
        return [Path("/")]
    own = path.absolute().parent
    return list(dict.fromkeys((path.parent, Path(), own, *list(own.parents)[:UP])))


def _matches(file: ToolFile, named: str) -> list[Path]:
    """The files of a name, which may be a pattern such as data/*.jsonl."""
    if not any(mark in named for mark in "*?["):
        one = found_at(file, named)
        return [] if one is None else [one]
    if "\0" in named or len(named) > 1000 or "**" in named:
        return []
    for folder in _folders(file.path, Path(named)):
        matched = _matched(folder, named)
        if matched:
            return matched
    return []


def _matched(folder: Path, pattern: str) -> list[Path]:
    """What a pattern names, one folder of it after the other; of a pattern over a whole disk only
    what is found among the first MAX_LOOKED_AT entries.
    """
    start = Path(pattern).anchor
    found, left = [Path(start) if start else folder], MAX_LOOKED_AT
    parts = Path(pattern).parts[1 if start else 0 :]
    for place, part in enumerate(parts):
        if not any(mark in part for mark in "*?["):
            found = [one / part for one in found if _is_there(one / part)]
            continue
        regex, below = re.compile(fnmatch.translate(part)), list[Path]()
        for one in found:
            with suppress(OSError), os.scandir(one) as entries:
                for entry in itertools.islice(entries, left):
                    left -= 1
                    hidden = entry.name.startswith(".") and not part.startswith(".")
                    if hidden or not regex.match(entry.name):
                        continue
                    if place == len(parts) - 1 or entry.is_dir():
                        below.append(one / entry.name)
        found = below
    return sorted(found)[:MAX_FILES]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def names(value: Any) -> list[str]:
    """A text, a list of texts or a map of them as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [inner for one in value for inner in names(one)]
    return []


def text(value: Any) -> str:
    """A text; an empty one for anything else."""
    return value if isinstance(value, str) else ""
