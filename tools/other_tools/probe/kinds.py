"""What a type annotation lets a key hold, in the words of the key tables."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORDS: Mapping[Any, str] = {
    str: "text", int: "integer", float: "number", bool: "flag", type(None): "null", Any: "any",
    object: "any",
}  # fmt: skip
ORDER = ("flag", "integer", "number", "text", "list", "map", "any", "null")
# How pydantic and annotated_types call a limit -> the word of the tables.
LIMITS = {
    "ge": "min", "gt": "above", "le": "max", "lt": "below", "min_length": "least",
    "pattern": "pattern",
}  # fmt: skip
# How the tools' own words name what replaces a key: "use `x` instead", "Please use x".
INSTEAD = re.compile(r"(?i)\b(?:use|pass|set)\s+`?(?:--)?([a-z]\w*_\w+|(?<=`)\w+)")


@dataclass
class Kinds:
    """The kinds of value that a key may hold.

    Attributes:
        types: Words of ORDER, and names of classes whose keys stand in a map.
        of: The same for the items of a list or the values of a map.
        choices: Values of enumerations and literals, in the tool's order.
        open: Whether other texts than the choices pass too.
        limits: Bounds of a number, the least length of a list, the pattern of a text.
        classes: Classes met on the way.
    """

    class_name: Callable[[Any], str | None]  # None: not a class with keys of its own
    types: set[str] = field(default_factory=set)
    of: set[str] = field(default_factory=set)
    choices: list[Any] = field(default_factory=list)
    open: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    classes: list[Any] = field(default_factory=list)

    def add(self, annotation: Any, into: set[str] | None = None) -> None:
        """Take in one annotation, or one part of a union."""
        into = self.types if into is None else into
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            self.add(arguments[0], into)
            for limit in arguments[1:]:
                self.limit(limit)
        elif origin in (typing.Union, types.UnionType):
            for part in arguments:
                self.add(part, into)
        elif origin is typing.Literal:
            self.choose(arguments, into)
        elif origin in (list, tuple, set, Sequence):
            into.add("list")
            self.inside([part for part in arguments if part is not Ellipsis], into)
        elif origin in (dict, Mapping):
            into.add("map")
            self.inside(arguments[1:], into)
        elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            self.members(annotation, into)
        else:
            self.plain(annotation, into)

    def plain(self, annotation: Any, into: set[str]) -> None:
        """A type without parameters."""
        known = {list: "list", tuple: "list", set: "list", dict: "map"}
        word = WORDS.get(annotation) or known.get(annotation)
        if word is not None:
            into.add(word)
            self.open |= annotation is str and into is self.types
            return
        name = self.class_name(annotation)
        into.add(name or "any")
        if name is not None and name not in ORDER:
            self.classes.append(annotation)

    def inside(self, parts: Sequence[Any], into: set[str]) -> None:
        """What a list or a map holds; of one inside another only the outer is told."""
        if into is self.types:
            for part in parts:
                self.add(part, self.of)

    def members(self, kinds: type[enum.Enum], into: set[str]) -> None:
        """The values of an enumeration; where no file can hold them, its names."""
        values = [member.value for member in kinds]
        if all(type(value) in WORDS for value in values):
            self.choose(values, into)
            return
        self.choose([member.name for member in kinds], into)
        self.open = True  # the tool's own validators turn them, and may know other names

    def choose(self, values: Sequence[Any], into: set[str]) -> None:
        """The values of a literal or of an enumeration."""
        for value in values:
            into.add(WORDS[type(value)])
            if into is self.types and value is not None and value not in self.choices:
                self.choices.append(value)

    def limit(self, constraint: Any) -> None:
        """A bound that a field's metadata states."""
        for name, word in LIMITS.items():
            value = getattr(constraint, name, None)
            if value is not None and not callable(value):
                self.limits[word] = value

    def entry(self) -> dict[str, Any]:
        """The key's line, without its default."""
        found: dict[str, Any] = {"types": ordered(self.types)}
        if self.of and self.of != {"any"}:
            found["of"] = ordered(self.of)
        if self.choices:
            found["choices"] = self.choices
            # A pattern narrows the other texts; without one, whatever is written passes.
            if self.open:
                found["open"] = True
        return found | self.limits


def ordered(words: set[str]) -> list[str]:
    """Words of the tables in one order, class names between them by name."""
    if "any" in words:
        return ["any"]
    classes = sorted(word for word in words if word not in ORDER)
    plain = [word for word in ORDER if word in words]
    null = ["null"] if "null" in words else []
    return [*(word for word in plain if word != "null"), *classes, *null]


def plain_value(value: Any) -> Any:
    """A default as YAML can hold it. Raises TypeError if it cannot."""
    if isinstance(value, enum.Enum):
        return plain_value(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    raise TypeError(type(value).__name__)
