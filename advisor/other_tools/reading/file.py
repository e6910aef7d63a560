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
from advisor.other_tools.reading.hidden import secret_paths, without_secrets
from advisor.other_tools.reading.key_faults import check_keys
from advisor.other_tools.reading.made_file import made_file
from advisor.other_tools.reading.recognise import not_read, read_tools, recognised
from advisor.other_tools.reading.references import References, fill_in
from advisor.other_tools.reading.script import read_script
from advisor.other_tools.reading.their_yaml import (
    LOADERS,
    PYYAML,
    Surprise,
    read_text,
    their_text,
)
from advisor.other_tools.reading.tool_file import KeyFault, ToolFile, dotted
from advisor.other_tools.tables.tool import tool_named

CONFIGURATIONS = (".yaml", ".yml", ".json")


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
    environment = os.environ if environment is None else environment
    text = read_text(where, name=name)
    if where.suffix.lower() not in CONFIGURATIONS:
        return read_script(text, where, name, environment=environment)
    read = their_text(text, name=name)
    if not isinstance(read.values, dict):
        raise InputError(
            f"it holds {_kind(read.values)}, no map of keys and values",
            f"read are files of {read_tools()}",
            where=name,
        )
    found = recognised(read.values, tool=tool)
    if not found.tool:
        raise not_read(name, found)
    loader = LOADERS[tool_named(found.tool).parsing["loader"]]
    if loader is not PYYAML:
        read = their_text(text, name=name, loader=loader)
    values, references = fill_in(read.values, environment)
    secrets = secret_paths(read.values) | secret_paths(values)
    values, read.values = without_secrets(values), without_secrets(read.values)
    file = made_file(found, where, name, text=text, values=values, read=read, command=command)
    file.written, file.secrets = read.values, frozenset(secrets)
    file.open = {dotted(at): written for at, written in references.open.items()}
    _say_surprises(file, read.surprises)
    _say_references(file, references)
    check_keys(file)
    return file


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
        is_own = "environment" not in source  # what a machine holds is not repeated
        shown = f"as {value}, " if is_own else "with what this machine holds, "
        file.fault(
            "warning",
            path,
            f"{tool_named(file.tool).name} does not fill in {written}: it takes the text as it is",
            hint=f"here it is read {shown}from {source}; write the value",
            instead={key: value} if is_own else {},
        )
    for path, written in references.open.items():
        file.fault(
            "warning",
            path,
            f"{tool_named(file.tool).name} does not fill in {written}: it takes the text as it is",
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
