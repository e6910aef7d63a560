"""Files that are no training configuration that we read, told by their keys
(rules/tools/other_files.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, Text
from advisor.ground.yaml_cache import read_shipped

NAMES = ListOf(of=Text(), least=1)
OTHER_FILE = Keys(
    help="a kind of file and the keys that only it has",
    keys={
        "id": Text(pattern=r"[a-z0-9_]+"),
        "what": Text(help="what it is: 'a DeepSpeed configuration'"),
        "all": NAMES,
        "any": NAMES,
        "values": ListOf(of=Text(), least=1, help="keys of which each of its maps has one"),
        "say": Text(help="what can be done with it, or instead"),
    },
    required=("id", "what"),
)
OTHER_FILES_FILE = Keys(
    help="Files that look like the configuration of a training and are another thing",
    keys={
        "version": Choice(values=(1,)),
        "checked": Date(help="the day somebody looked at such files"),
        "files": ListOf(of=OTHER_FILE, least=1),
    },
    required=("version", "checked", "files"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherFile:
    """A kind of file that is not read as a training configuration."""

    id: str
    what: str
    all: tuple[str, ...]
    any: tuple[str, ...]
    values: tuple[str, ...]
    say: str

    def is_one(self, values: Mapping[str, Any]) -> bool:
        """Whether a file with these values is of this kind."""
        maps = list(values.values())
        return (
            all(_has(values, key) for key in self.all)
            and (not self.any or any(_has(values, key) for key in self.any))
            and (
                not self.values
                or all(
                    isinstance(one, Mapping) and not one.keys().isdisjoint(self.values)
                    for one in maps
                )
            )
        )


@cache
def other_files() -> tuple[OtherFile, ...]:
    """Every kind, in the order in which they are asked. Raises InputError with the file's
    faults.
    """
    data = read_shipped(rules_dir() / "tools" / "other_files.yaml", shape=OTHER_FILES_FILE).data
    return tuple(
        OtherFile(
            id=one["id"],
            what=one["what"],
            all=tuple(one.get("all", ())),
            any=tuple(one.get("any", ())),
            values=tuple(one.get("values", ())),
            say=one.get("say", ""),
        )
        for one in data["files"]
    )


def other_file(values: Mapping[str, Any]) -> OtherFile | None:
    """The kind of a file with these values; None if it is none that we know."""
    return next((one for one in other_files() if values and one.is_one(values)), None)


def _has(values: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
