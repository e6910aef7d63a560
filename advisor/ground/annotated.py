"""Annotated structs as file formats: read with located faults, built, written, described.

A format is written down once, as the struct that it is read into: its fields are the keys, and
those without a default are required. In `Annotated[float, Number(above=0), "share of the steps"]`
the shape narrows the type, and the text says what the key means. The type may be str, int, float,
bool, Any, Literal, another such struct, tuple[X, ...], Mapping[str, X], or X | None.

A `JsonObject` is a file that the program writes itself. Its numbers and texts have no bounds, keys
of a newer version are kept, and null stands for the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import get_annotations
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import NODEFAULT, Struct, field
from msgspec.structs import replace

from advisor.ground.errors import Fault, refuse
from advisor.ground.shape import (
    Choice,
    Flag,
    Integer,
    Keys,
    ListOf,
    Located,
    MapOf,
    NamedValue,
    Number,
    Path_,
    Shape,
    Text,
    check_shape,
    faults_of,
)

T = TypeVar("T")
SIMPLE: Mapping[Any, type[Shape]] = {
    bool: Flag, int: Integer, float: Number, str: Text, Any: Shape,
}  # fmt: skip
PLAIN = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
EXTRA = "extra"
OMIT_NULL = object()  # in an annotation: the key is left out of the file if its value is null


# --------------------------------------------------------------------------- shapes of structs


def shape_of(kind: type, *, without: tuple[str, ...] = ()) -> Keys:
    """The shape of a map that `build` makes a value from; `without`: fields that are no keys."""
    hints = _hints(kind)
    listed = {name: one for name, one in defaults_of(kind).items() if name not in without}
    return Keys(
        keys={name: _shape(hints[name]) for name in listed},
        required=tuple(name for name, default in listed.items() if default is NODEFAULT),
    )


def defaults_of(kind: Any) -> dict[str, Any]:
    """Field -> its default, or NODEFAULT; in order.

    Not by `msgspec.structs.fields`, which evaluates every annotation: a twentieth of an answer.
    """
    names, ends = kind.__struct_fields__, kind.__struct_defaults__
    made = [one.factory() if hasattr(one, "factory") else one for one in ends]
    return dict(zip(names, [*[NODEFAULT] * (len(names) - len(ends)), *made], strict=True))


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _shape(hint: Any, *, in_json: bool = False) -> Shape:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *notes = arguments
        stated = next((note for note in notes if isinstance(note, Shape)), None)
        shape = stated or _shape(kind, in_json=in_json)
        help_ = next((note for note in notes if isinstance(note, str)), "")
        return replace(shape, help=help_) if help_ else shape
    if origin in (Union, UnionType):
        return replace(_shape(_not_none(hint), in_json=in_json), null=True)
    if origin is Literal:
        return Choice(values=arguments)
    if origin is tuple:
        return ListOf(of=_shape(arguments[0], in_json=in_json))
    if origin in (dict, Mapping):
        return MapOf(of=_shape(arguments[1], in_json=in_json), named=Shape())
    if in_json and hint in PLAIN:
        return Plain(type=hint)
    if hint in SIMPLE:
        return SIMPLE[hint]()
    return object_shape(hint) if issubclass(hint, JsonObject) else shape_of(hint)


def _not_none(hint: Any) -> Any:
    (one,) = (part for part in get_args(hint) if part is not NoneType)
    return one


def build(kind: type[T], data: Mapping[str, Any], made: Mapping[str, Any] | None = None) -> T:
    """The struct of plain data that fit its shape; `made` are fields that are values already.

    Lists become tuples, and whole numbers floats if a field of a file that people write says so.
    """
    hints = _hints(cast(Any, kind))
    return kind(**{name: _value(hints[name], part) for name, part in data.items()}, **(made or {}))


def _value(hint: Any, value: Any, *, in_json: bool = False) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin is Annotated:
        return _value(arguments[0], value, in_json=in_json)
    if origin in (Union, UnionType):
        return _value(_not_none(hint), value, in_json=in_json)
    if origin is tuple:
        return tuple(_value(arguments[0], part, in_json=in_json) for part in value)
    if origin is Mapping:
        inner = arguments[1]
        return {str(key): _value(inner, part, in_json=in_json) for key, part in value.items()}
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _object(hint, value) if issubclass(hint, JsonObject) else build(hint, value)
    return float(value) if hint is float and not in_json else value


# --------------------------------------------------------------------------- JSON files


class JsonObject(Struct, frozen=True, kw_only=True):
    """An object of a JSON file. Keys that this version does not know are kept in `extra`."""

    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any, *, at: str = "") -> Self:
        """The value of the plain data of the file `at`. Raises InputError with every fault."""
        faults = check_shape(_JsonData(at, data), object_shape(cls))
        refuse(faults)
        return _object(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: own keys, then inherited ones, then those of `extra`."""
        shape = object_shape(type(self))
        values = {name: getattr(self, name) for name in shape.keys}
        kept = {
            name: _plain(value)
            for name, value in values.items()
            if value is not None or name not in shape.omit_null
        }
        return kept | {name: _plain(value) for name, value in self.extra.items()}


Object = TypeVar("Object", bound=JsonObject)


def _object(kind: type[Object], data: Mapping[str, Any]) -> Object:
    shape, hints = object_shape(kind), _hints(cast(Any, kind))
    given = [key for key in shape.keys if key in shape.required or data.get(key) is not None]
    values = {key: _value(hints[key], data[key], in_json=True) for key in given}
    extra = {str(key): value for key, value in data.items() if key not in shape.keys}
    return kind(**values, extra=extra)


def _plain(value: Any) -> Any:
    if isinstance(value, JsonObject):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


class Plain(Shape, kw_only=True, eq=False):
    """Any value of one of the types of JSON."""

    type: Any

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        wanted = int | float if self.type is float else self.type
        if isinstance(value, bool) != (self.type is bool) or not isinstance(value, wanted):
            yield self.refuse(value, document, path)

    def words(self) -> str:
        return PLAIN[self.type]


class ObjectShape(Keys, kw_only=True, eq=False):
    """A `JsonObject` as plain data: further keys are allowed, and null is a key left out."""

    kind: type[JsonObject]
    omit_null: tuple[str, ...]  # keys that are left out of the file if their value is null

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, Mapping):
            yield self.refuse(value, document, path)
            return
        for name, shape in self.keys.items():
            given, place = value.get(name), (*path, name)
            if name in self.required and name not in value:
                at = document.at(place)
                yield Fault(where=at, what=f"{at} is missing")
            elif name in self.required or given is not None:
                yield from faults_of(given, shape, document, place)

    def words(self) -> str:
        return f"an object ({self.kind.__name__})"


def object_shape(kind: type[JsonObject]) -> ObjectShape:
    """The shape of an object; its own keys first, then those it inherits."""
    return _object_shape(cast(Any, kind))


@cache
def _object_shape(kind: Any) -> ObjectShape:
    hints = _hints(kind)
    names = [name for owner in kind.__mro__ for name in get_annotations(owner) if name != EXTRA]
    required = {name for name, default in defaults_of(kind).items() if default is NODEFAULT}
    return ObjectShape(
        kind=kind,
        keys={name: _shape(hints[name], in_json=True) for name in names},
        required=tuple(name for name in names if name in required),
        omit_null=tuple(
            name for name in names if OMIT_NULL in getattr(hints[name], "__metadata__", ())
        ),
    )


class _JsonData(NamedValue):
    """Plain data and the name of their file: 'run.json: stages[0].steps'."""

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        inside = NamedValue("", None).at(path)
        return ": ".join(filter(None, (self.name, inside))) or "the document"


def parts_of(kind: type[JsonObject]) -> list[type[JsonObject]]:
    """The object and every kind of object inside it, outer before inner."""
    found = [kind]
    for owner in found:  # grows while it is read
        for shape in object_shape(owner).keys.values():
            while isinstance(shape, ListOf | MapOf):
                shape = shape.of
            if isinstance(shape, ObjectShape) and shape.kind not in found:
                found.append(shape.kind)
    return found


# --------------------------------------------------------------------------- JSON texts


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text. Raises JSONDecodeError, too, if it is too deep or no UTF-8."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise json.JSONDecodeError(str(error), "", 0) from None
