"""Where statements and numbers come from: the entries of every `sources:` in rules/."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, MapOf, Text
from advisor.ground.types import Source
from advisor.ground.yaml_files import read_shipped

LINK = r"https?://\S+"
SOURCE_KINDS = ("document", "paper", "vendor", "measured", "derived", "assumed")
SOURCE = Keys(
    keys={
        "title": Text(),
        "url": Text(pattern=LINK, such_as="https://arxiv.org/abs/2106.09685"),
        "checked": Date(help="the day somebody read it"),
        "kind": Choice(values=SOURCE_KINDS),
    },
    required=("title",),
)
SOURCES_FILE = Keys(
    help="Sources of rules and numbers",
    keys={"version": Choice(values=(1,)), "sources": MapOf(of=SOURCE)},
    required=("version", "sources"),
)


def source_from(entry: Mapping[str, Any], *, checked: str = "") -> Source:
    """The source of an entry that has the shape; `checked` stands for a day it does not state."""
    return Source(
        title=entry["title"],
        url=entry.get("url", ""),
        checked=entry.get("checked", checked),
        kind=entry.get("kind", ""),
    )


@cache
def shipped_sources() -> Mapping[str, Mapping[str, Any]]:
    """Id -> entry of rules/sources.yaml. Raises InputError with the faults of the file."""
    found: Mapping[str, Mapping[str, Any]] = read_shipped(
        rules_dir() / "sources.yaml", shape=SOURCES_FILE
    ).data["sources"]
    return found
