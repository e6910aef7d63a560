"""What a configuration trains on: every data set that it names, found here or not, and how a plan
can hold it. `data_of` is the way in; how a tool names its data is in tools/, in the module with its
name.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.file import ToolFile, folders_of, found_near
from advisor.extras.other_tools.findings import Found
from advisor.extras.other_tools.recognise import Command
from advisor.ground.errors import AdviseError

if TYPE_CHECKING:
    from advisor.data.recognition.recognise import Recognition

FILE, HUB, MISSING, ELSEWHERE = "file", "hub", "missing", "elsewhere"
MAX_FILES = 200  # of one data set
MAX_LOOKED_AT = 20_000  # entries of folders, for one pattern
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
    folder: str = ""  # where its data are, if that is not where it says

    @property
    def train(self) -> list[DataRef]:
        """Those that are trained on."""
        return [ref for ref in self.refs if not ref.evaluates]

    @property
    def evaluation(self) -> list[DataRef]:
        """Those that are measured on."""
        return [ref for ref in self.refs if ref.evaluates]


# --------------------------------------------------------------------------- where they are


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
    if files and (named in BUILDERS or not named or found_near(file.path, named) is None):
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


def _matches(file: ToolFile, named: str) -> list[Path]:
    """The files of a name, which may be a pattern such as data/*.jsonl."""
    if not any(mark in named for mark in "*?["):
        one = found_near(file.path, named)
        return [] if one is None else [one]
    if "\0" in named or len(named) > 1000 or "**" in named:
        return []
    for folder in folders_of(file.path, Path(named)):
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


# --------------------------------------------------------------------------- what they are


def data_of(file: ToolFile) -> FileData:
    """What the file trains and measures on, and what is wrong with how it names it (in the file's
    faults). Reads no rows; see `understood`.
    """
    found: FileData = import_module(f"advisor.extras.other_tools.tools.{file.tool}").read_data(file)
    for ref in found.refs:
        if ref.place == MISSING and ref.named and not ref.why_not:
            file.fault(
                "warning", ref.key,
                f"'{ref.named}' is not here: looked for beside the file, in the folders above it"
                " and in the current one; without its rows, time and lengths are not known",
            )  # fmt: skip
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Understood:
    """A data set that is here, in our words."""

    ref: DataRef
    recognition: Recognition | None = None
    mapping: Mapping[str, str] | None = None  # of a plan; None: the names of the columns say it
    why_not: str = ""  # it could not be read: what our reader says


def understood(ref: DataRef) -> Understood:
    """A data set that is here, recognised from a sample of its rows."""
    if ref.place != FILE or not ref.path:
        return Understood(ref=ref, why_not="it is not one file or folder that is here")
    from advisor.data.recognition.recognise import recognise

    recognition, why = None, ""
    try:
        recognition = recognise(ref.path)
    except AdviseError as error:
        why = error.faults[0].headline
    columns = recognition.columns if recognition is not None else _columns(ref.path)
    stated = {role: column for role, column in ref.roles.items() if column in columns}
    same = recognition is not None and dict(recognition.mapping) == stated
    if not stated or same:
        return Understood(ref=ref, recognition=recognition, why_not=why)
    try:
        return Understood(ref=ref, recognition=recognise(ref.path, mapping=stated), mapping=stated)
    except AdviseError as error:
        if recognition is not None:
            return Understood(ref=ref, recognition=recognition)
        return Understood(ref=ref, why_not=error.faults[0].headline)


def column_faults(file: ToolFile, one: Understood) -> list[Found]:
    """What the tool will not find in the rows."""
    found = one.recognition
    if found is None or not one.ref.needs or not found.columns or found.container == "text":
        return []
    if any(set(wanted) <= set(found.columns) for wanted in one.ref.needs):
        return []
    wanted = " or ".join(" + ".join(names) for names in one.ref.needs)
    what = f"{file.about.title} looks for the columns {wanted} in {one.ref.named}"
    text = f"{what}, and does not find them; its columns: {', '.join(found.columns[:12])}"
    where, key = file.at(one.ref.key), f"key/{one.ref.key}"
    return [Found(id=key, severity="error", refused=True, text=text, where=where)]


# Kind of data -> the command of TRL that trains on such rows.
BY_DATA = {
    "preference": "dpo", "unpaired_feedback": "kto", "prompts_with_verifier": "grpo",
}  # fmt: skip


def command_by_data(file: ToolFile) -> Command:
    """The file's command; of several likely ones that which trains on the rows that are here."""
    if not file.command.likely:
        return file.command
    refs: FileData = import_module(f"advisor.extras.other_tools.tools.{file.tool}").read_data(file)
    kinds = [one.kind for ref in refs.train if (one := understood(ref).recognition) is not None]
    name = BY_DATA.get(kinds[0]) if kinds else None
    if name is None or name not in file.command.likely or name == file.command.name:
        return file.command
    return Command(
        name=name, assumed=f"read as a file of `{file.tool} {name}`: its data are such rows"
    )


def _columns(path: str) -> tuple[str, ...]:
    """The columns of a file whose roles are not clear; empty if it cannot be read."""
    from advisor.data.read.files import find_data
    from advisor.data.read.lines import Faults
    from advisor.data.recognition.recognise import sample_rows

    try:
        rows = sample_rows(find_data(path), Faults())
    except AdviseError:
        return ()
    return tuple(dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row))
