"""A key of a plan's stage, and what a method refuses.

Every key is a `Key`: those that every stage may have (stage.py) and those that the file of a method
declares. The reader of plans, rules that set keys, messages and the JSON Schema all ask its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.shape import (
    Choice,
    Flag,
    Integer,
    Keys,
    ListOf,
    MapOf,
    NamedValue,
    Number,
    OneOf,
    Shape,
    Text,
    check_shape,
)


class PathText(Text):
    """A file or folder, relative to the plan file; it moves along when a plan is copied."""

    def words(self) -> str:
        return "a file or folder"


class FunctionText(Text):
    """A function in a file beside the plan: scores.py:judge."""

    def words(self) -> str:
        return "file.py:function"


class Uses(Struct, frozen=True, kw_only=True):
    """What others need to know of a key of every stage: a note in its annotation."""

    trl: tuple[str, ...] = ()  # arguments of TRL's config class that take its value
    decides: tuple[str, ...] = ()  # arguments that follow from it in another way
    recorded: str = ""  # what run.json says of it; empty: it is not recorded
    omits_null: bool = False  # run.json leaves it out if it is null
    memory: bool = True  # whether the memory of a run may depend on it
    result: bool = True  # whether the trained weights depend on it, beyond rounding


class Key(Struct, frozen=True, kw_only=True):
    """One key that a stage may have."""

    name: str
    owner: str  # whose key it is: "update lora", "every stage"
    shape: Shape
    default: Any = None  # None: there is none
    help: str = ""
    uses: Uses = Uses()

    @property
    def allowed(self) -> str:
        """What may be written, in words: 'a whole number from 1 to 4,096'."""
        return self.shape.words()

    def accepts(self, value: Any) -> bool:
        """Whether the key may hold the value."""
        return not check_shape(NamedValue(self.name, value), self.shape)


TYPES: Mapping[str, Shape] = {
    "integer": Integer(),
    "number": Number(),
    "text": Text(),
    "path": PathText(),
    # Rows: of bundled prompts, in trainers/teachers/replay.jsonl.
    "path_or_rows": OneOf(
        options=(PathText(), Keys(keys={"rows": Integer(min=1, max=500)}, required=("rows",)))
    ),
    "function": FunctionText(pattern=r".+:[A-Za-z_]\w*"),
    "text_or_list": OneOf(options=(Text(), ListOf(of=Text(), least=1))),
    "boolean": Flag(),
    "choice": Choice(values=()),
    "entries": ListOf(of=Keys(keys={}, nulls=True), least=1),
}
# What the file of a method says of a key that it declares; and of a key in each entry of a list.
_OF_A_VALUE = Keys(
    keys={
        "type": Choice(values=tuple(name for name in TYPES if name != "entries")),
        "min": Number(),
        "max": Number(),
        "exclusive_min": Flag(help="the key has to be above `min`"),
        "exclusive_max": Flag(help="the key has to be below `max`"),
        "values": ListOf(of=OneOf(options=(Text(), Number(), Flag())), least=1),
        "default": Shape(),
        "help": Text(),
        "source": Text(help="an id of rules/sources.yaml"),
        "sources": ListOf(of=Text()),
    },
    required=("type",),
)
DECLARATION = replace(
    _OF_A_VALUE,
    keys={
        **_OF_A_VALUE.keys,
        "type": Choice(values=tuple(TYPES)),
        "keys": MapOf(of=_OF_A_VALUE, help="entries: the keys that each may have"),
        "also": ListOf(of=Text(), help="entries: keys of this file that each may have, too"),
    },
)
PARTS = {
    "number": ("min", "max", "exclusive_min", "exclusive_max"),
    "choice": ("values",),
    "entries": ("keys", "also"),
}


def declared_key(
    name: str, owner: str, said: Mapping[str, Any], beside: Mapping[str, Any] | None = None
) -> Key:
    """The key of a declaration that has the shape above.

    Args:
        beside: The declarations of the same file, which entries may take over by `also`.
    """
    shape = TYPES[said["type"]]
    if isinstance(shape, Number):
        low, high = said.get("min"), said.get("max")
        over, under = said.get("exclusive_min"), said.get("exclusive_max")
        shape = replace(
            shape,
            min=None if over else low,
            above=low if over else None,
            max=None if under else high,
            below=high if under else None,
        )
    elif isinstance(shape, Choice):
        shape = replace(shape, values=tuple(said.get("values", ())))
    elif isinstance(shape, ListOf) and isinstance(shape.of, Keys):
        inside = {key: (beside or {})[key] for key in said.get("also", ())} | said.get("keys", {})
        keys = [declared_key(key, owner, part) for key, part in inside.items()]
        shapes = {key.name: replace(key.shape, help=key.help) for key in keys}
        shape = replace(shape, of=replace(shape.of, keys=shapes))
    default = said.get("default")
    return Key(
        name=name,
        owner=owner,
        shape=replace(shape, null=default is None),
        default=default,
        help=said.get("help", ""),
    )


def unused_parts(said: Mapping[str, Any]) -> list[str]:
    """Parts of a declaration that say nothing about a key of its type: `min` of a text."""
    kind = {"integer": "number"}.get(said["type"], said["type"])
    return [part for of, parts in PARTS.items() if of != kind for part in parts if part in said]


class Refusal(Struct, frozen=True, kw_only=True):
    """Values of another key that a method cannot go together with."""

    key: str
    values: Annotated[tuple[Any, ...], ListOf(of=Shape(), least=1)]
    because: str
    hint: str = ""
