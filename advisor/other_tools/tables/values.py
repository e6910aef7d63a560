"""What another tool makes of a value of its file, as its own parser would.

Three ways are known (`parsing.values` in rules/tools/TOOL.yaml), found by trying the parsers:

- `argparse`: a text is read as on a command line, every other value is taken without a look (TRL,
  which makes the values of a file the defaults of its options);
- `as_they_are`: nothing is looked at, not even texts (LLaMA-Factory: HfArgumentParser.parse_dict);
- `pydantic`: values are checked and turned into the key's type where pydantic sees a way (Axolotl).

What a class refuses beyond that when it is made stands in the key's `refuses`, and what it lets
through in its `takes`: both were tried when the key table was made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from advisor.ground.shape import Choice, Keys, ListOf, Text
from advisor.other_tools.tables.keys import PLAIN, Key

WAYS = ("argparse", "as_they_are", "pydantic")
PARSING = Keys(
    help="what the tool's own parser does, found by trying it",
    keys={
        "loader": Choice(
            values=("pyyaml", "omegaconf"),
            help="pyyaml: 2e-5 without a dot is a text; omegaconf: a number, and a key that is"
            " given twice is refused",
        ),
        "values": Choice(values=WAYS, help="advisor/other_tools/tables/values.py"),
        "unknown_keys": Choice(values=("refused", "ignored")),
        "text_for_list": ListOf(
            of=Text(), help="keys of a list in which one text alone means the same"
        ),
    },
    required=("loader", "values", "unknown_keys"),
)
WORDS = {
    "flag": "true or false", "integer": "a whole number", "number": "a number", "text": "a text",
    "list": "a list", "map": "a map", "null": "null",
}  # fmt: skip
YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
PYDANTIC_YES, PYDANTIC_NO = (*YES, "on"), (*NO, "off")
NONE = ("none", "null")  # texts that argparse's keys read as nothing, unless they hold texts
LISTED = 12  # choices that are written out

Outcome = Literal["meant", "turned", "passed", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What becomes of a value.

    Attributes:
        outcome: `meant` a value of the key's type; `turned` into one by the tool; `passed` without
            a check although it is none, so that it fails later or means something else; `refused`
            with an error before the tool begins.
        value: What the tool goes on with.
    """

    outcome: Outcome
    value: Any


def kind_of(value: Any) -> str:
    """The table's word for the kind of a value; `any` of a date or another value that YAML has."""
    if value is None:
        return "null"
    for word, kind in KINDS:
        if isinstance(value, kind):
            return word
    return "any"


KINDS: Sequence[tuple[str, type | tuple[type, ...]]] = (
    ("flag", bool), ("integer", int), ("number", float), ("text", str), ("list", (list, tuple)),
    ("map", dict),
)  # fmt: skip


def trial_kind(value: Any) -> str:
    """The kind, of a text more closely: `digits` if it reads as a number."""
    kind = kind_of(value)
    return "digits" if kind == "text" and _number(value) is not None else kind


def allowed(key: Key) -> str:
    """What a key may hold, for a message: 'a whole number of at least 1, or null'."""
    if "any" in key.types:
        return "any value"
    words = list(_allowed(key))
    return ", or ".join(words)


def _allowed(key: Key) -> Iterator[str]:
    kinds = {kind_of(choice) for choice in key.choices}
    for name in key.types:
        if name in kinds and name != "null":
            listed = [str(item) for item in key.choices if kind_of(item) == name]
            more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
            yield f"one of {', '.join(listed[:LISTED])}{more}"
            if not key.open:
                continue
        if name in PLAIN:
            yield WORDS[name] + _bounds(key, name) + _items(key, name)
        else:
            yield "a map of its keys"


def _bounds(key: Key, name: str) -> str:
    if name not in ("integer", "number"):
        return ""
    limits = {
        "at least": key.min, "more than": key.above, "at most": key.max, "less than": key.below
    }  # fmt: skip
    said = [f"{words} {limit:g}" for words, limit in limits.items() if limit is not None]
    return f" of {' and '.join(said)}" if said else ""


def _items(key: Key, name: str) -> str:
    if name not in ("list", "map") or not key.of:
        return ""
    return " of " + " or ".join(
        {"text": "texts", "integer": "whole numbers", "number": "numbers", "flag": "flags"}.get(
            item, f"{item}s" if item in PLAIN else "maps"
        )
        for item in key.of
    )


# --------------------------------------------------------------------------- the check


def check_value(way: str, key: Key, value: Any) -> Taken:
    """What a tool of this way makes of the value; the keys of a map inside it are not looked at.

    `value` is what the tool's own YAML loader makes of the text.
    """
    if key.bare:  # a switch takes no value: what follows it is taken for the script
        return Taken(outcome="refused", value=value)
    if key.argument:
        return _argument(key, value)
    taken = _by_way(way, key, value)
    if taken.outcome == "meant":
        return taken
    kinds = {trial_kind(value)} | ({"other"} if _is_other(key, value) else set())
    if kinds & set(key.takes):
        return replace(taken, outcome="passed")
    if kinds & set(key.refuses):
        return replace(taken, outcome="refused")
    return taken


def _by_way(way: str, key: Key, value: Any) -> Taken:
    if way == "argparse" and key.text_is and isinstance(value, str):
        return _read_text(key, value)
    if is_meant(key, value):
        return Taken(outcome="meant", value=value)
    if way == "pydantic":
        return _pydantic(key, value)
    if way == "argparse" and isinstance(value, str):
        return _read_text(key, value)
    return Taken(outcome="passed", value=value)


def is_meant(key: Key, value: Any) -> bool:
    """Whether the value is of the key's type, one of its choices and within its bounds."""
    kind = kind_of(value)
    if "any" in key.types:
        return True
    if kind == "map" and any(name not in PLAIN for name in key.types):
        return True
    if not _fits(kind, key.types) or _is_other(key, value):
        return False
    if kind in ("integer", "number"):
        return _within(key, value)
    if kind == "list":
        return len(value) >= key.least and all(_item_meant(key, item) for item in value)
    if kind == "map":
        return all(_item_meant(key, item) for item in value.values())
    return True


def _fits(kind: str, types: Sequence[str]) -> bool:
    return kind in types or (kind == "integer" and "number" in types)


def _item_meant(key: Key, item: Any) -> bool:
    if not key.of:
        return True
    kind = kind_of(item)
    if kind == "map" and any(name not in PLAIN for name in key.of):
        return True
    return _fits(kind, key.of) and (kind not in ("integer", "number") or _within(key, item))


def _is_other(key: Key, value: Any) -> bool:
    """Whether the key has choices of the value's kind, and this is none of them."""
    kind = kind_of(value)
    of_kind = [choice for choice in key.choices if kind_of(choice) == kind]
    if not of_kind or value in of_kind:
        return False
    if kind == "text" and key.pattern:
        return re.match(key.pattern, value) is None
    return not key.open


def _within(key: Key, number: float) -> bool:
    return (
        (key.min is None or number >= key.min)
        and (key.max is None or number <= key.max)
        and (key.above is None or number > key.above)
        and (key.below is None or number < key.below)
    )


# --------------------------------------------------------------------------- argparse


def _read_text(key: Key, text: str) -> Taken:
    """A text for a key that holds other things."""
    kinds = [name for name in (key.text_is, *key.types, *key.of) if name]
    nullable = "null" in key.types and "flag" not in key.types
    if nullable and text.lower() in NONE:
        return Taken(outcome="turned", value=None)
    for kind in kinds:
        if kind == "text":  # one text where several are meant, or another than the choices
            return Taken(outcome="passed", value=text)
        if kind not in PLAIN:
            return Taken(outcome="refused", value=text)
        if kind in ("flag", "integer", "number", "map"):
            read = _read(kind, text)
            if read is None:
                return Taken(outcome="refused", value=text)
            return Taken(outcome="turned", value=read)
    return Taken(outcome="passed", value=text)


def _read(kind: str, text: str) -> Any:
    if kind == "flag":
        return _flag(text, YES, NO)
    if kind == "integer":
        with suppress(ValueError):
            return int(text)
    if kind == "number":
        return _number(text)
    return None


def _argument(key: Key, value: Any) -> Taken:
    """A value that is handed to another command line as a text: 4 arrives as "4"."""
    text = str(value)
    read = text if "text" in key.types else _read(key.types[0], text)
    if read is None or (key.choices and not key.open and text not in map(str, key.choices)):
        return Taken(outcome="refused", value=text)
    return Taken(outcome="meant" if is_meant(key, value) else "turned", value=read)


# --------------------------------------------------------------------------- pydantic


def _pydantic(key: Key, value: Any) -> Taken:
    """Pydantic's lax mode, which tries each type of a union."""
    for kind in key.types:
        turned = _turned(kind, value)
        if turned is not None and (kind not in ("integer", "number") or _within(key, turned)):
            return Taken(outcome="turned", value=turned)
    return Taken(outcome="refused", value=value)


def _turned(kind: str, value: Any) -> Any:
    """The value as one of this kind; None if pydantic sees no way."""
    if kind == "flag":
        if isinstance(value, str):
            return _flag(value, PYDANTIC_YES, PYDANTIC_NO)
        return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
    if kind in ("integer", "number") and isinstance(value, str | int | float):
        number = _number(value) if isinstance(value, str) else value
        if number is None:
            return None
        if kind == "number":
            return float(number)
        return int(number) if math.isfinite(number) and number == int(number) else None
    return None


def _flag(text: str, yes: Sequence[str], no: Sequence[str]) -> bool | None:
    return True if text.lower() in yes else False if text.lower() in no else None


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    return None
