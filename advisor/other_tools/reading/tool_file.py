"""A configuration file of another tool as a value: what it says, where each key stands, and what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.yaml_reader import Path_
from advisor.other_tools.reading.their_yaml import LOADERS, Loader, located
from advisor.other_tools.tables.commands import Command
from advisor.other_tools.tables.keys import ABSENT, Key, ToolRelease
from advisor.other_tools.tables.tool import Tool, tool_named

MAX_DIGITS = 9  # of a place in a list


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFault:
    """What is wrong with one key or value of a file.

    Attributes:
        severity: error (the tool refuses the file), warning (it takes it and does another thing
            than it says, such as ignoring the key), note.
        key: Dotted: `datasets.0.path`.
        where: file:line:column.
        instead: Their key -> value that mends it, None for a key to delete; empty where a person
            has to decide.
    """

    severity: str
    key: str
    where: str
    what: str
    allowed: str = ""
    hint: str = ""
    instead: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class ToolFile:
    """A configuration of another tool.

    Attributes:
        name: The file as the user wrote it.
        text: Its text, for edits (edit.py).
        values: Plain data as the tool's own loader reads it, `${...}` filled in where that could
            be done.
        written: The same, with `${...}` as it stands.
        open: Dotted key -> text, of references whose value is not known.
        notes: What was assumed or filled in: sentences.
        secrets: Where `text` holds secrets, which the values do not.
        way: How the tool's parser reads values (values.py); of a command line another one.
        editable: Whether changes can be shown as a diff of the text.
        script: The script whose command line it was read from; `text` is the same as a file of
            the tool. Empty for a file.
    """

    path: Path
    name: str
    text: str
    tool: str
    release: ToolRelease
    command: Command
    keys: Mapping[str, Key]
    values: dict[str, Any]
    written: dict[str, Any]
    key_marks: Mapping[Path_, tuple[int, int]]
    value_marks: Mapping[Path_, tuple[int, int]]
    open: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[KeyFault] = field(default_factory=list)
    secrets: frozenset[Path_] = frozenset()
    way: str = ""
    script: str = ""
    editable: bool = True

    @property
    def about(self) -> Tool:
        """What is written by hand of the tool."""
        return tool_named(self.tool)

    @property
    def loader(self) -> Loader:
        """How the tool reads YAML: of edits too."""
        return LOADERS[self.about.parsing["loader"]]

    @property
    def title(self) -> str:
        """'TRL 1.16.0'."""
        return f"{tool_named(self.tool).name} {self.release.release}"

    @property
    def folder(self) -> Path:
        """Where the file is."""
        return self.path.parent

    @property
    def defaults(self) -> dict[str, Any]:
        """Key -> the tool's own default for this command."""
        return {name: key.default for name, key in self.keys.items() if key.default is not ABSENT}

    def at(self, key: str | Sequence[str | int]) -> str:
        """file:line:column of a key, dotted or as a path; of the nearest one around it, else the
        file alone.
        """
        path = steps(key) if isinstance(key, str) else tuple(key)
        mark = self.key_marks.get(path) or self.value_marks.get(path)
        if mark is not None and path:
            return f"{self.name}:{mark[0]}:{mark[1]}"
        return located(self.name, self.key_marks, path)

    @property
    def mended(self) -> dict[str, Any]:
        """The values as they are once what the tool refuses is mended, as far as that is known: a
        file that it refuses trains nothing, and this is what was meant.
        """
        found = self.values
        for one in self.faults:
            if one.severity == "error":
                for key, value in one.instead.items():
                    found = changed(found, steps(key), value)
        return found

    def fault(self, severity: str, key: str | Path_, what: str, **more: Any) -> None:
        """Add a fault of a key."""
        path = steps(key) if isinstance(key, str) else key
        self.faults.append(
            KeyFault(severity=severity, key=dotted(path), where=self.at(path), what=what, **more)
        )


def changed(values: Any, path: Path_, value: Any) -> Any:
    """Plain data with one change; None takes the key, or the item of a list, away."""
    step, rest = path[0], path[1:]
    if isinstance(values, list):
        if not isinstance(step, int) or step >= len(values):
            return values
        if not rest and value is None:
            return [one for index, one in enumerate(values) if index != step]
        new = changed(values[step], rest, value) if rest else value
        return [new if index == step else one for index, one in enumerate(values)]
    found = dict(values) if isinstance(values, dict) else {}
    key = str(step)
    if not rest:
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    elif value is not None or key in found:
        found[key] = changed(found.get(key), rest, value)
    return found


def dotted(path: Sequence[str | int]) -> str:
    """`datasets.0.path`."""
    return ".".join(str(step) for step in path)


def steps(key: str) -> Path_:
    """The path of a dotted key."""
    return tuple(
        int(step) if step.isascii() and step.isdigit() and len(step) <= MAX_DIGITS else step
        for step in key.split(".")
    )
