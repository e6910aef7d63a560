"""YAML and JSON as people write them: read with the place of each key, and changed in their own
text, so that comments, order and quotes stay.

The text is parsed once by PyYAML into nodes, which know where they stand. Tags are not followed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import date
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from advisor.ground.errors import InputError
from advisor.ground.shape import Path_

MAX_VALUES, MAX_DEPTH = 20_000, 40  # aliases followed
MAX_DIGITS = 9  # of a place in a list
LONGEST = 100  # characters of a number or a date
STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # 2e-5, a text to PyYAML
HAND_HINT = "this does not look written by hand"


def steps(key: str) -> Path_:
    """The path of a dotted key."""
    return tuple(
        int(step) if step.isascii() and step.isdigit() and len(step) <= MAX_DIGITS else step
        for step in key.split(".")
    )


def parsed(text: str, *, name: str) -> Node | None:
    """The document as a node; None if there is none. Raises InputError, located, for no YAML."""
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON may be indented by tabs; inside texts it has none
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        said = (error.problem or error.context or "not YAML").splitlines()[0]
        hint = "YAML is indented by spaces: replace the tabs" if "'\\t'" in said else ""
        raise InputError(f"not valid YAML: {said}", where=where, hint=hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"not valid YAML: {said}", where=name) from None


class PlainData:
    """A node as plain data, and where its keys stand. Raises InputError for what is too large."""

    def __init__(self, node: Node | None, *, name: str) -> None:
        self.name, self._count, self._scalars = name, 0, yaml.SafeLoader("")
        self.marks: dict[Path_, tuple[int, int]] = {}  # (line, column) from 1
        self.value: Any = None if node is None else self._plain(node, ())

    def _plain(self, node: Node, path: Path_) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:
            what = f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels, aliases followed"
            raise InputError(what, where=self.name, hint=HAND_HINT)
        if isinstance(node, SequenceNode):
            return [self._plain(one, (*path, place)) for place, one in enumerate(node.value)]
        return self._map(node, path) if isinstance(node, MappingNode) else self._scalar(node)

    def _map(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                several = value.value if isinstance(value, SequenceNode) else [value]
                for one in reversed(several):
                    found = self._plain(one, (*path, "<<"))
                    merged |= found if isinstance(found, dict) else {}
                continue
            text = "a key that is no text"
            if isinstance(key, ScalarNode):
                text = self._whole(key)
            if text in own:
                line, column = key.start_mark.line + 1, key.start_mark.column + 1
                what = f'not valid YAML: found duplicate key "{text}"'
                raise InputError(what, where=f"{self.name}:{line}:{column}")
            self.marks[(*path, text)] = key.start_mark.line + 1, key.start_mark.column + 1
            own[text] = self._plain(value, (*path, text))
        return {**merged, **own}

    def _whole(self, node: Node) -> str:
        """The text, with what JSON writes as two halves of a character made one."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            at = f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
            raise InputError("half of a character, such as \\ud800", where=at) from None

    def _scalar(self, node: Node) -> Any:
        text = self._whole(node)
        if node.tag == STRING:
            is_float = isinstance(node, ScalarNode) and not node.style and FLOAT.fullmatch(text)
            value = float(text) if is_float else text
        else:
            value = text
            # What a tag says may be anything, and no number is so long.
            with suppress(yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError):
                value = self._scalars.construct_object(node) if len(text) <= LONGEST else text
        if isinstance(value, date):
            return value.isoformat()
        is_odd = isinstance(value, float) and not math.isfinite(value)
        return text if is_odd or isinstance(value, bytes) else value


def read_word(text: str) -> Any:
    """A word of a command line as the value that it reads as."""
    try:
        value = PlainData(parsed(text, name="value"), name="value").value
    except InputError:
        return text
    return text if value is None else value


# --------------------------------------------------------------------------- changes


def edited(
    text: str, changes: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> str | None:
    """The text with other values: dotted key -> value, or None; `renamed` ones keep their place.
    A value that changes is written in one line.

    None if that takes a hand, as for values that an anchor shares.
    """
    root, names = parsed(text, name=""), renamed or {}
    old = PlainData(root, name="").value
    wanted = deepcopy(old)
    for key, value in changes.items():
        _change(wanted, steps(key), value)
    with suppress(ValueError):
        json.loads(text)
        second = text.partition("\n")[2]
        spaces = len(second) - len(second.lstrip()) or None
        return json.dumps(wanted, indent=spaces, ensure_ascii=False) + "\n"
    if not isinstance(root, MappingNode) or root.flow_style:
        return None
    parts, at, told = list[str](), 0, set[str]()
    for key, value in root.value:
        name, start, end = str(key.value), key.start_mark.index, _end(text, key, value)
        today = name if name in wanted or names.get(name) in old else names.get(name, name)
        told.add(today)
        if today == name and _same(old.get(name), wanted.get(name)):
            continue
        if today in wanted:
            line = "\n" if text[start:end].endswith("\n") else ""
            parts += [text[at:start], f"{_written(today)}: {_written(wanted[today])}{line}"]
            at = end
        else:
            parts.append(text[at:start])
            at = end if text[:end].endswith("\n") else text.find("\n", end) + 1 or len(text)
    parts += [text[at:], "" if text.endswith("\n") else "\n"]
    new = {name: value for name, value in wanted.items() if name not in {*told, *old}}
    made = "".join([*parts, *(f"{_written(one)}: {_written(new[one])}\n" for one in new)])
    with suppress(InputError):
        if PlainData(parsed(made, name=""), name="").value == wanted:
            return made
    return None


def _change(node: Any, path: Path_, value: Any) -> None:
    for step in path[:-1]:
        if not _holds(node, step) or node[step] is None:
            if value is None or not isinstance(node, dict):
                return
            node[step] = {}
        node = node[step]
    if value is None and _holds(node, path[-1]):
        del node[path[-1]]
    elif value is not None and (isinstance(node, dict) or _holds(node, path[-1])):
        node[path[-1]] = value


def _holds(node: Any, step: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(step, int) and step < len(node)
    return isinstance(node, dict) and step in node


def _end(text: str, key: Node, value: Node) -> int:
    """Behind the last thing that belongs to a value; PyYAML's own mark is behind comments."""
    if value.start_mark.index < key.end_mark.index:  # an alias
        return text.find("\n", key.end_mark.index) % (len(text) + 1)
    while isinstance(value, CollectionNode) and value.value and not value.flow_style:
        last = value.value[-1]
        value = last[1] if isinstance(last, tuple) else last
    return int(value.end_mark.index)


class _Dumper(yaml.SafeDumper):
    """Writes texts that look like numbers in quotes, as every reader of YAML takes them."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def _written(value: Any) -> str:
    text = yaml.dump(
        [value],
        Dumper=_Dumper,
        default_flow_style=True,
        width=10**6,
        allow_unicode=True,
        sort_keys=False,
    )
    return str(text).strip()[1:-1]


def _same(one: Any, other: Any) -> bool:
    """Equal, also in kind: true is not 1."""
    return bool(one == other) and json.dumps(one, default=str) == json.dumps(other, default=str)
