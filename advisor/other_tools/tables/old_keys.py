"""Keys of other tools from earlier releases, and what stands in their place
(rules/tools/old_keys.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Flag, Keys, MapOf, Shape, Text
from advisor.ground.sources import LINK
from advisor.ground.yaml_cache import read_shipped

OLD_KEY = Keys(
    help="a key that went, or that the tool no longer wants",
    keys={
        "instead": Text(help="the key that takes the same value"),
        "becomes": MapOf(of=Shape(), help="their keys with the values that say the same"),
        "say": Text(help="what to do where there is no such key"),
        "of": Text(help="whose key it is, where it was never one of the tool itself"),
        "refused": Flag(help="the tool stops where it has a value"),
    },
)
OLD_KEYS_FILE = Keys(
    help="Keys that other training tools had in earlier releases",
    keys={
        "version": Choice(values=(1,)),
        "tools": MapOf(
            of=Keys(
                keys={
                    "url": Text(pattern=LINK, such_as="https://..."),
                    "checked": Date(help="the day somebody compared the releases"),
                    "keys": MapOf(of=OLD_KEY),
                    "values": MapOf(
                        of=MapOf(of=Text()), help="key -> a text of an earlier release -> today's"
                    ),
                    "prefixes": MapOf(
                        of=Text(), help="map -> a beginning of its keys that the tool takes off"
                    ),
                },
                required=("url", "checked", "keys"),
            )
        ),
    },
    required=("version", "tools"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OldKey:
    """A key that went, or that the tool no longer wants."""

    instead: str
    becomes: Mapping[str, Any]
    say: str
    refused: bool
    of: str

    def change(self, name: str, value: Any) -> Mapping[str, Any]:
        """The keys to write in its place, the old one with None."""
        if self.instead:
            return {name: None, self.instead: value}
        if self.becomes:
            return {name: None, **(self.becomes if value is True else {})}
        return {name: None}

    @property
    def origin(self) -> str:
        """Whose key it is."""
        return f"a key of {self.of}" if self.of else "a key of an earlier release"

    @property
    def words(self) -> str:
        """What to do: a half sentence."""
        new = [f"write `{key}: {_word(value)}`" for key, value in self.becomes.items()]
        return "; ".join(
            [*([f"it is now `{self.instead}`"] if self.instead else new), *filter(None, [self.say])]
        )


@cache
def old_keys(tool: str) -> Mapping[str, OldKey]:
    """Name -> what is known of it. Raises InputError with the faults of the file."""
    data = read_shipped(rules_dir() / "tools" / "old_keys.yaml", shape=OLD_KEYS_FILE).data
    return {
        name: OldKey(
            instead=one.get("instead", ""),
            becomes=one.get("becomes", {}),
            say=one.get("say", ""),
            refused=one.get("refused", False),
            of=one.get("of", ""),
        )
        for name, one in data["tools"][tool]["keys"].items()
    }


@cache
def prefixes(tool: str) -> Mapping[str, str]:
    """Key of a map -> a beginning of its keys that the tool takes off."""
    data = read_shipped(rules_dir() / "tools" / "old_keys.yaml", shape=OLD_KEYS_FILE).data
    found: Mapping[str, str] = data["tools"][tool].get("prefixes", {})
    return found


def old_value(tool: str, key: str, value: str) -> str | None:
    """What a text of an earlier release is called today."""
    data = read_shipped(rules_dir() / "tools" / "old_keys.yaml", shape=OLD_KEYS_FILE).data
    found: Mapping[str, str] = data["tools"][tool].get("values", {}).get(key, {})
    return found.get(value)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
