"""What a configuration trains on: every data set that it names, found here or not, and how a plan
can hold it. `data_of` is the way in; how a tool names its data is in the module with its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from advisor.ground.errors import AdviseError
from advisor.other_tools.data.refs import FILE, MISSING, DataRef, FileData
from advisor.other_tools.reading.tool_file import KeyFault, ToolFile

if TYPE_CHECKING:
    from advisor.data.recognition.recognise import Recognition


class Reader(Protocol):
    """A module of this folder with the name of a tool."""

    def read_data(self, file: ToolFile) -> FileData:
        """The data sets that a file of the tool names, and what is wrong with their keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Understood:
    """A data set that is here, in our words."""

    ref: DataRef
    recognition: Recognition | None = None
    mapping: Mapping[str, str] | None = None  # of a plan; None: the names of the columns say it
    why_not: str = ""  # it could not be read: what our reader says


def data_of(file: ToolFile) -> FileData:
    """What the file trains and measures on. Reads no rows; see `understood`."""
    reader = cast(Reader, import_module(f"advisor.other_tools.data.{file.tool}"))
    found = reader.read_data(file)
    found.faults += _missing(file, found)
    return found


def _missing(file: ToolFile, data: FileData) -> Iterator[KeyFault]:
    for ref in data.refs:
        if ref.place == MISSING and ref.named and not ref.why_not:
            yield KeyFault(
                severity="warning",
                key=ref.key,
                where=file.at(ref.key),
                what=f"'{ref.named}' is not here",
                hint=(
                    "looked for beside the file, in the folders above it and in the current one;"
                    " without its rows, time and lengths are not known"
                ),
            )


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


def column_faults(file: ToolFile, one: Understood) -> list[KeyFault]:
    """What the tool will not find in the rows."""
    found = one.recognition
    if found is None or not one.ref.needs or not found.columns or found.container == "text":
        return []
    if any(set(wanted) <= set(found.columns) for wanted in one.ref.needs):
        return []
    wanted = " or ".join(" + ".join(names) for names in one.ref.needs)
    return [
        KeyFault(
            severity="error",
            key=one.ref.key,
            where=file.at(one.ref.key),
            what=f"{file.title} looks for the columns {wanted} in {one.ref.named}, and does not"
            " find them",
            allowed=f"its columns: {', '.join(found.columns[:12])}",
            hint="rename the columns of the rows",
        )
    ]


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
