"""The keys of dataclasses, as Hugging Face's argument parser reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from tools.other_tools.probe.kinds import INSTEAD, Kinds, ordered, plain_value
from tools.other_tools.probe.trials import WORD, control, kinds_to_try, trial

NEEDED = ("model_name_or_path",)  # has a default that the class then refuses


class Classes:
    """Every class that is asked for, with its bases and what it adds to them.

    Args:
        package: The tool's own package; other classes are named with theirs in front.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: dict[str, dict[str, Any]] = {}

    def name(self, cls: Any) -> str | None:
        """The name of a dataclass in the table; None of any other type."""
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            return None
        root = cls.__module__.split(".")[0]
        return cls.__name__ if root == self.package else f"{root}.{cls.__name__}"

    def nested(self, cls: Any) -> str | None:
        """What a file writes for a class inside a class: of a library's, any map passes."""
        name = self.name(cls)
        return "map" if name is not None and "." in name else name

    def add(self, cls: type) -> str:
        """Take a class and its bases into the table. Returns its name there."""
        name = self.name(cls)
        assert name is not None, f"{cls} is no dataclass"
        if name in self.found:
            return name
        bases = [self.add(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)]
        inherited = self.resolved(bases)
        whole = self.entries(cls)
        own = {key: entry for key, entry in whole.items() if inherited.get(key) != entry}
        self.found[name] = {"bases": bases, "keys": own} if bases else {"keys": own}
        # What a reader of the table puts together is what the class has.
        assert self.resolved([name]) == whole, name
        return name

    def resolved(self, names: Iterable[str]) -> dict[str, Any]:
        """All keys of these classes with those of their bases; the first class wins."""
        keys: dict[str, Any] = {}
        for name in reversed(list(names)):
            entry = self.found[name]
            keys |= self.resolved(entry.get("bases", ())) | entry["keys"]
        return keys

    def entries(self, cls: type) -> dict[str, dict[str, Any]]:
        """Key -> line of the table, for all keys of the class."""
        hints = typing.get_type_hints(cls, include_extras=True)
        after = filled_by(cls)
        found = {}
        for item in dataclasses.fields(cls):
            if not item.init:
                continue
            kinds = Kinds(class_name=self.nested)
            kinds.add(hints[item.name])
            # transformers writes `SomeEnum | str`, and refuses other texts afterwards.
            kinds.open = False
            kinds.choices = list(item.metadata.get("choices", kinds.choices))
            for nested in kinds.classes:
                # It is made of the map's keys, so it refuses others.
                self.found[self.add(nested)] = {"unknown": "refused"} | self.found[self.add(nested)]
            entry = kinds.entry()
            entry |= self.as_text(cls, item.name, entry) | default_of(item)
            if item.name in after:
                entry["filled"] = True
            if splits(cls, item.name, entry):
                entry |= {"types": ordered({*entry["types"], "list"}), "of": ["text"]}
            entry |= deprecation(item.metadata.get("help") or "")
            found[item.name] = entry | {"trials": self.trials(cls, item.name, entry)}
        for key, entry in found.items():
            if entry.get("instead") not in found.keys() - {key}:
                entry.pop("instead", None)
        return found

    def as_text(self, cls: type, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What a text in a file is read as, if the key's types do not say so."""
        return {}

    def trials(self, cls: type, key: str, entry: Mapping[str, Any]) -> dict[str, bool]:
        """Kind of value -> whether the class is made with one in the key's place."""
        if not self.takes(cls, key, control(entry)):
            return {}
        return {kind: self.takes(cls, key, trial(kind, entry)) for kind in kinds_to_try(entry)}

    def takes(self, cls: type, key: str, value: Any) -> bool:
        """Whether the class is made with the value, as the tool makes it from a file."""
        return made_with(cls, **{key: value}) is not None


def made_with(cls: type, **values: Any) -> Any:
    """The class with these values and what it cannot do without; None if it refuses them."""
    needed = {
        item.name: WORD
        for item in dataclasses.fields(cls)
        if item.init and (default_of(item) == {"required": True} or item.name in NEEDED)
    }
    with contextlib.suppress(Exception):
        return cls(**needed | values)
    return None


def splits(cls: type, key: str, entry: Mapping[str, Any]) -> bool:
    """Whether the class makes a list of a text with commas, and takes a list as it is."""
    if "text" not in entry["types"] or "list" in entry["types"] or entry.get("choices"):
        return False
    values = (made_with(cls, **{key: "a,b"}), made_with(cls, **{key: ["a", "b"]}))
    return all(getattr(made, key, None) == ["a", "b"] for made in values)


def default_of(item: dataclasses.Field[Any]) -> dict[str, Any]:
    """`default`, or `required`; neither for a default that is no plain value."""
    if item.default is not dataclasses.MISSING:
        value = item.default
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        return {"required": True}
    try:
        return {"default": plain_value(value)}
    except TypeError:
        return {}


def filled_by(cls: type) -> set[str]:
    """Keys that the class gives another value when they are left out.

    Empty for a class that cannot be made without values.
    """
    made = made_with(cls)
    if made is None:
        return set()
    found = set()
    for item in dataclasses.fields(cls):
        default = default_of(item)
        if not item.init or "default" not in default or item.name in NEEDED:
            continue
        try:
            same = plain_value(getattr(made, item.name)) == default["default"]
        except TypeError:
            same = False
        if not same:
            found.add(item.name)
    return found


def deprecation(words: str) -> dict[str, Any]:
    """What a field's own help says about its end."""
    if not re.search(r"(?i)\bdeprecated\b", words):
        return {}
    instead = INSTEAD.search(words)
    return {"deprecated": True} | ({"instead": instead[1]} if instead else {})


def table(classes: Classes, commands: Mapping[str, Iterable[type]]) -> dict[str, Any]:
    """`commands` and `classes` of a key table."""
    named = {name: [classes.add(cls) for cls in listed] for name, listed in commands.items()}
    return {"commands": named, "classes": classes.found}
