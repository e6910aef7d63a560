"""The optional features (advisor/extras), which are listed and never imported by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from advisor.ground.errors import Fault
from advisor.ground.shape import Shape


class Checked(Struct, frozen=True, kw_only=True):
    """What a check before a run found."""

    bad: Sequence[Fault] = ()  # what the plan names and is not there: exit code 2
    lacking: Sequence[Fault] = ()  # what the machine lacks: exit code 4
    needs: Sequence[str] = ()  # downloads, uploads and code, in words for a person
    warnings: Sequence[str] = ()  # what is allowed, and may be a mistake


class Catalogue(NamedTuple):
    """Files below rules/: the name of their JSON Schema, their shape, and who reads them."""

    name: str  # of the schema
    shape: Shape
    readers: Sequence[Callable[[], object]]  # each reads what it knows, and raises its faults


class Extras(Struct, frozen=True):
    """The optional features that were found."""

    found: Mapping[str, Any]  # name -> Extra (advisor/extras/protocol.py)
    broken: Mapping[str, str]  # name of a folder -> why it cannot be loaded

    def warnings(self) -> list[str]:
        """One line for each that is missing."""
        return [f"extra {name} is left out: {why}" for name, why in self.broken.items()]


@cache
def all_extras() -> Extras:
    """Each folder with an extra.py in advisor/extras or in the `extras/` of ADVISE_METHODS."""
    package = import_module("advisor.extras")
    found: dict[str, Any] = {}
    broken: dict[str, str] = {}
    places = (path for root in package.__path__ for path in Path(root).glob("*/extra.py"))
    for name in sorted({path.parent.name for path in places}):
        try:
            extra = import_module(f"advisor.extras.{name}.extra").EXTRA
            if name != extra.NAME:
                raise ValueError(f"its NAME is '{extra.NAME}', its folder '{name}'")
            if extra.KEYS is not None and not issubclass(extra.KEYS, Struct):
                raise TypeError(f"KEYS is {extra.KEYS!r}, which is no msgspec.Struct")
            if odd := [form for form in extra.EXPORTERS if not hasattr(form, "NAME")]:
                raise TypeError(f"EXPORTERS holds {odd[0]!r}, which is no Form")
        except Exception as error:  # whatever the file does while it is read
            broken[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = extra
    return Extras(found, broken)


def extras() -> Mapping[str, Any]:
    """Name -> Extra, in alphabetical order."""
    return all_extras().found
