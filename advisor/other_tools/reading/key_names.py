"""What a key that a tool does not know may have been meant as: a misspelt one, one of another
command or plugin, one of an earlier release, or another tool's name for the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from advisor.ground.other_keys import names_elsewhere
from advisor.other_tools.reading.recognise import names_of
from advisor.other_tools.tables.keys import ToolRelease, keys_of, keys_of_classes, tool_names
from advisor.other_tools.tables.old_keys import old_keys
from advisor.other_tools.tables.tool import OneKey, tool_named

CLOSE = 0.78  # how alike a misspelt key and the one that is meant are


@dataclass(frozen=True, kw_only=True, slots=True)
class Meant:
    """What a key may have been meant as: a half sentence, and the change that mends it."""

    say: str
    instead: Mapping[str, Any] = field(default_factory=dict)


def meant_at_the_top(
    release: ToolRelease, command: str, name: str, value: Any, known: Collection[str]
) -> Meant | None:
    """What a key at the top of a file may have been meant as; None if nobody knows it."""
    tool = release.tool
    old = old_keys(tool).get(name)
    if old is not None:
        return Meant(say=f"{old.origin}: {old.words}", instead=old.change(name, value))
    if (same := _same_letters(name, known)) is not None:
        return Meant(say=f"did you mean '{same}'?", instead={name: None, same: value})
    others = [one for one in release.commands if one != command and name in keys_of(release, one)]
    if others:
        said = " and ".join(f"`{tool_named(tool).program} {one}`" for one in others[:3])
        return Meant(
            say=f"a key of {said}; this file is for `{tool_named(tool).program} {command}`"
        )
    for plugin, classes in release.plugins.items():
        if name in keys_of_classes(release, classes):
            return Meant(say=f"it needs the plugin: `plugins: [{plugin}]`")
    elsewhere = _of_another_tool(tool, name, known)
    close = misspelt(name, known)
    if elsewhere is not None and (elsewhere[1] or close is None):
        title, theirs = elsewhere
        if theirs:
            said = f"that is {title}'s name; {tool_named(tool).name} calls it '{theirs}'"
            return Meant(say=said, instead={name: None, theirs: value})
        return Meant(say=f"that is a key of {title}")
    if close is not None:
        return Meant(say=f"did you mean '{close}'?", instead={name: None, close: value})
    return None


def misspelt(name: str, known: Collection[str], *, alike: float = CLOSE) -> str | None:
    """The known name that is meant, by its letters."""
    same = _same_letters(name, known)
    if same is not None:
        return same
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return found[0] if found else None


def _same_letters(name: str, known: Collection[str]) -> str | None:
    plain = _letters(name)
    return next((one for one in known if _letters(one) == plain), None)


def _letters(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _of_another_tool(tool: str, name: str, known: Collection[str]) -> tuple[str, str] | None:
    """The tool that has a key of this name, and what this tool calls the same: an empty text
    where nothing says it.
    """
    for other in tool_names():
        if other != tool and name in names_of(other):
            ours = _ours(other).get(name)
            theirs = next(
                (one for one, key in _ours(tool).items() if key == ours and one in known), ""
            )
            return tool_named(other).name, theirs if ours is not None else ""
    for other, ours in names_elsewhere(name):
        theirs = next((one for one, key in _ours(tool).items() if key == ours and one in known), "")
        if theirs:
            return other, theirs
    return None


@cache
def _ours(tool: str) -> Mapping[str, str]:
    """A tool's key -> ours, where one stands for the other with the same value."""
    return {
        one.theirs: one.ours
        for one in reversed(tool_named(tool).mapping)
        if isinstance(one, OneKey) and one.turned == "same"
    }
