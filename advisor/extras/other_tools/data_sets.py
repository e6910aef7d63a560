"""What a configuration trains on: every data set that it names, found here or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.file import Command, ToolFile, found_near
from advisor.extras.other_tools.mapping import CHAT, Lost
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import DataProfile

if TYPE_CHECKING:
    from advisor.data.recognition.recognise import Recognition

FILE, HUB, MISSING, ELSEWHERE = "file", "hub", "missing", "elsewhere"
MAX_FILES = 200  # of one data set
REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "adl://", "oci://", "http://", "https://")
# Builders of `datasets`, whose files are named apart.
BUILDERS = ("json", "csv", "parquet", "arrow", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRef:
    """One data set that a file names."""

    key: str  # the dotted key that names it
    named: str  # its name there
    evaluates: bool = False  # it is measured on, not trained on
    place: str = MISSING  # file (it is here), hub, missing (it is not), or elsewhere
    files: tuple[Path, ...] = ()  # what is here: files, or one folder
    hub: str = ""  # the id on the model hub, with a folder behind it for a configuration of it
    roles: Mapping[str, str] = field(default_factory=dict)  # role of ours -> column; empty: by name
    needs: tuple[tuple[str, ...], ...] = ()  # sets of columns, of which it must find one whole
    lost: tuple[str, ...] = ()  # what a plan cannot say of it: sentences
    why_not: str = ""  # why a plan cannot hold it at all

    @property
    def path(self) -> str:
        """What a plan names: a file, a folder or a hub id; empty if there is no such thing."""
        if self.place == HUB:
            return self.hub
        if len(self.files) == 1:
            return os.fspath(self.files[0])
        folders = {path.parent for path in self.files}
        for folder in folders if len(folders) == 1 else ():
            with suppress(OSError):  # a folder that holds these files and no other ones
                inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
                return os.fspath(folder) if set(inside) == set(self.files) else ""
        return ""


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


def placed(
    file: ToolFile, named: str, *, inside: str = "", files: Sequence[str] = ()
) -> dict[str, Any]:
    """Where a data set is, as arguments of DataRef; `files` stand beside it (`data_files`)."""
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
    """The files of a name, whose last part may be a pattern: data/*.jsonl."""
    folder, pattern = os.path.split(named)
    if not any(mark in named for mark in "*?["):
        one = found_near(file.path, named)
        return [] if one is None else [one]
    start = found_near(file.path, folder or ".")
    if start is None:
        return []
    with suppress(OSError):
        inside = [one for one in start.iterdir() if not one.name.startswith(".")]
        return sorted(one for one in inside if fnmatchcase(one.name, pattern))[:MAX_FILES]
    return []


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


def data_of(file: ToolFile) -> FileData:
    """What the file trains and measures on; faults of it go to the file. Reads no rows."""
    found: FileData = import_module(f"advisor.extras.other_tools.{file.tool}").read_data(file)
    for ref in found.refs:
        if ref.place == MISSING and ref.named and not ref.why_not:
            file.fault(
                "warning", ref.key,
                f"'{ref.named}' is not here: looked for beside the file, in the folders above it"
                " and in the current one; without its rows, time and lengths are not known",
            )  # fmt: skip
    return found


class Understood(NamedTuple):
    """What a data set that is here holds, in our words."""

    recognition: Recognition | None = None
    mapping: Mapping[str, str] | None = None  # of a plan; None: the names of the columns say it
    why_not: str = ""  # it could not be read: what our reader says


def understood(ref: DataRef) -> Understood:
    """A data set that is here, recognised from a sample of its rows."""
    if ref.place != FILE or not ref.path:
        return Understood(why_not="it is not one file or folder that is here")
    from advisor.data.recognition.recognise import recognise

    recognition, why = None, ""
    try:
        recognition = recognise(ref.path)
    except AdviseError as error:
        why = error.faults[0].headline
    columns = recognition.columns if recognition is not None else _columns(ref.path)
    stated = {role: column for role, column in ref.roles.items() if column in columns}
    if not stated or (recognition is not None and dict(recognition.mapping) == stated):
        return Understood(recognition, None, why)
    try:
        return Understood(recognise(ref.path, mapping=stated), stated)
    except AdviseError as error:
        return Understood(recognition, None, "" if recognition else error.faults[0].headline)


def look_for_columns(file: ToolFile, ref: DataRef, found: Recognition | None) -> None:
    """Say what the tool will not find in the rows."""
    if found is None or not ref.needs or not found.columns or found.container == "text":
        return
    if any(set(wanted) <= set(found.columns) for wanted in ref.needs):
        return
    wanted = " or ".join(" + ".join(names) for names in ref.needs)
    what = f"{file.about.title} looks for the columns {wanted} in {ref.named}"
    columns = ", ".join(found.columns[:12])
    file.fault("error", ref.key, f"{what}, and does not find them; its columns: {columns}")


def _columns(path: str) -> tuple[str, ...]:
    """The columns of a file whose roles are not clear; empty if it cannot be read."""
    from advisor.data.read.lines import Faults
    from advisor.data.read.source import find_data
    from advisor.data.recognition.recognise import sample_rows

    try:
        rows = sample_rows(find_data(path), Faults())
    except AdviseError:
        return ()
    return tuple(dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row))


# Kind of data -> the command of TRL that trains on such rows.
BY_DATA = {
    "preference": "dpo", "unpaired_feedback": "kto", "prompts_with_verifier": "grpo",
}  # fmt: skip
OWN_ROWS = "a plan measures on rows of its own data, held out by `holdout`"
ONE_SET = "a plan trains on one file, folder or hub data set"


@dataclass(kw_only=True, slots=True)
class Measured:
    """What a configuration trains on, as far as it is here."""

    words: list[str] = field(default_factory=list)
    profile: DataProfile | None = None
    plan: dict[str, Any] | None = None  # `data` of a plan
    notes: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)  # what a plan cannot say of it
    holds_out: bool = False  # rows to measure on are named
    kind: str = "rows"  # what the rows are: text, chat or rows


def measured(file: ToolFile) -> Measured:
    """The first data that are here, measured; they settle a command that the keys leave open."""
    from advisor.data import profile as profile_of

    found = data_of(file)
    data = Measured(notes=list(found.notes), holds_out=found.train != found.refs)
    data.lost += [Lost(key="data", value=None, why=one) for one in found.lost]
    for ref in found.train:
        data.words.append(ref.named or ref.key)
        one = understood(ref) if ref.place == FILE else None
        mapping = one.mapping if one is not None else None
        data.lost += [Lost(key=ref.key, value=ref.named, why=why) for why in ref.lost]
        if ref.path and not ref.why_not and data.plan is not None:
            data.lost.append(Lost(key=ref.key, value=ref.named, why=ONE_SET))
        elif ref.path and not ref.why_not:
            data.plan = {"path": ref.path, **({"mapping": dict(mapping)} if mapping else {})}
        if one is None:
            continue
        look_for_columns(file, ref, one.recognition)
        if data.profile is not None:
            first = data.words[0]
            data.notes.append(f"{ref.named} is not measured: time and lengths are those of {first}")
            continue
        try:
            if one.why_not:
                raise InputError(one.why_not)
            data.profile = profile_of(ref.path, mapping=mapping)
        except AdviseError as error:
            data.notes.append(f"{ref.named} cannot be read: {error}")
    data.lost += [
        Lost(key=ref.key, value=ref.named, why=OWN_ROWS) for ref in found.refs if ref.evaluates
    ]
    if found.train and all(set(ref.roles) == {"text"} for ref in found.train):
        data.kind = "text"  # texts without requests, as the file itself says
    elif data.profile is not None:
        is_chat = data.profile.format in CHAT
        data.kind = "text" if data.profile.kind == "raw_text" else "chat" if is_chat else "rows"
    name = BY_DATA.get(data.profile.kind) if data.profile is not None else None
    if name in file.command.likely and name != file.command.name:
        said = f"read as a file of `{file.tool} {name}`: its data are such rows"
        file.command = Command(name=name, assumed=said)
    return data
