"""What a stage's key may hold, asked for one value: rules set keys, and a wrong value should fail
there and not in a plan.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt

from advisor.methods.keys import Key
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Stage

NOT_SET = (
    "name",
    "objective",
    "update",
    "quantization",
    "start_from",
    "data",
    "trl",
    "peft",
    "options",
)  # a stage's place and axes are decided elsewhere
SPLIT = {
    "effective_batch_size": "int"
}  # rows a step over all cards: the fit search splits it into micro_batch_size and grad_accum


def setting_keys() -> tuple[str, ...]:
    """Every key that a `set` rule may name."""
    return (*_common(), *SPLIT, *key_specs().names())


def setting_fault(key: str, value: Any) -> str | None:
    """What the key may hold, in words, where the value is not that; None where it is fine. Raises
    KeyError for an unknown key.
    """
    if key in SPLIT:
        return (
            None
            if isinstance(value, int) and not isinstance(value, bool) and value >= 1
            else "a whole number of 1 or more"
        )
    if key in _common():
        hint = _common()[key]
        return None if _accepts(hint, value) else _words(hint)
    declared = _declared(key_specs(), key)
    if not declared:
        raise KeyError(key)
    return (
        None
        if any(spec.accepts(value) for spec in declared)
        else " or ".join(dict.fromkeys(spec.allowed for spec in declared))
    )


@cache
def _common() -> Mapping[str, Any]:
    """The keys that every stage has -> their annotated types."""
    hints = typing.get_type_hints(Stage, include_extras=True)
    return {
        item.name: hints[item.name]
        for item in fields(Stage)
        if item.name not in NOT_SET
        and (item.default is not MISSING or item.name == "learning_rate")
    }


def _declared(specs: KeySpecs, key: str) -> list[Key]:
    return [
        method.keys[key]
        for table in (specs.updates, specs.objectives)
        for method in table.values()
        if key in method.keys
    ]


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a plain value has an annotated type, bounds included.

    Text is never a number, true is never 1.
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *bounds = typing.get_args(hint)
        return _accepts(inner, value) and all(_within(bound, value) for bound in bounds)
    if origin in (Union, types.UnionType):
        return any(_accepts(part, value) for part in typing.get_args(hint))
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    return isinstance(value, int | float if hint is float else hint)


def _within(bound: Any, value: Any) -> bool:
    match bound:
        case Gt():
            return bool(value > bound.gt)
        case Ge():
            return bool(value >= bound.ge)
        case Lt():
            return bool(value < bound.lt)
        case Le():
            return bool(value <= bound.le)
    return True


def _words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *bounds = typing.get_args(hint)
        said = [
            f"{'over' if isinstance(b, Gt) else 'at least'} {b.gt if isinstance(b, Gt) else b.ge}"
            for b in bounds
            if isinstance(b, Gt | Ge)
        ]
        said += [
            f"{'under' if isinstance(b, Lt) else 'at most'} {b.lt if isinstance(b, Lt) else b.le}"
            for b in bounds
            if isinstance(b, Lt | Le)
        ]
        return " ".join([_words(inner), " and ".join(said)]).strip()
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in typing.get_args(hint))
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "null",
    }[hint]
