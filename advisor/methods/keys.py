"""A key of the launch file as the file of a method declares it, and what a method refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# A path is relative to the plan file; a function is `file.py:name`. What else is text stays as it
# is when a plan is copied.
TYPES = ("integer", "number", "text", "path", "function", "text_or_list", "boolean", "choice")


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
