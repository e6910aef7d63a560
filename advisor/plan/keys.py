"""Stage keys that belong to one update scheme or one objective, as their own files declare them.

rules/updates/<name>.yaml and rules/objectives/<name>.yaml list such keys under `keys:` with type,
bounds and default. The reader of plans refuses what no file declares, the JSON Schema offers them
in the editor, trainers take their defaults from here. So a new method brings its keys in its own
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_cache import read_shipped
from advisor.ground.yaml_reader import Document
from advisor.methods.composition import OBJECTIVES, UPDATES

FOLDERS = {"update": ("updates", UPDATES), "objective": ("objectives", OBJECTIVES)}
# A path is relative to the plan file; a function is `file.py:name`. What else is text stays as it
# is when a plan is copied.
TYPES = ("integer", "number", "text", "path", "function", "text_or_list", "boolean", "choice")
SPEC_KEYS = (
    "type",
    "min",
    "max",
    "exclusive_min",
    "exclusive_max",
    "values",
    "default",
    "help",
    "source",
    "sources",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One declared key."""

    name: str
    owner: str  # "update lora": whose file declares it
    type: str
    min: float | None = None
    max: float | None = None
    exclusive_min: bool = False
    exclusive_max: bool = False
    values: tuple[Any, ...] = ()
    default: Any = None
    help: str = ""

    @property
    def allowed(self) -> str:
        """What may stand there, in words: 'a whole number from 1 to 4096'."""
        if self.type == "choice":
            return f"one of {', '.join(map(str, self.values))}"
        words = {
            "integer": "a whole number",
            "number": "a number",
            "text": "text",
            "path": "a file or folder",
            "function": "file.py:function",
            "text_or_list": "text, or a list of texts",
            "boolean": "true or false",
        }[self.type]
        low = (
            None
            if self.min is None
            else f"above {self.min:g}"
            if self.exclusive_min
            else f"{self.min:g}"
        )
        high = (
            None
            if self.max is None
            else f"below {self.max:g}"
            if self.exclusive_max
            else f"{self.max:g}"
        )
        if low and high:
            return (
                f"{words} {low} and {high}"
                if self.exclusive_min or self.exclusive_max
                else f"{words} from {low} to {high}"
            )
        if low:
            return f"{words} {low}" if self.exclusive_min else f"{words} of {low} or more"
        if high:
            return f"{words} {high}" if self.exclusive_max else f"{words} of {high} or less"
        return words

    def accepts(self, value: Any) -> bool:
        """True where the value has the declared type and lies within the declared bounds."""
        if value is None:
            return self.default is None
        match self.type:
            case "boolean":
                return isinstance(value, bool)
            case "text" | "path":
                return isinstance(value, str) and bool(value)
            case "function":
                return (
                    isinstance(value, str) and re.fullmatch(r".+:[A-Za-z_]\w*", value) is not None
                )
            case "text_or_list":
                return bool(value) and (
                    isinstance(value, str)
                    or (
                        isinstance(value, list | tuple)
                        and all(isinstance(part, str) and part for part in value)
                    )
                )
            case "choice":
                return any(value == known and type(value) is type(known) for known in self.values)
        if isinstance(value, bool) or not isinstance(
            value, int if self.type == "integer" else int | float
        ):
            return False
        if self.min is not None and (value <= self.min if self.exclusive_min else value < self.min):
            return False
        return not (
            self.max is not None and (value >= self.max if self.exclusive_max else value > self.max)
        )

    def schema(self) -> dict[str, Any]:
        """The key as a JSON Schema."""
        text: dict[str, Any] = {"type": "string", "minLength": 1}
        schemas: dict[str, dict[str, Any]] = {
            "integer": {"type": "integer"},
            "number": {"type": "number"},
            "text": text,
            "path": text,
            "function": {"type": "string", "pattern": r".+:[A-Za-z_]\w*$"},
            "text_or_list": {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "boolean": {"type": "boolean"},
            "choice": {"enum": list(self.values)},
        }
        schema = schemas[self.type]
        if self.min is not None:
            schema["exclusiveMinimum" if self.exclusive_min else "minimum"] = self.min
        if self.max is not None:
            schema["exclusiveMaximum" if self.exclusive_max else "maximum"] = self.max
        described = f"{self.help} ({self.owner})" if self.help else f"({self.owner})"
        return {**schema, "description": described} | (
            {} if self.default is None else {"default": self.default}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Values of another key that a method cannot go together with."""

    key: str
    values: tuple[Any, ...]
    because: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What one file of an update or objective says about the keys of a stage."""

    keys: Mapping[str, Key]
    defaults: Mapping[str, Any]  # of the keys that every stage has: learning_rate, ...
    unused: Mapping[str, str]  # such keys that this method does not read, and why
    refuses: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class KeySpecs:
    """Every declared key, by update and by objective."""

    updates: Mapping[str, Method]
    objectives: Mapping[str, Method]

    def allowed(self, objective: str, update: str) -> dict[str, Key]:
        """The keys a stage of that objective and update may have beside the common ones; the
        update's come first.
        """
        found: dict[str, Key] = {}
        for table, name in ((self.updates, update), (self.objectives, objective)):
            if name in table:
                found |= {key: spec for key, spec in table[name].keys.items() if key not in found}
        return found

    def owners(self, key: str) -> list[str]:
        """Who declares a key: ['update lora']."""
        return [
            spec.owner
            for table in (self.updates, self.objectives)
            for method in table.values()
            for name, spec in method.keys.items()
            if name == key
        ]

    def names(self) -> list[str]:
        """Every declared key's name, once, in file order."""
        return list(
            dict.fromkeys(
                name
                for table in (self.updates, self.objectives)
                for method in table.values()
                for name in method.keys
            )
        )

    def default(self, key: str, *, objective: str, update: str) -> Any:
        """The default of a common key (learning_rate, ...) for that objective and update; the
        objective's file wins. None: no default.
        """
        for table, name in ((self.objectives, objective), (self.updates, update)):
            if name in table and key in table[name].defaults:
                return table[name].defaults[key]
        return None

    def unused(self, key: str, *, objective: str, update: str) -> str | None:
        """Why this objective or update never reads a common key, or None where it does."""
        for axis, table, name in (
            ("update", self.updates, update),
            ("objective", self.objectives, objective),
        ):
            if name in table and key in table[name].unused:
                return f"{axis} {name} does not read it: {table[name].unused[key]}"
        return None

    def refused(self, stage: Mapping[str, Any]) -> list[tuple[str, Refusal]]:
        """(`update prefix`, what it refuses of this stage) of each method of the stage; keys are
        looked up in the stage as written.
        """
        methods = (("update", self.updates), ("objective", self.objectives))
        return [
            (f"{axis} {stage[axis]}", refusal)
            for axis, table in methods
            if stage.get(axis) in table
            for refusal in table[stage[axis]].refuses
            if any(
                stage.get(refusal.key) == value and type(stage.get(refusal.key)) is type(value)
                for value in refusal.values
            )
        ]

    def effective(
        self, options: Mapping[str, Any], *, objective: str, update: str
    ) -> dict[str, Any]:
        """A stage's options with the declared default of every key that was not given: what a
        trainer should read.
        """
        return {
            name: options.get(name, spec.default)
            for name, spec in self.allowed(objective, update).items()
        }


REFUSAL_KEYS = {item.name for item in fields(Refusal)}


@cache
def key_specs(root: Path | None = None) -> KeySpecs:
    """The keys declared under rules/, or under another folder of that layout.

    Raises InputError for a malformed file.
    """
    root = root or rules_dir()
    tables: dict[str, dict[str, Method]] = {}
    faults: list[Fault] = []
    for axis, (folder, names) in FOLDERS.items():
        tables[axis] = {}
        for name in names:
            path = root / folder / f"{name}.yaml"
            if path.is_file():
                tables[axis][name] = _method(
                    read_shipped(path, root=root), f"{axis} {name}", faults
                )
    if faults:
        raise InputError(faults=faults)
    return KeySpecs(updates=tables["update"], objectives=tables["objective"])


def _method(document: Document, owner: str, faults: list[Fault]) -> Method:
    data = document.data if isinstance(document.data, dict) else {}
    keys: dict[str, Key] = {}
    for name, spec in _map(data.get("keys")).items():
        at = document.at(("keys", name), key=True)
        spec = _map(spec)
        unknown = [part for part in spec if part not in SPEC_KEYS]
        if (
            spec.get("type") not in TYPES
            or unknown
            or (spec.get("type") == "choice" and not spec.get("values"))
        ):
            what = (
                f"unknown part '{unknown[0]}'"
                if unknown
                else "`type` is missing or unknown, or a choice has no `values`"
            )
            faults.append(
                Fault(
                    what=f"{at}: key '{name}': {what}",
                    allowed=f"types: {', '.join(TYPES)}; parts: {', '.join(SPEC_KEYS)}",
                )
            )
            continue
        parts = {
            part: value
            for part, value in spec.items()
            if part not in ("source", "sources", "values")
        }
        keys[name] = Key(name=name, owner=owner, values=tuple(spec.get("values") or ()), **parts)
        if not keys[name].accepts(keys[name].default) and keys[name].default is not None:
            faults.append(
                Fault(
                    what=(
                        f"{at}: key '{name}': its default {keys[name].default!r} is not"
                        f" {keys[name].allowed}"
                    )
                )
            )
    # A default is a bare value, or {value, source}.
    defaults = {
        key: value.get("value") if isinstance(value, dict) else value
        for key, value in _map(data.get("defaults")).items()
    }
    return Method(
        keys=keys,
        defaults=defaults,
        unused={key: str(why) for key, why in _map(data.get("unused")).items()},
        refuses=tuple(_refusals(document, data.get("refuses"), owner, faults)),
    )


def _refusals(
    document: Document, entries: Any, owner: str, faults: list[Fault]
) -> Iterator[Refusal]:
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        if (
            isinstance(entry, dict)
            and set(entry) <= REFUSAL_KEYS
            and REFUSAL_KEYS - {"hint"} <= set(entry)
            and isinstance(entry["values"], list)
        ):
            yield Refusal(**{**entry, "values": tuple(entry["values"])})
        else:
            faults.append(
                Fault(
                    what=(
                        f"{document.at(('refuses', number))}: {owner}: an entry of refuses is"
                        " incomplete"
                    ),
                    allowed="key, values (a list), because and, if you like, hint",
                )
            )


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
