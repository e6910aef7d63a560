"""Where statements and numbers come from: the entries of every `sources:` in rules/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.shape import Choice, Date, Keys, MapOf, Text
from advisor.ground.types import Source

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
