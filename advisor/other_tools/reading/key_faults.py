"""What is wrong with the keys and values of a file, as the tool itself would judge them: each with
its place, what is allowed, and whether the tool refuses the file, ignores the key in silence, or
takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from advisor.ground.yaml_reader import Path_
from advisor.other_tools.reading.key_names import meant_at_the_top, misspelt
from advisor.other_tools.reading.tool_file import KeyFault, ToolFile
from advisor.other_tools.tables.keys import Key, keys_of_classes
from advisor.other_tools.tables.old_keys import old_keys, old_value, prefixes
from advisor.other_tools.tables.tool import tool_named
from advisor.other_tools.tables.values import allowed, check_value, is_meant

MOST = 200  # faults of one file
SHOWN = 15  # names of a short list of keys
FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
ALIKE = 0.6  # a wrong value and the choice that is meant
SHOWN_CHARS = 60  # of a value


def check_keys(file: ToolFile) -> None:
    """Add to the file what is wrong with its keys and values, in the order of the file.

    Its `values` are then those that the tool goes on with: a text that it reads as a number is one.
    """
    parsing = file.about.parsing
    unknown, way = str(parsing["unknown_keys"]), file.way or str(parsing["values"])
    _check_map(file, (), file.values, file.keys, unknown=unknown, way=way)
    for name, key in file.keys.items():
        # Of a key with several names only its own is missed.
        if key.required and name == key.name and not _is_named(file, key):
            file.faults.append(
                KeyFault(
                    severity="error",
                    key=name,
                    where=file.name,
                    what=f"{file.title} needs the key '{name}'",
                    allowed=allowed(key),
                )
            )


def _is_named(file: ToolFile, key: Key) -> bool:
    return any(name in file.values for name in (key.name, *key.also))


def _check_map(
    file: ToolFile,
    path: Path_,
    values: dict[str, Any],
    keys: Mapping[str, Key],
    *,
    unknown: str,
    way: str,
) -> None:
    for name, value in values.items():
        if len(file.faults) >= MOST:
            return
        key = keys.get(name)
        here = (*path, name)
        taken_off = prefixes(file.tool).get(".".join(map(str, path)), "") if path else ""
        if key is None and taken_off and name.startswith(taken_off):
            key = _say_prefix(file, here, value, keys, taken_off)
        if key is None:
            if unknown != "kept":
                _say_unknown(file, here, value, keys, unknown=unknown)
            continue
        if not path:
            _say_old(file, name, key, value)
        if ".".join(map(str, here)) not in file.open:
            values[name] = _checked(file, here, key, value, way)


def _say_unknown(
    file: ToolFile, path: Path_, value: Any, keys: Mapping[str, Key], *, unknown: str
) -> None:
    name, tool = str(path[-1]), tool_named(file.tool).name
    if len(path) == 1:
        meant = meant_at_the_top(file.release, file.command.name, name, value, keys)
        hint = meant.say if meant is not None else ""
        instead = meant.instead if meant is not None else {}
        instead = {
            key: as_number(keys[key], new) if key in keys else new for key, new in instead.items()
        }
    else:
        close = misspelt(name, keys)
        hint = f"did you mean '{close}'?" if close else ""
        outer = ".".join(map(str, path[:-1]))
        instead = {f"{outer}.{name}": None, f"{outer}.{close}": value} if close else {}
    if any(key and key in _dotted_keys(file) for key, new in instead.items() if new is not None):
        instead = {key: new for key, new in instead.items() if new is None}
    refuses = unknown == "refused"
    does = "refuses the file" if refuses else "ignores it without a word"
    severity = "error" if refuses else "note" if value is None else "warning"
    allowed = f"known here: {', '.join(keys)}" if 0 < len(keys) <= SHOWN else ""
    file.fault(
        severity,
        path,
        f"{file.title} has no key '{name}' {'here ' if len(path) > 1 else ''}and {does}",
        allowed=allowed,
        hint=hint or f"not in {tool} {file.release.release}; a newer release may have it",
        instead=instead,
    )


def _say_prefix(
    file: ToolFile, path: Path_, value: Any, keys: Mapping[str, Key], taken_off: str
) -> Key | None:
    """The key that is meant, where the tool takes the beginning of a name off."""
    name = str(path[-1])
    short = name.removeprefix(taken_off)
    if short in keys:
        outer = ".".join(map(str, path[:-1]))
        file.fault(
            "note", path, f"'{name}': {tool_named(file.tool).name} reads it as '{short}', for now",
            instead={f"{outer}.{name}": None, f"{outer}.{short}": value},
        )  # fmt: skip
    return keys.get(short)


def _dotted_keys(file: ToolFile) -> set[str]:
    return {".".join(map(str, path)) for path in file.key_marks}


def _say_old(file: ToolFile, name: str, key: Key, value: Any) -> None:
    """A key that is still read, and no longer wanted."""
    if value is None or value is False:
        return  # as if it were not there
    old = old_keys(file.tool).get(name)
    if old is not None:
        title = tool_named(file.tool).name
        said = f"{title} no longer accepts it" if old.refused else f"deprecated in {title}"
        file.fault(
            "error" if old.refused else "note", name, f"'{name}': {said}",
            hint=old.words, instead=old.change(name, value),
        )  # fmt: skip
    elif key.deprecated:
        heir = file.keys.get(key.instead)
        same = heir is not None and is_meant(heir, value)
        hint = f"it is now '{key.instead}'" if same else f"see '{key.instead}'"
        file.fault(
            "note", name, f"'{name}': deprecated in {tool_named(file.tool).name}",
            hint=hint if key.instead else "",
            instead={name: None, key.instead: value} if same else {},
        )  # fmt: skip


def _checked(file: ToolFile, path: Path_, key: Key, value: Any, way: str) -> Any:
    """The value that the tool goes on with. What is wrong with it, and with what it holds where the
    keys of that are known, is added to the file.
    """
    taken = check_value(way, key, value)
    if isinstance(value, str) and key.name in (file.about.parsing.get("text_for_list") or ()):
        return value
    if taken.outcome == "refused":
        _say_value(file, path, key, value, "error", "refuses it")
    elif taken.outcome == "passed":
        what = "takes it unchecked, and fails later or does another thing"
        _say_value(file, path, key, value, "warning", what)
    if isinstance(value, dict):
        _check_inside(file, path, key.classes, value, way)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            if isinstance(one, dict):
                _check_inside(file, (*path, index), key.item_classes, one, way)
    if taken.outcome in ("refused", "passed"):
        return value
    return as_number(key, taken.value)


def _say_value(file: ToolFile, path: Path_, key: Key, value: Any, severity: str, what: str) -> None:
    shown = shown_value(value)
    meant = _meant_value(file, path, key, value)
    dotted = ".".join(map(str, path))
    if key.bare:
        limits, hint = "a switch of the command line, which takes no value", "delete the key"
    else:
        limits = f"'{path[-1]}' is {allowed(key)}"
        hint = f"did you mean {shown_value(meant)}?" if meant is not None else ""
    file.fault(
        severity,
        path,
        f"'{path[-1]}' is {shown}: {file.title} {what}",
        allowed=limits,
        hint=hint,
        instead={dotted: meant} if meant is not None else {dotted: None} if key.bare else {},
    )


def shown_value(value: Any) -> str:
    """A value for a message, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"'{value}'" if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _meant_value(file: ToolFile, path: Path_, key: Key, value: Any) -> Any:
    """The value that is near to a wrong one and is allowed; None if there is no such."""
    if isinstance(value, str):
        if "flag" in key.types and value.lower() in FLAGS:
            return FLAGS[value.lower()]
        number = as_number(key, value)
        if number is not value and is_meant(key, number):
            return number
        texts = [one for one in key.choices if isinstance(one, str)]
        close = old_value(file.tool, str(path[-1]), value) or misspelt(value, texts, alike=ALIKE)
        if close is not None:
            return close
    if isinstance(value, float) and value.is_integer() and is_meant(key, int(value)):
        return int(value)
    if "text" in key.types and not key.choices and isinstance(value, int | float):
        return None if isinstance(value, bool) else str(value)
    if "list" in key.types and is_meant(key, [value]):
        return [value]
    return None


def as_number(key: Key, value: Any) -> Any:
    """A text that reads as the number which the key is about, as that number."""
    if not isinstance(value, str) or not {"integer", "number"} & set(key.types):
        return value
    with suppress(ValueError, OverflowError):
        number = float(value)
        if not math.isfinite(number):
            return value
        return int(number) if number.is_integer() and "integer" in key.types else number
    return value


def _check_inside(
    file: ToolFile, path: Path_, classes: tuple[str, ...], value: dict[str, Any], way: str
) -> None:
    if not classes:
        return
    # Of several classes a map is the first one that takes it: what none of them knows is unknown.
    keys = keys_of_classes(file.release, classes)
    kinds = {file.release.classes[name].unknown for name in classes}
    unknown = "kept" if "kept" in kinds else "ignored" if "ignored" in kinds else "refused"
    if way != "pydantic":
        unknown, way = "refused", "as_they_are"  # dataclasses: Class(**the_map)
    _check_map(file, path, value, keys, unknown=unknown, way=way)
