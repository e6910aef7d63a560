"""The keys of other training tools, of one release each (rules/tools/TOOL/RELEASE.yaml).

The files are made from the tools' own classes by `python -m tools.other_tools`. A class stands
there with what it adds to its bases or changes of them; a command reads one or more classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, nearest
from advisor.ground.resources import rules_dir
from advisor.ground.shape import (
    Choice,
    Flag,
    Integer,
    Keys,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Shape,
    Text,
)
from advisor.ground.yaml_cache import read_shipped

# The kinds of value that YAML has, as the tables call them. Every other type is a class.
PLAIN = ("flag", "integer", "number", "text", "list", "map", "any", "null")
# Kinds that were tried of each key: `digits` is a text that reads as a number, `other` a text that
# is none of the choices.
TRIED = ("flag", "integer", "number", "text", "digits", "list", "map", "null", "other")
TYPES = ListOf(of=Text(pattern=r"[\w.]+", such_as="number, or a class of this file"), least=1)
KEY = Keys(
    help="one key of a class",
    keys={
        "types": TYPES,
        "of": ListOf(of=Text(), least=1, help="the types of a list's items or a map's values"),
        "choices": ListOf(
            of=OneOf(options=(Text(), Integer(), Number(), Flag())), least=1,
            help="the texts that are meant",
        ),
        "open": Flag(help="other texts than the choices pass too, such as a path"),
        "min": Number(help="a number is at least this"),
        "max": Number(help="a number is at most this"),
        "above": Number(help="a number is more than this"),
        "below": Number(help="a number is less than this"),
        "least": Integer(min=0, help="a list has at least so many items"),
        "pattern": Text(help="a regular expression that a text begins with"),
        "text_is": Choice(
            values=("flag", "integer", "number", "text", "map"),
            help="what a text is read as, where the types do not say so",
        ),
        "refuses": ListOf(
            of=Choice(values=TRIED), least=1,
            help="kinds of value, not among the types, that the class refuses when it is made",
        ),
        "takes": ListOf(
            of=Choice(values=TRIED), least=1,
            help="kinds of value, not among the types, that the tool lets through all the same",
        ),
        "bare": Flag(help="a switch of a command line, which takes no value"),
        "default": Shape(help="of a key that is left out; the code's own, before it is worked on"),
        "filled": Flag(help="the tool puts another value in the default's place when it starts"),
        "required": Flag(help="a file without it is refused"),
        "also": ListOf(of=Text(), least=1, help="other names that stand for it"),
        "deprecated": Flag(help="the tool's own code says that it will go, or is gone"),
        "gone": Flag(help="a file that sets it is refused"),
        "instead": Text(help="what the tool's own code names in its place"),
    },
    required=("types",),
)  # fmt: skip
CLASS = Keys(
    help="a class of the tool's, or of a library that it stands on: those have its name in front",
    keys={
        "bases": ListOf(of=Text(), least=1, help="classes whose keys it has too; the first wins"),
        "unknown": Choice(
            values=("refused", "kept"), help="what it does with other keys; else they are ignored"
        ),
        "arguments": Flag(help="its values are handed on as texts, to another command line"),
        "keys": MapOf(of=KEY, help="what it adds to its bases or changes of them"),
    },
    required=("keys",),
)
NAMES = ListOf(of=Text())
RELEASE_FILE = Keys(
    help="The keys of one release of another training tool, made from its own classes",
    keys={
        "version": Choice(values=(1,)),
        "tool": Text(pattern=r"[a-z0-9_]+"),
        "release": Text(such_as="1.16.0"),
        "made_with": MapOf(of=Text(), help="libraries beside it when it was read -> their version"),
        "commands": MapOf(of=NAMES, least=1, help="command -> its classes; the first wins"),
        "plugins": MapOf(of=NAMES, help="plugin -> classes whose keys it brings to every command"),
        "classes": MapOf(of=CLASS, least=1),
    },
    required=("version", "tool", "release", "made_with", "commands", "classes"),
)


class _Absent:
    """The default of a key that has none."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a tool's configuration. KEY says what each field means."""

    name: str
    types: tuple[str, ...]
    of: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    open: bool = False
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    least: int = 0
    pattern: str = ""
    text_is: str = ""
    refuses: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    bare: bool = False
    argument: bool = False  # handed on as a text, to another command line
    default: Any = ABSENT  # ABSENT: none is stated
    filled: bool = False
    required: bool = False
    also: tuple[str, ...] = ()
    deprecated: bool = False
    gone: bool = False
    instead: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes whose keys a map in its place has."""
        return tuple(name for name in self.types if name not in PLAIN)

    @property
    def item_classes(self) -> tuple[str, ...]:
        """Classes whose keys a map has that is an item of its list, or a value of its map."""
        return tuple(name for name in self.of if name not in PLAIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyClass:
    """The keys that one class adds to its bases, or changes of them."""

    name: str
    keys: Mapping[str, Key]
    bases: tuple[str, ...] = ()
    unknown: str = "ignored"  # what the class does with keys that it does not know


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolRelease:
    """The keys of one release of a tool."""

    tool: str
    release: str
    made_with: Mapping[str, str]
    commands: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, KeyClass]
    plugins: Mapping[str, tuple[str, ...]]


# --------------------------------------------------------------------------- reading


@cache
def tool_names() -> tuple[str, ...]:
    """The tools whose files are read and written, in alphabetical order: those with key tables."""
    return tuple(sorted(path.name for path in (rules_dir() / "tools").iterdir() if path.is_dir()))


def releases(tool: str) -> tuple[str, ...]:
    """The releases of a tool that have a key table, the oldest first; empty if there is none."""
    folder = rules_dir() / "tools" / tool
    return tuple(sorted((path.stem for path in folder.glob("*.yaml")), key=_version))


def newest(tool: str) -> ToolRelease:
    """The table of the newest release that has one. Raises InputError if none has."""
    known = releases(tool)
    if not known:
        raise InputError(
            faults=[
                Fault(
                    where="",
                    what=f"there is no key table of '{tool}'",
                    allowed=f"one of {', '.join(tool_names())}",
                    hint=nearest(tool, tool_names()),
                )
            ]
        )
    return tool_release(tool, known[-1])


@cache
def tool_release(tool: str, release: str) -> ToolRelease:
    """The table of one release. Raises InputError with the faults of its file, or if there is
    none.
    """
    data = read_shipped(_path(tool, release), shape=RELEASE_FILE).data
    return ToolRelease(
        tool=data["tool"],
        release=data["release"],
        made_with=data["made_with"],
        commands={name: tuple(listed) for name, listed in data["commands"].items()},
        plugins={name: tuple(listed) for name, listed in data.get("plugins", {}).items()},
        classes={name: _class(name, entry) for name, entry in data["classes"].items()},
    )


def _path(tool: str, release: str) -> Path:
    return rules_dir() / "tools" / tool / f"{release}.yaml"


def _class(name: str, entry: Mapping[str, Any]) -> KeyClass:
    return KeyClass(
        name=name,
        bases=tuple(entry.get("bases", ())),
        unknown=entry.get("unknown", "ignored"),
        keys={
            key: key_of(key, line, argument=entry.get("arguments", False))
            for key, line in entry["keys"].items()
        },
    )


LISTS = frozenset(item.name for item in fields(Key) if str(item.type).startswith("tuple"))


def key_of(name: str, line: Mapping[str, Any], *, argument: bool = False) -> Key:
    """A key from its line in a table."""
    given: dict[str, Any] = {
        word: tuple(value) if word in LISTS else value for word, value in line.items()
    }
    return Key(name=name, argument=argument, **given)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release))


# --------------------------------------------------------------------------- looking up


def keys_of(
    release: ToolRelease, command: str, *, plugins: Iterable[str] = ()
) -> Mapping[str, Key]:
    """Every key that a file for this command may hold at its top: name -> key.

    A key that goes by several names stands under each. Plugins are named as a file lists them;
    unknown ones bring nothing.

    Raises KeyError if the tool has no such command.
    """
    listed = (name for plugin in plugins for name in plugin_classes(release, plugin) or ())
    return keys_of_classes(release, (*listed, *release.commands[command]))


def keys_of_classes(release: ToolRelease, names: Sequence[str]) -> Mapping[str, Key]:
    """Every key of these classes with those of their bases; the first class wins."""
    found: dict[str, Key] = {}
    for name in reversed(names):
        for key in _resolved(release, name).values():
            found |= dict.fromkeys((key.name, *key.also), key)
    return found


def _resolved(release: ToolRelease, name: str) -> dict[str, Key]:
    one = release.classes[name]
    found: dict[str, Key] = {}
    for base in reversed(one.bases):
        found |= _resolved(release, base)
    return {**found, **one.keys}


def plugin_classes(release: ToolRelease, plugin: str) -> tuple[str, ...] | None:
    """The classes that a plugin brings; None if it is none of the tool's own.

    A plugin may be named by its package or by the module inside it.
    """
    package, _, name = plugin.rpartition(".")
    for known, brought in release.plugins.items():
        home, _, own = known.rpartition(".")
        if own == name and (package == home or package.startswith(f"{home}.")):
            return brought
    return None
