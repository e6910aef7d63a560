"""The keys that optional features (advisor/extras) add to a plan: where they stand in the file, and
what each feature reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from advisor.ground.errors import nearest
from advisor.ground.extras import all_extras, extras
from advisor.ground.from_dataclass import build, default_of, shape_of
from advisor.ground.install import install_line
from advisor.ground.shape import Keys, Shape
from advisor.plan.model import Plan

EXTRAS = "extras"  # the map of those keys that do not stand beside the stages
# Features whose keys stand beside the stages, for a plan that is read where one is missing.
BESIDE_STAGES = {"evaluation": "benchmarks", "trackers": "trackers", "push_to": "hub"}


def with_keys(*, beside: bool) -> Iterator[tuple[str, type]]:
    """(name, dataclass of its keys) of each feature whose keys stand beside the stages or not."""
    for name, extra in extras().items():
        if extra.KEYS is not None and beside == extra.BESIDE_STAGES:
            yield name, extra.KEYS


def shapes_of_extras() -> dict[str, Shape]:
    """Key beside the stages -> what it may hold."""
    found: dict[str, Shape] = {}
    for _, keys in with_keys(beside=True):
        found |= shape_of(keys).keys
    inner = {name: shape_of(keys) for name, keys in with_keys(beside=False)}
    said = shape_of(Plan).keys[EXTRAS].help
    return found | {EXTRAS: Keys(keys=inner, others=missing_extra, help=said)}


def missing_extra(name: str, known: Collection[str]) -> str:
    """What to say of a key or a name that belongs to a feature that is not here; else ''."""
    extra = BESIDE_STAGES.get(name, name)
    why = all_extras().broken.get(extra)
    if why is None and extra == name:  # nobody knows the name
        said = f"remove it, or install what brings the extra '{name}' and name its folder in"
        return nearest(name, known) or f"{said} ADVISE_METHODS"
    why = f" ({why})" if why else ""
    return f"the extra '{extra}' is not here{why}: remove the key, or install it: {install_line()}"


def read_extras(data: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a feature -> the value of its dataclass, of those whose keys a checked plan has."""
    inner = data.get(EXTRAS) or {}
    found = {}
    for beside in (True, False):
        for name, keys in with_keys(beside=beside):
            source = data if beside else inner.get(name) or {}
            given = {key: source[key] for key in shape_of(keys).keys if key in source}
            value: Any = build(keys, given)
            if any(getattr(value, item.name) != _default(item) for item in fields(value)):
                found[name] = value
    return found


def stated_extras(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys beside the stages, name -> keys below `extras`) of a plan, without defaults."""
    beside: dict[str, Any] = {}
    below: dict[str, Any] = {}
    for name, value in values.items():
        stated = {
            item.name: part
            for item in fields(value)
            if (part := getattr(value, item.name)) != _default(item)
        }
        if extras()[name].BESIDE_STAGES:
            beside |= stated
        elif stated:
            below[name] = stated
    return beside, below


def _default(item: Any) -> Any:
    found = default_of(item)
    return None if found is MISSING else found
