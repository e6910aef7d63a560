"""What is wrong with the keys and values of a file, as the tool itself would judge them: each with
its place, what is allowed, and whether the tool refuses the file, ignores the key in silence, or
takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.yaml_reader import Path_
from advisor.other_tools.key_names import meant_at_the_top, misspelt
from advisor.other_tools.keys import Key, keys_of_classes
from advisor.other_tools.old_keys import old_keys, prefixes
from advisor.other_tools.recognise import NAMES
from advisor.other_tools.tool_file import ToolFile

MOST = 200  # faults of one file
SHOWN = 15  # names of a short list of keys


def check_keys(file: ToolFile) -> None:
    """Add to the file what is wrong with its keys and values, in the order of the file."""
    _check_map(file, (), file.values, file.keys, unknown=_unknown_keys(file))


def _unknown_keys(file: ToolFile) -> str:
    """What the tool does with a key that it does not know: refused | kept | ignored."""
    classes = file.release.commands[file.command.name]
    if file.tool != "axolotl":
        return "refused"  # Hugging Face's parser, by which the others read
    return file.release.classes[classes[0]].unknown


def _check_map(
    file: ToolFile, path: Path_, values: Mapping[str, Any], keys: Mapping[str, Key], *, unknown: str
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
        _check_value(file, here, key, value)


def _say_unknown(
    file: ToolFile, path: Path_, value: Any, keys: Mapping[str, Key], *, unknown: str
) -> None:
    name, tool = str(path[-1]), NAMES[file.tool]
    if len(path) == 1:
        meant = meant_at_the_top(file.release, file.command.name, name, value, keys)
        hint = meant.say if meant is not None else ""
        instead = meant.instead if meant is not None else {}
    else:
        close = misspelt(name, keys)
        hint = f"did you mean '{close}'?" if close else ""
        outer = ".".join(map(str, path[:-1]))
        instead = {f"{outer}.{name}": None, f"{outer}.{close}": value} if close else {}
    if any(key and key in _dotted_keys(file) for key, new in instead.items() if new is not None):
        instead = {key: new for key, new in instead.items() if new is None}
    refuses = unknown == "refused"
    does = "refuses the file" if refuses else "ignores it without a word"
    allowed = f"known here: {', '.join(keys)}" if 0 < len(keys) <= SHOWN else ""
    file.fault(
        "error" if refuses else "warning",
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
            "note", path, f"'{name}': {NAMES[file.tool]} reads it as '{short}', for now",
            instead={f"{outer}.{name}": None, f"{outer}.{short}": value},
        )  # fmt: skip
    return keys.get(short)


def _dotted_keys(file: ToolFile) -> set[str]:
    return {".".join(map(str, path)) for path in file.key_marks}


def _say_old(file: ToolFile, name: str, key: Key, value: Any) -> None:
    """A key that is still read, and no longer wanted."""
    old = old_keys(file.tool).get(name)
    if old is not None:
        if not value and old.refused:
            return
        verb = "no longer takes it and stops" if old.refused else "reads it as a name that will go"
        file.fault(
            "error" if old.refused else "note", name, f"'{name}': {NAMES[file.tool]} {verb}",
            hint=old.words, instead=old.change(name, value),
        )  # fmt: skip
    elif key.deprecated:
        file.fault(
            "note", name, f"'{name}': {NAMES[file.tool]} says that this key will go",
            hint=f"it is now '{key.instead}'" if key.instead else "",
            instead={name: None, key.instead: value} if key.instead else {},
        )  # fmt: skip


def _check_value(file: ToolFile, path: Path_, key: Key, value: Any) -> None:
    """The value itself, and what a map or a list holds where their keys are known."""
    if isinstance(value, Mapping):
        _check_inside(file, path, key.classes, value)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            if isinstance(one, Mapping):
                _check_inside(file, (*path, index), key.item_classes, one)


def _check_inside(
    file: ToolFile, path: Path_, classes: tuple[str, ...], value: Mapping[str, Any]
) -> None:
    if not classes:
        return
    # Of several classes a map is the first one that takes it: what none of them knows is unknown.
    keys = keys_of_classes(file.release, classes)
    kinds = {file.release.classes[name].unknown for name in classes}
    unknown = "kept" if "kept" in kinds else "ignored" if "ignored" in kinds else "refused"
    _check_map(file, path, value, keys, unknown=unknown)
