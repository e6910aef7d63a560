"""From values to a ToolFile: the release, the command, and what had to be assumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.other_tools.data.reading import data_of, understood
from advisor.other_tools.data.refs import FILE
from advisor.other_tools.reading.recognise import Recognised
from advisor.other_tools.reading.their_yaml import TheirText
from advisor.other_tools.reading.tool_file import ToolFile
from advisor.other_tools.tables.commands import (
    Command,
    by_data,
    command_of,
    in_comments,
    refuse_other_purposes,
)
from advisor.other_tools.tables.keys import keys_of, newest
from advisor.other_tools.tables.tool import tool_named


def made_file(
    found: Recognised,
    path: Path,
    name: str,
    *,
    text: str,
    values: dict[str, Any],
    read: TheirText,
    command: str | None = None,
) -> ToolFile:
    """A file of the recognised tool with these values; nothing of them is checked yet.

    Raises InputError for one that trains nothing.
    """
    release = newest(found.tool)

    def made(chosen: Command) -> ToolFile:
        return ToolFile(
            path=path,
            name=name,
            text=text,
            tool=found.tool,
            release=release,
            command=chosen,
            keys=keys_of(release, chosen.name, plugins=_plugins(values)),
            values=values,
            written=values,
            key_marks=read.key_marks,
            value_marks=read.value_marks,
        )

    chosen = command_of(release, values, stated=command or in_comments(release, text))
    refuse_other_purposes(chosen, name)
    if chosen.likely:
        chosen = by_data(release, chosen, _kind_of_data(made(chosen)))
    file = made(chosen)
    _say_assumed(file, found)
    return file


def _kind_of_data(file: ToolFile) -> str:
    """Of the first data set that is here; empty if none is."""
    for ref in data_of(file).train:
        recognition = understood(ref).recognition if ref.place == FILE else None
        if recognition is not None:
            return recognition.kind
    return ""


def _plugins(values: Mapping[str, Any]) -> list[str]:
    named = values.get("plugins")
    return [one for one in named if isinstance(one, str)] if isinstance(named, list) else []


def _say_assumed(file: ToolFile, found: Recognised) -> None:
    if not found.is_sure:
        file.notes.append(f"read as a file of {tool_named(file.tool).name}: {found.why}")
    file.notes.append(f"checked with the keys of {file.title}, the newest release known here")
    if file.command.assumed:
        file.notes.append(file.command.assumed)
