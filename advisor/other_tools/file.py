"""A configuration file of another tool, read: `read_file` is the way in.

What is wrong with its keys is in `faults`, each at its place in the file; the file is answered all
the same, with what could be read of it. Only a file that no loader reads, or that is for no tool
that we know, is an error (InputError).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.yaml_reader import Path_
from advisor.other_tools.commands import (
    Command,
    by_data,
    command_of,
    refuse_other_purposes,
)
from advisor.other_tools.data_reading import data_of, understood
from advisor.other_tools.data_refs import FILE
from advisor.other_tools.key_faults import check_keys
from advisor.other_tools.keys import keys_of, newest
from advisor.other_tools.recognise import NAMES, READ, Recognised, not_read, recognised
from advisor.other_tools.references import References, fill_in
from advisor.other_tools.their_yaml import (
    LOADERS,
    PYYAML,
    Surprise,
    read_text,
    their_text,
)
from advisor.other_tools.tool import tool_named
from advisor.other_tools.tool_file import KeyFault, ToolFile, dotted


def read_file(
    path: str | os.PathLike[str],
    *,
    tool: str | None = None,
    command: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> ToolFile:
    """The file, read as its tool reads it.

    Args:
        path: A YAML or JSON file, or a shell script that starts one of the tools.
        tool: Whose it is, if its keys should not decide.
        command: What the tool is asked to do (TRL: sft, dpo, ...), if the keys should not decide.
        environment: Values of `${NAME}`; default: those of this process.

    Raises InputError for what is no such file, or trains nothing: it says what the file is and what
    can be done.
    """
    where, name = Path(path), os.fspath(path)
    text = read_text(where, name=name)
    if where.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise not_a_file(name)
    read = their_text(text, name=name)
    if not isinstance(read.values, dict):
        raise InputError(
            f"it holds {_kind(read.values)}, no map of keys and values",
            f"read are files of {READ}",
            where=name,
        )
    found = recognised(read.values, tool=tool)
    if not found.tool:
        raise not_read(name, found)
    loader = LOADERS[tool_named(found.tool).parsing["loader"]]
    if loader is not PYYAML:
        read = their_text(text, name=name, loader=loader)
    values, references = fill_in(read.values, os.environ if environment is None else environment)
    release = newest(found.tool)

    def made(chosen: Command) -> ToolFile:
        return ToolFile(
            path=where,
            name=name,
            text=text,
            tool=found.tool,
            release=release,
            command=chosen,
            keys=keys_of(release, chosen.name, plugins=_plugins(values)),
            values=values,
            written=read.values,
            key_marks=read.key_marks,
            value_marks=read.value_marks,
            open={dotted(at): written for at, written in references.open.items()},
        )

    chosen = command_of(release, values, stated=command)
    refuse_other_purposes(chosen, name)
    if chosen.likely:
        chosen = by_data(release, chosen, _kind_of_data(made(chosen)))
    file = made(chosen)
    _say_assumed(file, found)
    _say_surprises(file, read.surprises)
    _say_references(file, references)
    check_keys(file)
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
        file.notes.append(f"read as a file of {NAMES[file.tool]}: {found.why}")
    file.notes.append(f"checked with the keys of {file.title}, the newest release known here")
    if file.command.assumed:
        file.notes.append(file.command.assumed)


def _say_surprises(file: ToolFile, surprises: Sequence[Surprise]) -> None:
    for one in surprises:
        file.faults.append(
            KeyFault(
                severity="error" if one.refused else "warning",
                key=dotted(one.path),
                where=f"{file.name}:{one.mark[0]}:{one.mark[1]}",
                what=one.what,
                hint=one.hint,
            )
        )


def _say_references(file: ToolFile, references: References) -> None:
    for path, (written, source) in references.filled.items():
        key = dotted(path)
        value = _at(file.values, path)
        file.fault(
            "warning",
            path,
            f"{NAMES[file.tool]} does not fill in {written}: it takes the text as it is",
            hint=f"here it is read as {value}, from {source}; write the value",
            instead={key: value},
        )
    for path, written in references.open.items():
        file.fault(
            "warning",
            path,
            f"{NAMES[file.tool]} does not fill in {written}: it takes the text as it is",
            hint="write the value, or check the file that another program filled in",
        )


def _at(values: Any, path: Path_) -> Any:
    for step in path:
        values = values[step]
    return values


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else "one value"


def not_a_file(name: str) -> InputError:
    """The error of a file of another kind."""
    return InputError(
        "not a configuration file",
        f"read are YAML and JSON files of {READ}",
        where=name,
    )
