"""What a YAML or JSON file may hold, as a value, and one check that reports every fault, located.

A shape says what one value may be: a text, a number within bounds, one of a list of choices, a
list, a map with these keys and no others. Reader, error messages and JSON Schemas
(advisor/schema/) derive from the same shape, so an editor and `advise` refuse the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground.errors import Fault, did_you_mean, refuse, unknown_name
from advisor.ground.terminal import find_secrets
from advisor.ground.units import is_finite

Path_ = tuple[str | int, ...]
LISTED = 12  # more choices than this are not written out in a message


class Located(Protocol):
    """Plain data with the place of each part: a Document of YAML, or a NamedValue."""

    @property
    def data(self) -> Any: ...

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        """The place as text, such as 'plan.yaml:12:13'."""
        ...


class NamedValue(Struct, eq=False):
    """A value that came without lines: a flag, or JSON: 'spec.rank', '[2].target_modules[0]'."""

    name: str
    data: Any

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        if self.name.startswith("--") and path:  # as it is typed: '--budget usd=', '--rank'
            step = str(path[0])
            return f"{self.name} {step}=" if self.name > "--" else f"--{step.replace('_', '-')}"
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
        return (self.name + "".join(steps)).lstrip(".")

    def refuse(self, value: Any, shape: Shape, path: Path_, hint: str) -> Fault:
        """The fault of a value that is not allowed there."""
        at = self.at(path)
        return Fault(
            where=at,
            what=f"{at.removesuffix('=')} is {value_words(value)}",
            allowed=shape.words(),
            hint=hint,
        )


# --------------------------------------------------------------------------- shapes
# Every command imports these classes. Frozen ones that compare take ten times as long to make.


class Shape(Struct, kw_only=True, eq=False):
    """Any value. The classes below narrow it."""

    help: str = ""  # what the value means, for editors
    null: bool = False  # null is allowed too: "not known"

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        """What is wrong with a value that is not null."""
        return iter(())

    def words(self) -> str:
        """What is allowed, for a message: 'a number of at least 0'."""
        return "any value"

    def refuse(self, value: Any, document: Located, path: Path_, *, hint: str = "") -> Fault:
        """The fault of a value that is not allowed there."""
        if isinstance(document, NamedValue):
            return document.refuse(value, self, path, hint)
        what = f"{_named(path)} is {value_words(value)}"
        return Fault(where=document.at(path), what=what, allowed=self.words(), hint=hint)


class Text(Shape, kw_only=True, eq=False):
    """A text that is not empty."""

    pattern: str = ""  # of the whole text
    such_as: str = ""  # an example or a description of the pattern, for messages

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, str) or not value.strip():
            quote = isinstance(value, int | float) and not isinstance(value, bool)
            yield self.refuse(value, document, path, hint="quote it" if quote else "")
        elif self.pattern and re.fullmatch(self.pattern, value) is None:
            yield self.refuse(value, document, path)

    def words(self) -> str:
        return f"a text such as {self.such_as}" if self.such_as else "a text"


# A day.
Date = partial(
    Text, pattern=r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", such_as="2026-11-25, in quotes"
)


class Number(Shape, kw_only=True, eq=False):
    """A finite number within bounds. A whole one may be written as 16.0."""

    whole: bool = False
    min: float | None = None
    max: float | None = None
    above: float | None = None  # the number is larger than this
    below: float | None = None  # the number is smaller than this
    unit: str = ""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not is_finite(value)
            or (self.whole and value != int(value))
            or (self.min is not None and value < self.min)
            or (self.max is not None and value > self.max)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        ):
            yield self.refuse(value, document, path, hint=_number_meant(value))

    def words(self) -> str:
        low = self._bound("above", self.above) or self._bound("of at least", self.min)
        high = self._bound("below", self.below) or self._bound("of at most", self.max)
        limits = " and ".join(filter(None, (low, high.removeprefix("of ") if low else high)))
        if None not in (self.min, self.max):
            limits = self._bound("from", self.min) + self._bound(" to", self.max)
        kind = "a whole number" if self.whole else "a number"
        return " ".join(filter(None, (kind, self.unit and f"of {self.unit}", limits)))

    def _bound(self, words: str, at: float | None) -> str:
        if at is None:
            return ""
        return f"{words} {int(at):,}" if at == int(at) else f"{words} {at:g}"


class Integer(Number, kw_only=True, eq=False):
    """A whole number that is written as one: 16, not 16.0."""

    whole: bool = True

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if isinstance(value, float):
            yield self.refuse(value, document, path)
        else:
            yield from Number.faults(self, value, document, path)


class Flag(Shape, kw_only=True, eq=False):
    """true or false."""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, bool):
            yield self.refuse(value, document, path, hint=_quoted(value, "true|false"))

    def words(self) -> str:
        return "true or false"


class Choice(Shape, kw_only=True, eq=False):
    """One of these texts, numbers or flags."""

    values: tuple[Any, ...]

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not any(value == known and type(value) is type(known) for known in self.values):
            yield self.refuse(value, document, path, hint=_nearest(value, self.values))

    def words(self) -> str:
        if len(self.values) == 1:
            return str(self.values[0])
        shown = ", ".join(map(str, self.values[:LISTED]))
        more = len(self.values) - LISTED
        return f"one of {shown}{f' and {more} more' if more > 0 else ''}"


VERSION = Choice(values=(1,))  # of the form of a file


class ListOf(Shape, kw_only=True, eq=False):
    """A list of such values."""

    of: Shape
    least: int = 0  # how many
    most: int | None = None

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if (
            not isinstance(value, list)
            or len(value) < self.least
            or (self.most is not None and len(value) > self.most)
        ):
            yield self.refuse(value, document, path)
            return
        for index, item in enumerate(value):
            yield from faults_of(item, self.of, document, (*path, index))

    def words(self) -> str:
        if self.least and self.least == self.most:
            return f"a list of {self.least} values, each {self.of.words()}"
        return f"a list{' that is not empty' if self.least else ''}{_each(self.of)}"


class MapOf(Shape, kw_only=True, eq=False):
    """A map from any name to such a value."""

    of: Shape
    named: Shape = field(default_factory=Text)  # what the names may be
    least: int = 0  # how many

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, dict) or len(value) < self.least:
            yield self.refuse(value, document, path)
            return
        for name, item in value.items():
            named = () if type(self.named) is Shape else self.named.faults(name, document, path)
            for wrong in named:
                at = document.at((*path, name), key=True)
                yield replace(wrong, where=at, what=f"the name is '{name[:60]}'")
            yield from faults_of(item, self.of, document, (*path, name))

    def words(self) -> str:
        return f"a map{' that is not empty' if self.least else ''}{_each(self.of)}"


class Keys(Shape, kw_only=True, eq=False):
    """A map with these keys and no others."""

    keys: Mapping[str, Shape]
    required: tuple[str, ...] = ()
    nulls: bool = False  # null counts as a key that is left out
    # What to say of an unknown key, before the nearest is looked for: other_keys.hint_for.
    others: Callable[[str, Collection[str]], str] | None = None

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield self.refuse(value, document, path)
            return
        for key, item in value.items():
            shape = self.keys.get(key)
            if shape is None:
                place = path if isinstance(document, NamedValue) else (*path, key)
                at = document.at(place, key=True)
                fault = unknown_name("key", key, list(self.keys), at=at)
                said = self.others(str(key), self.keys) if self.others is not None else ""
                # With the right key named, the list of all is in the way.
                yield replace(fault, allowed="", hint=said) if said else fault
            elif item is not None or not (self.nulls or shape.null):
                yield from faults_of(item, shape, document, (*path, key))
        for key in self.required:
            if key not in value or (self.nulls and value[key] is None):
                inside = f" in '{path[-1]}'" if path and isinstance(path[-1], str) else ""
                what = f"`{key}` is missing{inside}"
                shape = self.keys[key]
                yield Fault(
                    where=document.at(path, key=True),
                    what=what,
                    allowed=shape.words(),
                    hint=shape.help,
                )

    def words(self) -> str:
        return f"a map with the keys {', '.join(self.keys)}"


class OneOf(Shape, kw_only=True, eq=False):
    """A value of one of several kinds, such as a text or a list of texts."""

    options: tuple[Shape, ...]

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        tried = [list(faults_of(value, option, document, path)) for option in self.options]
        if not all(tried):
            return
        # The option for lists says best what is wrong inside a list, and likewise for maps.
        for faults, option in zip(tried, self.options, strict=True):
            if isinstance(value, dict) and isinstance(option, Keys | MapOf):
                yield from faults
                return
            if isinstance(value, list) and isinstance(option, ListOf):
                yield from faults
                return
        choices = [item for option in self.options for item in getattr(option, "values", ())]
        yield self.refuse(value, document, path, hint=_nearest(value, choices))

    def words(self) -> str:
        return ", or ".join(option.words() for option in self.options)


# --------------------------------------------------------------------------- the check


def refuse_secrets(document: Located) -> None:
    """Raise InputError with the place of every secret in the data, and without its value."""
    refuse(
        Fault(
            where=document.at(path),
            what=(
                f"the value of `{'.'.join(map(str, path))}` looks like a"
                " secret; it would be copied into the run folder and the report"
            ),
            allowed="a secret belongs into the environment"
            + (f": {variable}" if variable else ", under the name that its library reads"),
            hint="remove it here; if others may have seen it, revoke it",
        )
        for path, variable in find_secrets(document.data)
    )


def check_shape(document: Located, shape: Shape, path: Sequence[str | int] = ()) -> list[Fault]:
    """Every fault of the document, or of its part at `path`; empty if it fits."""
    value = document.data
    for step in path:
        value = value[step]
    return list(faults_of(value, shape, document, tuple(path)))


def faults_of(value: Any, shape: Shape, document: Located, path: Path_) -> Iterable[Fault]:
    """What is wrong with a value at its path; null may be allowed."""
    if value is None:
        return () if shape.null or type(shape) is Shape else (shape.refuse(None, document, path),)
    return shape.faults(value, document, path)


def value_words(value: Any) -> str:
    """A wrong value in a message, in few words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        kind = "map" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = "empty" if value is None or value == "" else number_words(value, repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def number_words(value: Any, otherwise: Callable[[Any], str] = str) -> str:
    """A number as it was typed: a flag reads -5 as -5.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return otherwise(value)


def _named(path: Path_) -> str:
    last = next((i for i in range(len(path) - 1, -1, -1) if isinstance(path[i], str)), None)
    if last is None:
        return f"item {path[-1]}" if path else "the file"
    return f"`{path[last]}{''.join(f'[{index}]' for index in path[last + 1 :])}`"


def _quoted(value: Any, pattern: str) -> str:
    """The hint for a number or a flag that is a text, since it stands in quotes."""
    return "remove the quotes" if isinstance(value, str) and re.fullmatch(pattern, value) else ""


def _number_meant(value: Any) -> str:
    """The hint for a number that is written as a text: '8', '5k', '1,000', '1000-5000'."""
    if not isinstance(value, str):
        return ""
    with suppress(ValueError):
        return "remove the quotes" if is_finite(float(value)) else ""
    return "write one number in digits, without quotes" if re.search(r"\d", value) else ""


def _each(shape: Shape) -> str:
    return (
        ""
        if type(shape) is Shape
        else f", each value {shape.words()}{' or null' if shape.null else ''}"
    )


def _nearest(value: Any, known: Iterable[Any]) -> str:
    return did_you_mean(value, map(str, known)) if isinstance(value, str) else ""
