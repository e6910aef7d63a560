"""What the data sets of a configuration hold, as far as they are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from advisor.extras.other_tools.file import Command, ToolFile
from advisor.extras.other_tools.mapping import CHAT, Lost
from advisor.extras.other_tools.named_data import FILE, DataRef, data_of
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import DataProfile

if TYPE_CHECKING:
    from advisor.data.recognition.recognise import DataSet


class RecognisedSet(NamedTuple):
    """What a data set that is here holds, in our words."""

    recognition: DataSet | None = None
    mapping: Mapping[str, str] | None = None  # of a plan; None: the names of the columns say it
    why_not: str = ""  # it could not be read: what our reader says


def recognise_set(ref: DataRef) -> RecognisedSet:
    """A data set that is here, recognised from a sample of its rows."""
    if ref.place != FILE or not ref.path:
        return RecognisedSet(why_not="it is not one file or folder that is here")
    from advisor.data.recognition.recognise import recognise

    recognition, why = None, ""
    try:
        recognition = recognise(ref.path)
    except AdviseError as error:
        why = error.faults[0].headline
    columns = recognition.columns if recognition is not None else _columns(ref.path)
    stated = {role: column for role, column in ref.roles.items() if column in columns}
    if not stated or (recognition is not None and dict(recognition.mapping) == stated):
        return RecognisedSet(recognition, None, why)
    try:
        return RecognisedSet(recognise(ref.path, mapping=stated), stated)
    except AdviseError as error:
        return RecognisedSet(recognition, None, "" if recognition else error.faults[0].headline)


def look_for_columns(file: ToolFile, ref: DataRef, found: DataSet | None) -> None:
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
class MeasuredData:
    """What a configuration trains on, as far as it is here."""

    words: list[str] = field(default_factory=list)
    profile: DataProfile | None = None
    plan: dict[str, Any] | None = None  # `data` of a plan
    notes: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)  # what a plan cannot say of it
    holds_out: bool = False  # rows to measure on are named
    kind: str = "rows"  # what the rows are: text, chat or rows


def measure_data(file: ToolFile) -> MeasuredData:
    """The first data that are here, measured; they settle a command that the keys leave open."""
    from advisor.data import profile as profile_of

    found = data_of(file)
    data = MeasuredData(notes=list(found.notes), holds_out=found.train != found.refs)
    data.lost += [Lost(key="data", value=None, why=one) for one in found.lost]
    for ref in found.train:
        data.words.append(ref.named or ref.key)
        one = recognise_set(ref) if ref.place == FILE else None
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
