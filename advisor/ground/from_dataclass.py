"""Shapes derived from dataclasses, and values of dataclasses built from plain data of that shape.

So a file format is written down once, as the dataclass that it is read into: its fields are the
keys, and those without a default are required. In `Annotated[float, Number(above=0), "share of the
steps"]` the shape narrows the type, and the text says what the key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from advisor.ground.shape import Choice, Flag, Integer, Keys, ListOf, MapOf, Number, Shape, Text

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
