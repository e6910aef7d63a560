"""Dataclasses as JSON objects: read with located faults, written back, described as a JSON Schema.

A field's annotation is the only description of a key: `steps: Annotated[int | None, "optimizer
steps"]`. Reader, writer, schema and manual derive from it. The type may be str, int, float, bool,
Any, Literal, another `JsonObject`, tuple[X, ...], Mapping[str, X], and X | None of any of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from inspect import get_annotations
from math import isfinite
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from advisor.ground.errors import Fault, InputError
from advisor.ground.shape import Choice, Flag, Integer, Keys, ListOf, MapOf, Number, Shape, Text

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
SCHEMA_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
EXTRA = "extra"
OMIT_NULL = object()  # in an annotation: the key is left out of the file if its value is null


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonObject:
    """A value that is an object in a JSON file.

    Keys that this version does not know go into `extra` and are written back.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any, *, at: str = "") -> Self:
        """The value that the plain data describe; a missing key takes its default.

        Args:
            at: Where the data come from, for the errors: a file's name.

        Raises InputError with every fault.
        """
        faults: list[Fault] = []
        value = _read_object(cls, data, _Place(at, ""), faults)
        if value is None or faults:
            raise InputError(faults=faults)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain data: own keys, then inherited ones, then those of `extra`."""
        found = {}
        for key in keys_of(type(self)):
            value = getattr(self, key.name)
            if value is not None or not key.omit_null:
                found[key.name] = _plain(value)
        return {**found, **{name: _plain(value) for name, value in self.extra.items()}}


Object = TypeVar("Object", bound=JsonObject)


class Key(NamedTuple):
    """One key of a JSON object."""

    name: str
    type: Any  # the annotation, without its description
    description: str
    required: bool
    omit_null: bool

    @property
    def kind(self) -> str:
        """Its type in words: 'a whole number or null'."""
        return _kind_in_words(self.type)


def keys_of(kind: type[JsonObject]) -> Sequence[Key]:
    """The keys of an object as they are written: its own first, then those it inherits."""
    hashable: Any = kind
    return _keys_of(hashable)


@cache
def _keys_of(kind: type[Any]) -> Sequence[Key]:
    hints = get_type_hints(kind, include_extras=True)
    parts = {part.name: part for part in fields(kind)}
    names = [name for owner in kind.__mro__ for name in get_annotations(owner)]
    return [_key(parts[name], hints[name]) for name in names if name != EXTRA]


def _key(part: Field[Any], hint: Any) -> Key:
    inner, *notes = (hint.__origin__, *hint.__metadata__) if _is_annotated(hint) else (hint,)
    return Key(
        name=part.name,
        type=inner,
        description=next((note for note in notes if isinstance(note, str)), ""),
        required=part.default is MISSING and part.default_factory is MISSING,
        omit_null=OMIT_NULL in notes,
    )


def parts_of(kind: type[JsonObject]) -> list[type[JsonObject]]:
    """The object and every kind of object inside it, outer before inner."""
    found = [kind]
    for owner in found:  # grows while it is read
        for key in keys_of(owner):
            found += [part for part in _objects_in(key.type) if part not in found]
    return found


def json_schema(kind: type[JsonObject], *, title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of the object; unknown keys are allowed, since they are kept."""
    inner = parts_of(kind)[1:]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **_object_schema(kind),
        "$defs": {part.__name__: _object_schema(part) for part in inner},
    }


# --------------------------------------------------------------------------- reading


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text that anybody may have written.

    Raises json.JSONDecodeError also for what Python's parser reports otherwise: too deep nesting,
    whole numbers of more than 4,300 digits, bytes that are no text.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise json.JSONDecodeError(str(error), "", 0) from None


def plain_json(raw: bytes) -> Any:
    """The data of a JSON file that was written by `to_dict`.

    Raises ValueError for anything else: numbers that are not finite, too deep nesting, half a
    surrogate pair, bytes that are no UTF-8.
    """
    try:
        text = raw.decode("utf-8")
        data = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


class _Place(NamedTuple):
    """A place inside a file: 'run.json' and 'stages[0].steps'."""

    file: str
    path: str

    def key(self, name: str) -> _Place:
        return _Place(self.file, f"{self.path}.{name}" if self.path else name)

    def item(self, number: int) -> _Place:
        return _Place(self.file, f"{self.path}[{number}]")

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.path) if part) or "the document"


def _read_object(
    kind: type[Object], data: Any, place: _Place, faults: list[Fault]
) -> Object | None:
    if not isinstance(data, Mapping):
        faults.append(_wrong(place, data, "an object"))
        return None
    values: dict[str, Any] = {}
    before = len(faults)
    for key in keys_of(kind):
        given = data.get(key.name)
        if key.required and key.name not in data:
            faults.append(
                Fault(where=str(place.key(key.name)), what=f"{place.key(key.name)} is missing")
            )
        elif key.required or given is not None:  # else null stands for the default
            values[key.name] = _read(key.type, given, place.key(key.name), faults)
    names = {key.name for key in keys_of(kind)}
    extra = {str(name): value for name, value in data.items() if name not in names}
    return None if len(faults) > before else kind(**values, extra=extra)


def _read(hint: Any, given: Any, place: _Place, faults: list[Fault]) -> Any:
    """The value of one annotation; appends to `faults` if the data are something else."""
    inner, nullable = _without_none(hint)
    if inner is Any or (given is None and nullable):
        return given
    origin = get_origin(inner)
    if _is_object(inner):
        return _read_object(inner, given, place, faults)
    if origin is tuple and isinstance(given, list | tuple):
        item = get_args(inner)[0]
        return tuple(
            _read(item, value, place.item(number), faults) for number, value in enumerate(given)
        )
    if origin is Mapping and isinstance(given, Mapping):
        item = get_args(inner)[1]
        return {
            str(key): _read(item, value, place.key(str(key)), faults)
            for key, value in given.items()
        }
    if origin is Literal and given in get_args(inner):
        return given
    if inner in WORDS and _is_a(inner, given):
        return given
    faults.append(_wrong(place, given, _kind_in_words(hint)))
    return None


def _is_a(kind: type, given: Any) -> bool:
    if isinstance(given, bool):
        return kind is bool
    return isinstance(given, int | float if kind is float else kind)


def _wrong(place: _Place, given: Any, wanted: str) -> Fault:
    shown = repr(given) if not isinstance(given, Mapping | list) else type(given).__name__
    return Fault(where=str(place), what=f"{place} is {shown[:60]}", allowed=f"it must be {wanted}")


# --------------------------------------------------------------------------- writing


def _plain(value: Any) -> Any:
    if isinstance(value, JsonObject):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


# --------------------------------------------------------------------------- describing


def _is_annotated(hint: Any) -> bool:
    return get_origin(hint) is Annotated


def _is_object(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, JsonObject)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """The annotation without `| None`, and whether it had that."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    rest = [part for part in get_args(hint) if part is not NoneType]
    if len(rest) != 1:
        raise TypeError(f"{hint}: a key of a JSON object has one type, or that and null")
    return rest[0], True


def _objects_in(hint: Any) -> list[type[JsonObject]]:
    if _is_object(hint):
        return [hint]
    return [found for part in get_args(hint) for found in _objects_in(part)]


def _kind_in_words(hint: Any) -> str:
    """'a whole number or null', as errors and the manual call a type."""
    inner, nullable = _without_none(hint)
    origin = get_origin(inner)
    if origin is Literal:
        words = " | ".join(str(word) for word in get_args(inner))
    elif origin is tuple:
        words = f"a list ({_kind_in_words(get_args(inner)[0])} each)"
    elif origin is Mapping:
        item = get_args(inner)[1]
        words = "an object" if item is Any else f"an object ({_kind_in_words(item)} each)"
    elif _is_object(inner):
        words = str(inner.__name__)
    else:
        words = "anything" if inner is Any else WORDS[inner]
    return f"{words} or null" if nullable else words


def _object_schema(kind: type[JsonObject]) -> dict[str, Any]:
    required = [key.name for key in keys_of(kind) if key.required]
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip().splitlines()[0],
        "properties": {
            key.name: {**_schema(key.type), "description": key.description} for key in keys_of(kind)
        },
        **({"required": required} if required else {}),
    }


def _schema(hint: Any) -> dict[str, Any]:
    inner, nullable = _without_none(hint)
    if nullable:
        return {"anyOf": [_schema(inner), {"type": "null"}]}
    origin = get_origin(inner)
    if _is_object(inner):
        return {"$ref": f"#/$defs/{inner.__name__}"}
    if origin is Literal:
        return {"enum": list(get_args(inner))}
    if origin is tuple:
        return {"type": "array", "items": _schema(get_args(inner)[0])}
    if origin is Mapping:
        item = get_args(inner)[1]
        return {"type": "object"} | ({} if item is Any else {"additionalProperties": _schema(item)})
    return {} if inner is Any else {"type": SCHEMA_TYPES[inner]}


T = TypeVar("T")
SIMPLE: Mapping[Any, type[Shape]] = {
    bool: Flag, int: Integer, float: Number, str: Text, Any: Shape,
}  # fmt: skip


def shape_of(kind: type, *, without: tuple[str, ...] = ()) -> Keys:
    """The shape of a map that `build` makes a value of the dataclass from.

    Args:
        kind: The dataclass.
        without: Fields that no key of the map stands for.
    """
    hints = _hints(kind)
    listed = [item for item in fields(kind) if item.name not in without]
    return Keys(
        keys={item.name: _shape(hints[item.name]) for item in listed},
        required=tuple(item.name for item in listed if default_of(item) is MISSING),
    )


def default_of(item: Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def build(kind: type[T], data: Mapping[str, Any], **made: Any) -> T:
    """The value of the dataclass that plain data of its shape stands for.

    Lists become tuples and whole numbers become floats if the field says so.

    Args:
        kind: The dataclass.
        data: Keys and values that have been checked against `shape_of(kind)`.
        made: Fields that are values already.
    """
    hints = _hints(cast(Any, kind))
    return kind(**{name: _value(hints[name], part) for name, part in data.items()}, **made)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _shape(hint: Any) -> Shape:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *notes = arguments
        shape = next((note for note in notes if isinstance(note, Shape)), None) or _shape(kind)
        help_ = next((note for note in notes if isinstance(note, str)), "")
        return replace(shape, help=help_) if help_ else shape
    if origin in (Union, UnionType):
        return replace(_shape(_not_none(arguments)), null=True)
    if origin is Literal:
        return Choice(values=arguments)
    if origin is tuple:
        return ListOf(of=_shape(arguments[0]))
    if origin in (dict, Mapping):
        return MapOf(of=_shape(arguments[1]), named=Shape())
    return SIMPLE[hint]() if hint in SIMPLE else shape_of(hint)


def _not_none(arguments: tuple[Any, ...]) -> Any:
    """The X of `X | None`."""
    (one,) = (part for part in arguments if part is not NoneType)
    return one


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin is Annotated:
        return _value(arguments[0], value)
    if origin in (Union, UnionType):
        return _value(_not_none(arguments), value)
    if origin is tuple:
        return tuple(_value(arguments[0], part) for part in value)
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value)
    return float(value) if hint is float else value
