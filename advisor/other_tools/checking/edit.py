"""Changes of a configuration file as text: comments, order and style stay as they are.

Only the places of the changed keys are written anew, found by PyYAML's own events; a text that
cannot be changed so (a key that comes from an anchor which others use) is written whole, without
its comments.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.yaml_reader import Path_
from advisor.other_tools.reading.their_yaml import PYYAML, Loader, their_text, without_marks
from advisor.other_tools.reading.tool_file import changed, steps

CONTEXT_LINES = 2
_MARK = "\ue000"  # around the place of a number; no text that people write has it
_MARKED = re.compile(f'"{_MARK}([0-9]+){_MARK}"')
WIDTH = 100
MOST_WORK = 5_000_000  # changes x characters: a few seconds
_NOTHING: Any = object()  # at a path of which there is no value


def edited(text: str, changes: Mapping[str, Any], *, loader: Loader = PYYAML) -> str:
    """The text with these changes.

    Args:
        text: A YAML or JSON file that `their_text` reads.
        changes: Dotted key -> its new value; None takes the key away.

    Raises InputError for a text that is no map.
    """
    return changed_text(text, {steps(key): value for key, value in changes.items()}, loader=loader)


def changed_text(text: str, wanted: Mapping[Path_, Any], *, loader: Loader = PYYAML) -> str:
    """The same for changes by their paths. Raises InputError."""
    before = their_text(text, name="file", loader=loader).values
    if not isinstance(before, dict):
        raise InputError("no map of keys and values")
    after = before
    for path, value in wanted.items():
        after = changed(after, path, value)
    if len(wanted) * len(text) > MOST_WORK:  # each change parses the text
        return _whole(text, after)
    new = text
    for old, path, value in _steps(before, wanted):
        try:
            if not old:
                new = _one_change(new, path, value)
                continue
            if _at(before, old) != value:  # else it stays as it is written: 1.0e-4
                new = _one_change(new, old, value)
            new = _renamed(new, old, str(path[-1]))
        except _NotHere:
            return _whole(text, after)
    read = None
    with suppress(InputError):
        read = their_text(new, name="file", loader=loader).values
    return new if read == after else _whole(text, after)


def _steps(
    before: Mapping[str, Any], wanted: Mapping[Path_, Any]
) -> Iterator[tuple[Path_, Path_, Any]]:
    """(key that is renamed, key, value) of every change; no renamed key: (), a change as it stands.

    A key taken away with a new one of the same map behind it is that key under its new name.
    """
    entries = list(wanted.items())
    while entries:
        path, value = entries.pop(0)
        if value is None and entries and _at(before, path) is not _NOTHING:
            new, value_of_new = entries[0]
            same_map = new[:-1] == path[:-1] and isinstance(new[-1], str)
            if same_map and value_of_new is not None and _at(before, new) is _NOTHING:
                entries.pop(0)
                yield path, new, value_of_new
                continue
        yield (), path, value


def _at(values: Any, path: Path_) -> Any:
    """The value at a path, or _NOTHING."""
    for step in path:
        is_here = isinstance(values, Mapping) and step in values
        is_item = isinstance(values, list) and isinstance(step, int) and step < len(values)
        if not (is_here or is_item):
            return _NOTHING
        values = values[step]
    return values


def diff(old: str, new: str, name: str) -> list[str]:
    """The lines of a unified diff with a little context; none if nothing changed."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), name, f"{name} (changed)", lineterm="", n=CONTEXT_LINES
    )
    return list(lines)


def _whole(text: str, values: Mapping[str, Any]) -> str:
    """The file written anew."""
    import yaml

    if _is_json(text):
        return _dumped(values, indent=2) + "\n"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=WIDTH)


class _NotHere(Exception):
    """The place of a change cannot be found in the text."""


# --------------------------------------------------------------------------- the text as a tree


@dataclass(kw_only=True)
class _Node:
    """A value and where it stands: `text[start:end]`."""

    kind: str  # scalar | map | list | alias
    start: int
    end: int
    column: int = 0
    flow: bool = False
    is_block_text: bool = False  # | or >
    value: str = ""
    anchor: str = ""
    entries: list[tuple[_Node, _Node]] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)


def _tree(text: str) -> _Node | None:
    """The text as nodes with their places."""
    import yaml

    plain = without_marks(text.replace("\t", " ") if _is_json(text) else text)
    events = iter(yaml.parse(plain, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            return _node(next(events), events)
    return None


def _node(event: Any, events: Iterator[Any]) -> _Node:
    import yaml

    start, end = event.start_mark.index, event.end_mark.index
    where: dict[str, Any] = {"start": start, "end": end, "column": event.start_mark.column}
    if isinstance(event, yaml.AliasEvent):
        return _Node(kind="alias", **where)
    anchor = getattr(event, "anchor", None) or ""
    if isinstance(event, yaml.ScalarEvent):
        block = event.style in ("|", ">")
        return _Node(kind="scalar", value=event.value, is_block_text=block, anchor=anchor, **where)
    flow = bool(getattr(event, "flow_style", False))
    if isinstance(event, yaml.SequenceStartEvent):
        node = _Node(kind="list", flow=flow, anchor=anchor, **where)
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            node.items.append(_node(event, events))
        last = node.items[-1] if node.items else None
    else:
        node = _Node(kind="map", flow=flow, anchor=anchor, **where)
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = _node(event, events)
            node.entries.append((key, _node(next(events), events)))
        last = node.entries[-1][1] if node.entries else None
    # A block ends with its last value; where the parser sees its end, comments have gone by.
    node.end = event.end_mark.index if flow or last is None else last.end
    return node


def _one_change(text: str, path: Path_, value: Any) -> str:
    """The text with one change. Raises _NotHere."""
    node = _tree(text)
    if node is None:
        node_is_empty = not any(
            line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()
        )
        if node_is_empty and value is not None:
            return _with_line(text, len(text), _block(path, value, 0, text))
        return text
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        if node.kind == "list":
            if not isinstance(step, int) or step >= len(node.items):
                raise _NotHere
            if last:
                raise _NotHere  # a whole item: written anew
            node = node.items[step]
            continue
        if node.kind != "map":
            raise _NotHere
        entry = next((one for one in reversed(node.entries) if one[0].value == str(step)), None)
        if entry is None:
            if value is None:
                return text
            return _inserted(text, node, path[depth:], value)
        if last:
            same = [one for one in node.entries if one[0].value == str(step)]
            if value is None:
                if len(same) > 1:
                    raise _NotHere
                return _without(text, node, entry)
            return _replaced(text, entry, value)
        if entry[1].kind == "scalar" and not entry[1].value and value is not None:
            inner = value
            for rest in reversed(path[depth + 1 :]):
                inner = {str(rest): inner}
            return _replaced(text, entry, inner)
        node = entry[1]
    raise _NotHere


def _renamed(text: str, old: Path_, new: str) -> str:
    """The text with a key under its new name, at its place. Raises _NotHere."""
    node = _tree(text)
    for step in old[:-1]:
        if node is None or node.kind == "list":
            node = node.items[step] if node and isinstance(step, int) else None
        else:
            node = next((one[1] for one in node.entries if one[0].value == str(step)), None)
    same = [one[0] for one in node.entries if one[0].value == str(old[-1])] if node else []
    if len(same) != 1:
        raise _NotHere
    name = json.dumps(new) if _is_json(text) else _inline(new)
    return text[: same[0].start] + name + text[same[0].end :]


def _replaced(text: str, entry: tuple[_Node, _Node], value: Any) -> str:
    key, old = entry
    if old.anchor:
        raise _NotHere
    if _is_json(text):
        return text[: old.start] + _json(value, text, key) + text[old.end :]
    new = _inline(value)
    if old.start == old.end:  # nothing stands there: `key:`
        colon = text.index(":", key.end) + 1
        return f"{text[:colon]} {new}{text[colon:]}"
    if (old.kind in ("map", "list") and not old.flow) or old.is_block_text:
        colon = text.index(":", key.end) + 1
        end = old.end
        if old.is_block_text:  # its end is behind the last line break
            end = len(text[:end].rstrip()) if text[:end].endswith(("\n", " ")) else end
        return f"{text[:colon]} {new}{text[end:]}"
    return text[: old.start] + new + text[old.end :]


def _without(text: str, node: _Node, entry: tuple[_Node, _Node]) -> str:
    key, value = entry
    if value.anchor:
        raise _NotHere
    if not node.flow:
        if len(node.entries) == 1:
            raise _NotHere
        begin = text.rfind("\n", 0, key.start) + 1
        if text[begin : key.start].strip():  # the first key behind a dash
            raise _NotHere
        return text[:begin] + text[_line_after(text, entry) :]
    index = node.entries.index(entry)
    if index + 1 < len(node.entries):
        return text[: key.start] + text[node.entries[index + 1][0].start :]
    if index:
        return text[: node.entries[index - 1][1].end] + text[value.end :]
    return text[: key.start] + text[value.end :]


def _line_after(text: str, entry: tuple[_Node, _Node]) -> int:
    """Where the line behind an entry of a block begins."""
    key, value = entry
    # A block text ends behind its last line break.
    end = text.find("\n", max(value.end - (1 if value.is_block_text else 0), key.end))
    return len(text) if end == -1 else end + 1


def _inserted(text: str, node: _Node, path: Path_, value: Any) -> str:
    """With a key that was not there, behind the last one of its map."""
    if any(isinstance(step, int) for step in path):
        raise _NotHere
    if not node.flow:
        last = node.entries[-1][1]
        end = text.find(
            "\n", max(last.end - (1 if last.is_block_text else 0), node.entries[-1][0].end)
        )
        column = node.entries[0][0].column
        return _with_line(
            text, len(text) if end == -1 else end + 1, _block(path, value, column, text)
        )
    inner = value
    for step in reversed(path[1:]):
        inner = {str(step): inner}
    is_json = _is_json(text)
    name = json.dumps(str(path[0])) if is_json else _inline(str(path[0]))
    if not node.entries:
        written = f"{name}: {_json(inner, text, node) if is_json else _inline(inner)}"
        return f"{text[: node.start]}{{{written}}}{text[node.end :]}"
    key, last = node.entries[-1]
    begin = text.rfind("\n", 0, key.start) + 1
    own_line = not text[begin : key.start].strip()
    between = f",{_line_end(text)}{text[begin : key.start]}" if own_line else ", "
    written = f"{name}: {_json(inner, text, key) if is_json else _inline(inner)}"
    return text[: last.end] + between + written + text[last.end :]


def _with_line(text: str, at: int, lines: str) -> str:
    before = text[:at]
    if before and not before.endswith("\n"):
        before += _line_end(text)
    return before + lines + text[at:]


def _block(path: Path_, value: Any, column: int, text: str) -> str:
    """Lines for a key and, where it lies deeper, those around it."""
    lines = []
    for depth, step in enumerate(path):
        indent = " " * (column + 2 * depth)
        if depth == len(path) - 1:
            lines.append(f"{indent}{_inline(str(step))}: {_inline(value)}")
        else:
            lines.append(f"{indent}{_inline(str(step))}:")
    end = _line_end(text)
    return end.join(lines) + end


def _inline(value: Any) -> str:
    """A value on one line, as every YAML loader reads it back."""
    import yaml

    written = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return str(written).removesuffix("\n").removesuffix("\n...")


def _json(value: Any, text: str, key: _Node) -> str:
    """A value as JSON, indented as far as its key."""
    if not isinstance(value, dict | list) or not value or "\n" not in text.strip():
        return _dumped(value)
    lines = _dumped(value, indent=2).split("\n")
    return f"\n{' ' * key.column}".join(lines)


def _dumped(value: Any, indent: int | None = None) -> str:
    """JSON whose numbers are numbers to YAML too: 1.0e-08, since 1e-08 is a text there."""
    numbers: list[str] = []

    def marked(one: Any) -> Any:
        if isinstance(one, float):
            numbers.append(_inline(one))
            return f"{_MARK}{len(numbers) - 1}{_MARK}"
        if isinstance(one, dict):
            return {name: marked(inner) for name, inner in one.items()}
        return [marked(inner) for inner in one] if isinstance(one, list) else one

    written = json.dumps(marked(value), indent=indent, ensure_ascii=False)
    return _MARKED.sub(lambda found: numbers[int(found[1])], written)


def _is_json(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n")[:1] == "{"


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
