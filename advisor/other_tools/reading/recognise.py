"""Which tool a configuration file is for, told by its keys.

A key that one tool alone has says more than one that several share, and the key that names the base
model says most. Nothing is run or imported of the tools: their keys are in rules/tools.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.other_tools.reading.their_yaml import nodes_of, read_text, their_text
from advisor.other_tools.tables.keys import keys_of, keys_of_classes, newest, tool_names
from advisor.other_tools.tables.old_keys import old_keys
from advisor.other_tools.tables.other_files import OtherFile, other_file
from advisor.other_tools.tables.tool import tool_named

ENDINGS = (".yaml", ".yml", ".json")
SCRIPTS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".py", ".toml")
OWN, SHARED = 3, 1  # what a key counts for that one tool has, and one that several have
FEW, HALF = 2, 0.5  # known keys that a file without a base model has at least
PLAN_IT = "`advise --model MODEL --data DATA --plan plan.yaml` plans the same training"


@cache
def read_tools() -> str:
    """The tools whose files are read, as a list for people."""
    return ", ".join(tool_named(tool).name for tool in tool_names())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """What a file is: one of the tools, or another kind."""

    tool: str = ""  # id of a tool that is read
    why: str = ""
    is_sure: bool = True
    other: OtherFile | None = None


def looks_like_configuration(path: str | os.PathLike[str]) -> bool:
    """Whether `advise check` should take a file as a configuration, not as data.

    Cheap and without errors: a file that cannot be read is not one here, and whoever reads it as
    data says why. Also true of files that are not read in the end, such as those of another tool:
    `read_file` says what they are.
    """
    where = Path(path)
    name = where.name.lower()
    if name.endswith(SCRIPTS):
        return where.is_file()
    if not name.endswith(ENDINGS) or not where.is_file():
        return False
    try:
        text = read_text(where, name=name)
        if name.endswith(".json") and not text.lstrip().startswith("{"):
            return False  # rows
        node = nodes_of(text, name=name)
    except AdviseError:
        return not name.endswith(".json")  # no data file has the other endings
    if not name.endswith(".json"):
        return True
    values = their_text(text, name=name).values if node is not None else None
    if not isinstance(values, Mapping):
        return False
    found = recognised(values)
    return bool(found.tool) or found.other is not None


def recognised(values: Mapping[str, Any], *, tool: str | None = None) -> Recognised:
    """What a file with these values is; `tool` is what the user says it is.

    Neither a tool nor another kind: nobody's that we know. Raises InputError for an unknown `tool`.
    """
    if tool is not None:
        return Recognised(tool=tool_named(tool).id, why="stated")
    tools = tool_names()
    base_keys = {one: tool_named(one).base_key for one in tools}
    base = [key for key in dict.fromkeys(base_keys.values()) if key in values]
    other = None if base else other_file(values)
    if other is not None:
        return Recognised(other=other)
    points = {one: _points(one, values) for one in tools}
    named = [one for one in tools if base_keys[one] in base]
    candidates = named if len(base) == 1 else tools
    # A file of LLaMA-Factory nearly always has a key that it alone has, so a tie is TRL's.
    best = max(candidates, key=lambda one: (points[one], one == "trl"))
    known = [key for key in values if key in names_of(best)]
    if not base and (len(known) < FEW or len(known) < HALF * len(values)):
        return Recognised()
    rivals = [one for one in tools if one != best and points[one] >= points[best]]
    own = [key for key in known if _owners(key) == (best,)]
    if rivals:
        both = " and ".join(tool_named(one).name for one in (best, *rivals))
        return Recognised(tool=best, why=f"its keys are those of {both}", is_sure=False)
    return Recognised(tool=best, why=_why(base, own))


def _why(base: list[str], own: list[str]) -> str:
    telling = list(dict.fromkeys([*base, *own]))[:4]
    return f"it has {', '.join(telling)}" if telling else "most of its keys are known there"


def _points(tool: str, values: Collection[str]) -> int:
    owned = (_owners(key) for key in values)
    return sum((OWN if len(tools) == 1 else SHARED) for tools in owned if tool in tools)


@cache
def _owners(key: str) -> tuple[str, ...]:
    return tuple(tool for tool in tool_names() if key in names_of(tool) or key in old_keys(tool))


@cache
def names_of(tool: str) -> frozenset[str]:
    """Every key that a file of the tool may have at its top, for any command and plugin."""
    release = newest(tool)
    plugins = [name for listed in release.plugins.values() for name in listed]
    found = frozenset(keys_of_classes(release, plugins))
    return found.union(*(keys_of(release, command) for command in release.commands))


def not_read(name: str, found: Recognised) -> InputError:
    """The error of a file that is none of a tool that we read."""
    if found.other is None:
        what = "no configuration of a tool that we know"
        hint = f"say which tool it is for, or: {PLAN_IT}"
    else:
        what = f"this is {found.other.what}"
        hint = found.other.say or PLAN_IT
    return InputError(
        faults=[
            Fault(where=name, what=what, allowed=f"read are files of {read_tools()}", hint=hint)
        ]
    )
