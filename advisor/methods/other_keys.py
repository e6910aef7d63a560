"""What other training tools call the keys of a plan (rules/tools/other_keys.yaml)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

from msgspec import Struct

from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Date, Keys, ListOf, MapOf, Text
from advisor.ground.yaml_files import LINK, read_shipped

NAMES = ListOf(of=Text(), least=1)
TOOL = Keys(
    keys={
        "title": Text(help="what was read of it"),
        "url": Text(pattern=LINK, such_as="https://..."),
        "checked": Date(help="the day somebody read it"),
    },
    required=("title", "url", "checked"),
)
OTHERWISE = Keys(
    keys={
        "names": ListOf(of=Text(), least=1, help="what other tools call it"),
        "of": Text(help="a key of ours: the answer is given where that key may stand"),
        "write": Text(help="what to write into a plan instead"),
        "say": Text(help="what is to know where there is no such line"),
    },
    required=("names", "of"),
)
OTHER_KEYS_FILE = Keys(
    help="What other training tools call the keys of a plan",
    keys={
        "version": VERSION,
        "tools": MapOf(of=TOOL, help="tool -> where its keys were read"),
        "same": MapOf(of=MapOf(of=NAMES), help="our key -> tool -> its names"),
        "otherwise": ListOf(of=OTHERWISE, help="keys whose values mean something else here"),
    },
    required=("version", "tools", "same", "otherwise"),
)


class Hint(Struct, frozen=True):
    """What to say of a key of another tool."""

    of: str  # the key of ours that must be known for it to help
    text: str


@cache
def other_keys() -> Mapping[str, Hint]:
    """Name in another tool -> what to say of it. Raises InputError with the faults of the file."""
    data = read_shipped(rules_dir() / "tools" / "other_keys.yaml", shape=OTHER_KEYS_FILE).data
    found = {
        name: Hint(ours, f"did you mean '{ours}'?")
        for ours, tools in data["same"].items()
        for names in tools.values()
        for name in names
        if name != ours
    }
    for entry in data["otherwise"]:
        said = f"did you mean `{entry['write']}`?" if "write" in entry else entry["say"]
        found |= {name: Hint(entry["of"], said) for name in entry["names"]}
    return found


def hint_for(name: str, known: Collection[str]) -> str:
    """What to say of a key that another tool has, where ours may stand; else an empty string."""
    hint = other_keys().get(name)
    return hint.text if hint is not None and hint.of in known else ""
