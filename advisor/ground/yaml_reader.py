"""Strict YAML: one reader for rules, facts, catalogues, answers and plans.

Plain data only, each node's position kept, YAML 1.2 scalars, and everything that surprises people
refused with file, line and column: duplicate keys, aliases and anchors, tags, merge keys, unquoted
yes/no/on/off, great depth and size. JSON is read through it too (JSON is YAML), so that errors in
an answers file look the same in both forms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import read_at_most

if TYPE_CHECKING:  # imported where a text is parsed: shipped files are kept (yaml_cache.py)
    import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 60_000  # what a second is enough for

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE, _FALSE = {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_INT = re.compile(r"[-+]?[0-9]+$")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_BRACKETS = re.compile(r"[\[\]{}]")
_MARKS = re.compile(rf"([-?:][ \t]+){{{MAX_DEPTH}}}")  # "- - - - ..." and "? ? ? ...", each a level
_BOOLISH = {"yes", "no", "on", "off", "y", "n"}

PLAIN_TAGS = {
    "str",
    "int",
    "float",
    "bool",
    "null",
    "seq",
    "map",
    "timestamp",
    "value",
}  # what the parser resolves by itself

Path_ = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data with the position of every key and value: path -> (line, column), both from 1."""

    name: str
    data: Any
    key_marks: Mapping[Path_, tuple[int, int]]
    value_marks: Mapping[Path_, tuple[int, int]]
    checked: bool = False  # a shipped file that was found to have its shape, now or before

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        """'plan.yaml:12:13' for a path, or for the nearest enclosing node that has a position."""
        path = tuple(path)
        first, second = (
            (self.key_marks, self.value_marks) if key else (self.value_marks, self.key_marks)
        )
        while True:
            mark = first.get(path) or second.get(path)
            if mark is not None or not path:
                break
            path = path[:-1]
        return f"{self.name}:{mark[0]}:{mark[1]}" if mark else self.name


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a document; `spot / "key"` is one below it."""

    document: Document
    path: Path_ = ()

    def __truediv__(self, part: str | int) -> Spot:
        return Spot(self.document, (*self.path, part))

    def at(self, *, key: bool = False) -> str:
        return self.document.at(self.path, key=key)


def read_yaml(path: Path | str, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> Document:
    """The file as a Document. Raises InputError, located, for anything that is not plain data."""
    path = Path(path)
    name = name or str(path)
    try:
        if path.is_dir():
            raise InputError("is a folder, a YAML or JSON file is expected", where=name)
        raw = read_at_most(path, max_bytes)
    except FileNotFoundError:
        raise InputError("no such file", where=name, hint="check the path") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=name) from None
    return parse_yaml(raw, name=name, max_bytes=max_bytes)


def parse_yaml(raw: bytes | str, *, name: str, max_bytes: int = MAX_BYTES) -> Document:
    """The text as a Document; `name` stands for the file in messages ('<stdin>' for standard
    input).
    """
    node = compose_yaml(raw, name=name, max_bytes=max_bytes)
    walk = _Walk(name)
    data = walk.value(node, ()) if node is not None else None
    if walk.faults:
        raise InputError(faults=walk.faults)
    return Document(name, data, walk.key_marks, walk.value_marks)


def compose_yaml(raw: bytes | str, *, name: str, max_bytes: int = MAX_BYTES) -> yaml.Node | None:
    """The text as PyYAML's nodes, none built into a value yet; None for an empty one.

    Raises InputError, located, for what is no YAML, too large or too deep to be read safely.
    """
    text = raw if isinstance(raw, str) else decoded(raw, name)
    if len(raw) > max_bytes:
        raise InputError(
            f"larger than {max_bytes:,} bytes",
            where=name,
            hint="this does not look like a hand-written file",
        )
    _refuse_size(text, name)
    _refuse_depth(text, name)
    import yaml

    try:
        node: yaml.Node | None = yaml.compose(
            text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        return node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise InputError(f"not valid YAML: {error.problem or error.context}", where=at) from None
    except yaml.YAMLError as error:
        position = getattr(
            error, "position", None
        )  # of a character that YAML does not allow at all
        at = (
            f"{name}:{text.count(chr(10), 0, position) + 1}"
            if isinstance(position, int) and position >= 0
            else name
        )
        raise InputError(f"not valid YAML: {str(error).splitlines()[0]}", where=at) from None


def decoded(raw: bytes, name: str) -> str:
    """The text of a UTF-8 file, without its mark. Raises InputError, located."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            "not UTF-8 text", where=f"{name}:{line}", hint="save the file as UTF-8"
        ) from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if "\0" in line_text:
            raise InputError(
                "contains a NUL byte", where=f"{name}:{number}", hint="this is not a text file"
            )
    return text


def _refuse_size(text: str, name: str) -> None:
    """Stop before millions of values are built: each is followed by a comma, a colon or the end of
    a line.
    """
    if text.count(",") + text.count(": ") + text.count("\n") > MAX_VALUES:
        raise InputError(
            f"more than {MAX_VALUES:,} values",
            where=name,
            hint="this does not look like a hand-written file",
        )


def _refuse_depth(text: str, name: str) -> None:
    """Stop before the parser's own recursion does: brackets, indentation and marks in a row each
    bound the depth.
    """
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        for bracket in _BRACKETS.findall(line):
            depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
            if depth > 10 * MAX_DEPTH:
                break
        indent = len(line) - len(line.lstrip(" "))
        if depth > 10 * MAX_DEPTH or indent > 40 * MAX_DEPTH or _MARKS.search(line):
            raise InputError(f"nested deeper than {MAX_DEPTH} levels", where=f"{name}:{number}")


class _Walk:
    """One pass from YAML nodes to plain data, collecting positions and faults."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[Fault] = []
        self.key_marks: dict[Path_, tuple[int, int]] = {}
        self.value_marks: dict[Path_, tuple[int, int]] = {}
        self.seen: set[int] = set()
        self.aliased: set[int] = set()

    def fault(self, node: yaml.Node, what: str, hint: str = "") -> None:
        mark = node.start_mark
        self.faults.append(
            Fault(where=f"{self.name}:{mark.line + 1}:{mark.column + 1}", what=what, hint=hint)
        )

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.value_marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if (
            id(node) in self.seen
        ):  # an alias hands out the very node of its anchor, position included
            if id(node) not in self.aliased:
                self.fault(
                    node,
                    "used again by an alias: aliases (*name) are not allowed here",
                    "write the value out",
                )
            self.aliased.add(id(node))
            return None
        self.seen.add(id(node))
        if len(path) > MAX_DEPTH:
            self.fault(node, f"nested deeper than {MAX_DEPTH} levels")
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
            self.fault(
                node,
                f"tags such as {node.tag} are not allowed",
                "plain text, numbers, lists and maps only",
            )
            return None
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.mapping(node, path)

    def mapping(self, node: yaml.Node, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node.value, list):  # a list or a map
                self.fault(key_node, "a key must be plain text")
                continue
            if id(key_node) in self.seen:
                self.fault(key_node, "aliases (*name) are not allowed here", "write the key out")
                continue
            self.seen.add(id(key_node))
            if key_node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS | {"merge"}:
                self.fault(
                    key_node, f"tags such as {key_node.tag} are not allowed", "plain text as a key"
                )
                continue
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key == "<<":
                self.fault(key_node, "merge keys (<<) are not allowed", "write the values out")
                continue
            if key in result:
                self.fault(
                    key_node,
                    f"'{key}' is given twice (first on line {lines[key]})",
                    "keep one of them",
                )
                continue
            lines[key] = line
            self.key_marks[(*path, key)] = (line, key_node.start_mark.column + 1)
            result[key] = self.value(value_node, (*path, key))
        return result

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if (
            node.style
        ):  # quoted or block: always text (the C loader says "" for plain, the Python one None)
            return text
        if text in _NULL:
            return None
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        if text.lower() in _BOOLISH:
            self.fault(
                node,
                f"'{text}' without quotes means true or false to some readers and text to others",
                "write true, false, or quote it",
            )
            return None
        if _INT.match(text) and len(text) < 40:
            return int(text)
        if _HEX.match(text):
            return int(text, 16)
        if _INT.match(text) or _FLOAT.match(text):
            number = float(text)
            if not math.isinf(number):
                return number
            self.fault(node, "a number too large to be usable")
            return None
        if text in (".nan", ".NaN", ".inf", "-.inf", ".Inf", "-.Inf"):
            self.fault(node, f"'{text}' is not a usable number")
            return None
        return text
