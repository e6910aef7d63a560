"""YAML's events -> plain data and the places of its parts (yaml_files.py says what is refused)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.shape import Path_

MAX_DEPTH = 20
Marks = dict[Path_, tuple[int, int]]  # path -> (line, column), both from 1

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+$")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_NOT_FINITE = (".nan", ".NaN", ".inf", "-.inf", ".Inf", "-.Inf")
# What JSON writes for a character beyond the first 65,536, and YAML does not know.
_HALVES = re.compile(r"(?<!\\)((?:\\\\)*)(\\ud[89ab][\da-f]{2}\\ud[c-f][\da-f]{2})", re.I)
_BOOLISH = {"yes", "no", "on", "off", "y", "n"}


def read_events(text: str, name: str) -> tuple[Any, tuple[Marks, Marks]]:
    """The data of a text of YAML; (places of keys, of values). Raises InputError, located."""
    if text.lstrip()[:1] in ("{", "["):
        text = _HALVES.sub(lambda found: found[1] + json.loads(f'"{found[2]}"'), text)
    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        reader = _EventReader(name, events)
        data = reader.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise InputError(f"not valid YAML: {error.problem or error.context}", where=at) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", -1)  # of a character that YAML does not allow at all
        line = text.count("\n", 0, position) + 1
        at = f"{name}:{line}" if position >= 0 else name
        raise InputError(f"not valid YAML: {str(error).splitlines()[0]}", where=at) from None
    refuse(reader.faults)
    return data, (reader.keys, reader.values)


class _EventReader:
    """One pass from YAML's events to plain data, collecting positions and faults.

    Nothing is built before its depth is known: the parser itself does not recurse.
    """

    def __init__(self, name: str, events: Iterator[Any]) -> None:
        self.name, self.events = name, events
        self.faults: list[Fault] = []
        self.keys: Marks = {}
        self.values: Marks = {}

    def fault(self, event: yaml.Event, what: str, hint: str = "") -> None:
        line, column = _place(event)
        self.faults.append(Fault(where=f"{self.name}:{line}:{column}", what=what, hint=hint))

    def document(self) -> Any:
        data = None
        for number, event in enumerate(self.events):
            if number == 2:  # the start of the stream, of the document, its value, its end
                data = self.value(event, ())
            elif number == 4 and type(event).__name__ == "DocumentStartEvent":
                self.fault(
                    event, "not valid YAML: a second document begins here", "keep one in a file"
                )
                break
        return data

    def value(self, event: Any, path: Path_) -> Any:
        kind = type(event).__name__
        self.values[path] = _place(event)
        if kind == "AliasEvent":
            self.fault(event, "aliases (*name) are not allowed here", "write the value out")
            return None
        if event.tag is not None:
            hint = "plain text, numbers, lists and maps only"
            self.fault(event, f"tags such as {event.tag} are not allowed", hint)
        if kind == "ScalarEvent":
            return self.scalar(event)
        if len(path) >= MAX_DEPTH:
            self.fault(event, f"nested deeper than {MAX_DEPTH} levels")
            raise InputError(faults=self.faults)
        if kind == "SequenceStartEvent":
            return [self.value(item, (*path, index)) for index, item in enumerate(self.parts())]
        return self.mapping(path)

    def parts(self) -> Iterator[Any]:
        """The events at which the parts of a list or a map begin."""
        for event in self.events:
            if type(event).__name__ in ("SequenceEndEvent", "MappingEndEvent"):
                return
            yield event

    def mapping(self, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_event in self.parts():
            key = getattr(key_event, "value", None)
            if key is None:  # a list, a map or an alias
                self.fault(key_event, "a key must be plain text")
                self.value(key_event, (*path, "?"))
                self.value(next(self.events), (*path, "?"))
                continue
            place = (*path, key)
            first = self.keys.setdefault(place, _place(key_event))
            if key_event.tag is not None:
                what = f"tags such as {key_event.tag} are not allowed"
                self.fault(key_event, what, "plain text as a key")
            elif key == "<<":
                self.fault(key_event, "merge keys (<<) are not allowed", "write the values out")
            elif key in result:
                what = f"'{key}' is given twice (first on line {first[0]})"
                self.fault(key_event, what, "keep one of them")
            result[key] = self.value(next(self.events), place)
        return result

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        # Quoted or block: always text. The C loader says "" for plain, Python's None.
        if event.style:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.match(text) and len(text) < 40:
            return int(text)
        if _HEX.match(text):
            return int(text, 16)
        what = hint = ""
        if text.lower() in _BOOLISH:
            what = f"'{text}' without quotes means true or false to some readers and text to others"
            hint = "write true, false, or quote it"
        elif _FLOAT.match(text):
            number = float(text)
            if math.isfinite(number):
                return number
            what = "a number too large to be usable"
        elif text in _NOT_FINITE:
            what = f"'{text}' is not a usable number"
        if not what:
            return text
        self.fault(event, what, hint)
        return None


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
