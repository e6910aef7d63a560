"""Devices that people name and this tool cannot train on: rules/hardware/not-supported.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.sources import LINK
from advisor.ground.types import NotSupported, Source
from advisor.ground.yaml_cache import read_shipped
from advisor.probe.names import split_name

_LINK = Text(pattern=LINK, such_as="https://docs.pytorch.org/...")
_TOOL = Keys(keys={"title": Text(), "url": _LINK}, required=("title", "url"))
_DEVICE = Keys(
    keys={
        "names": ListOf(of=Text(), least=1, help="words that tell it, * as in file names"),
        "not_with": ListOf(of=Text(), help="words that make it something else"),
        "what": Text(help="what it is, after 'is'"),
        "why": Text(help="why this tool does not train on it, after its name"),
        "where": ListOf(of=_TOOL, least=1, help="tools that train on it"),
        "checked": Date(help="the day somebody read those pages"),
    },
    required=("names", "what", "why", "where", "checked"),
)
NOT_SUPPORTED_FILE = Keys(
    help="Devices that this tool cannot train on",
    keys={"version": Choice(values=(1,)), "review_by": Date(), "devices": MapOf(of=_DEVICE)},
    required=("version", "devices"),
)


def not_supported(name: str) -> NotSupported | None:
    """The device a typed name means, if it is one that this tool cannot train on."""
    typed = split_name(name).words
    if not typed:
        return None
    for device_id, entry in not_supported_devices().items():
        if any(_holds(typed, wanted) for wanted in entry["names"]) and not any(
            _holds(typed, other) for other in entry.get("not_with", ())
        ):
            tools = (Source(**tool, checked=entry["checked"]) for tool in entry["where"])
            return NotSupported(
                id=device_id, what=entry["what"], why=entry["why"], where=tuple(tools)
            )
    return None


def _holds(typed: Sequence[str], wanted: str) -> bool:
    """Whether each of the wanted words is among the typed ones."""
    return all(any(fnmatchcase(word, part) for word in typed) for part in wanted.split())


@cache
def not_supported_devices() -> Mapping[str, Mapping[str, Any]]:
    """The entries of the file. Raises InputError, located."""
    path = rules_dir() / "hardware" / "not-supported.yaml"
    devices: Mapping[str, Mapping[str, Any]] = read_shipped(path, shape=NOT_SUPPORTED_FILE).data[
        "devices"
    ]
    return devices
