"""A script that starts a tool, read as the configuration that it gives the tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.yaml_reader import Path_
from advisor.other_tools.data.refs import found_near
from advisor.other_tools.reading.command_line import CommandLine, command_lines
from advisor.other_tools.reading.hidden import without_secrets
from advisor.other_tools.reading.key_faults import FLAGS, as_number, check_keys
from advisor.other_tools.reading.made_file import made_file
from advisor.other_tools.reading.recognise import Recognised, read_tools
from advisor.other_tools.reading.references import References, fill_in
from advisor.other_tools.reading.their_yaml import LOADERS, TheirText, read_text, their_text
from advisor.other_tools.reading.tool_file import ToolFile, dotted
from advisor.other_tools.tables.keys import Key
from advisor.other_tools.tables.tool import tool_named

HERE = "a shell script that starts one of them: `trl sft ...`, `llamafactory-cli train ...`"


def read_script(text: str, path: Path, name: str, *, environment: Mapping[str, str]) -> ToolFile:
    """The first command of a script that starts a tool, as a file of that tool.

    Raises InputError for a script with no such command.
    """
    found = command_lines(text)
    if not found:
        raise InputError(
            "nothing in it starts a tool that is read here",
            f"read are YAML and JSON files of {read_tools()}, and {HERE}",
            "Python code is not read: give the values as such a file",
            where=name,
        )
    one = found[0]
    read = _with_its_file(one, path)
    known = {**environment, **one.variables}
    values, references = fill_in(read.values, known)
    values, read.values = without_secrets(values), without_secrets(read.values)
    file = made_file(
        Recognised(tool=one.tool, why="the script starts it"),
        path, name, text="", values=values, read=read, command=one.command or None,
    )  # fmt: skip
    file.script, file.written = text, dict(read.values)
    if one.tool != "axolotl" and not one.config:
        file.way = "argparse"
    _as_parsed(file, set(one.values))
    file.open = {dotted(at): written for at, written in references.open.items()}
    _say_what_was_read(file, found, references)
    check_keys(file)
    file.text = _as_file(file)
    return file


def _with_its_file(one: CommandLine, path: Path) -> TheirText:
    """What the flags say over what the file says that is given with them."""
    read = TheirText(values={}, key_marks=dict(one.key_marks))
    if one.config:
        beside = found_near(path, one.config)
        if beside is None:
            raise InputError(
                f"it starts {tool_named(one.tool).name} with {one.config}, which is not here",
                hint="give that file to `advise check`, or put it beside the script",
                where=str(path),
            )
        loader = LOADERS[tool_named(one.tool).parsing["loader"]]
        base = their_text(read_text(beside, name=str(beside)), name=str(beside), loader=loader)
        if isinstance(base.values, dict):
            read.values |= base.values
        read.surprises = base.surprises
    for key, value in one.values.items():
        if one.config and isinstance(value, str):
            value = _scalar(value, one.tool)  # OmegaConf and click make values of texts
        read.values[key] = value
    return read


def _scalar(text: str, tool: str) -> Any:
    loader = LOADERS[tool_named(tool).parsing["loader"]]
    try:
        value = their_text(text, name="value", loader=loader).values
    except InputError:
        return text
    return text if value is None else value


def _as_parsed(file: ToolFile, flags: set[str]) -> None:
    """Flags as the parser of the command line takes them: one word for a list is a list of one, and
    `--no_packing` is packing: false.
    """
    for name in list(file.values):
        value = file.values[name]
        key = file.keys.get(name)
        positive = file.keys.get(name.removeprefix("no_"))
        if name not in flags:
            continue
        if key is None and name.startswith("no_") and positive is not None and value is True:
            del file.values[name]
            file.values[name.removeprefix("no_")] = False
        elif key is not None and isinstance(value, str):
            file.values[name] = [value] if _is_list(key) else _as_kind(key, value)


def _as_kind(key: Key, text: str) -> Any:
    """A word as the number or the flag that the key holds, where it reads as one."""
    if "flag" in key.types and text.lower() in FLAGS:
        return FLAGS[text.lower()]
    return as_number(key, text)


def _is_list(key: Key) -> bool:
    return "list" in key.types and "text" not in key.types


def _say_what_was_read(file: ToolFile, found: list[CommandLine], references: References) -> None:
    if len(found) > 1:
        file.notes.append(f"the script starts a tool {len(found)} times; the first is read")
    if found[0].config:
        file.notes.append(f"with {found[0].config}, which the flags overrule")
    for path, (written, source) in references.filled.items():
        value = "" if "environment" in source else f" is {_shown(file, path)},"
        file.notes.append(
            f"{dotted(path)}: {written}{value} is from {source}"
            if not value
            else f"{dotted(path)}: {written}{value} from {source}"
        )
    for path, written in references.open.items():
        file.fault(
            "warning", path, f"what {written} stands for is not known here",
            hint="set the variable, or write the value",
        )  # fmt: skip


def _shown(file: ToolFile, path: Path_) -> Any:
    value: Any = file.values
    for step in path:
        value = value[step]
    return value


def _as_file(file: ToolFile) -> str:
    """The values as a file of the tool, for a diff."""
    import yaml

    values = {
        key: _scalar(value, file.tool) if isinstance(value, str) else value
        for key, value in file.values.items()
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
