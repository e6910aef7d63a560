"""Strict YAML: one reader for rules, facts, catalogues, answers and plans.

Plain data only, each node's position kept, YAML 1.2 scalars, and everything that surprises people
refused with file, line and column: duplicate keys, aliases and anchors, tags, merge keys, unquoted
yes/no/on/off, great depth and size. JSON is read through it too (JSON is YAML), so that errors in
an answers file look the same in both forms.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.files import open_new, read_at_most
from advisor.ground.resources import cache_folder, rules_dir
from advisor.ground.shape import Shape, check_shape

if TYPE_CHECKING:
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


BETWEEN = "\x1f"  # steps of a path; no key of ours holds it
MAX_KEPT = 1000  # files in the cache; more means many versions came and went
PACKAGE = str(Path(__file__).parents[1])


class _Marks(Mapping[Path_, tuple[int, int]]):
    """Positions as they are kept: {"tables␟gate␟0␟id":[line,column],...}.

    Parsed when the first one is asked for: most files are read without any fault to locate, and
    positions are four fifths of what is kept.
    """

    def __init__(self, kept: bytes) -> None:
        if kept[:1] + kept[-1:] != b"{}":
            raise ValueError("not the positions that were kept")
        self.kept = kept

    @cached_property
    def positions(self) -> Mapping[str, list[int]]:
        positions: Mapping[str, list[int]] = json.loads(self.kept)
        return positions

    def __getitem__(self, path: Path_) -> tuple[int, int]:
        line, column = self.positions[_joined(path)]
        return line, column

    def __iter__(self) -> Iterator[Path_]:
        return (
            (
                tuple(int(step) if step.isdigit() else step for step in joined.split(BETWEEN))
                if joined
                else ()
            )
            for joined in self.positions
        )

    def __len__(self) -> int:
        return len(self.positions)


def _kept_document(raw: bytes, name: str) -> Document:
    """A document as `_keep` wrote it: data, positions of keys, positions of values, a line each.

    Raises ValueError where the file is something else.
    """
    data, keys, values = raw.split(b"\n")
    return Document(name, json.loads(data), _Marks(keys), _Marks(values), checked=True)


def _joined(path: Path_) -> str:
    return BETWEEN.join(map(str, path))


def read_shipped(
    path: Path, *, shape: Shape | Callable[[], Shape] | None = None, root: Path | None = None
) -> Document:
    """A file under rules/, called 'rules/...' in messages.

    `shape`, or a function that builds it if it is needed, is the one that every reader of this file
    asks for; without one the file may hold anything, and whoever reads it checks it.

    Raises InputError as `read_yaml` does, and with every fault of a file that has not the `shape`.
    """
    root = root or rules_dir()
    name = (
        f"rules/{path.relative_to(root).as_posix()}"
        if path.is_relative_to(root)
        else f"rules/{path.parent.name}/{path.name}"
    )
    try:
        raw = path.read_bytes()
    except OSError:
        return read_yaml(path, name=name)  # says what is wrong
    how = b"any" if shape is None else b"checked"
    kept = _folder() / f"{hashlib.sha256(_code() + how + raw).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        document = _kept_document(_read_own(kept), name)
        return document if shape is not None else replace(document, checked=False)
    document = parse_yaml(raw, name=name)
    if shape is not None:
        faults = check_shape(document, shape if isinstance(shape, Shape) else shape())
        if faults:
            raise InputError(faults=faults)
        document = replace(document, checked=True)
    _keep(document, kept)
    return document


@cache
def _code() -> bytes:
    """A stamp of the package's source files, by size and time: another one reads or checks
    otherwise.
    """
    return hashlib.sha256("\n".join(sorted(_stamps(PACKAGE))).encode()).digest()


def _stamps(folder: str) -> Iterator[str]:
    """Path, size and time of each source file below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield f"{entry.path}:{status.st_size}:{status.st_mtime_ns}"
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _stamps(entry.path)


@cache
def _folder() -> Path:
    return cache_folder() / "rules"


def _read_own(path: Path) -> bytes:
    """The content of a file that only this user can have written.

    Raises OSError if there is none, PermissionError if it is another user's or open to others.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise PermissionError(errno.EPERM, "not a file of this user alone", str(path))
        return file.read()


def read_derived(name: str, paths: Iterable[Path], build: Callable[[], Any]) -> Any:
    """What `build` makes of shipped files, as plain data: made again only when a file or the code
    has changed.

    For many files of which one answer needs a few facts: one small file is read in their place.
    """
    digest = hashlib.sha256(_code() + name.encode())
    try:
        for path in paths:
            digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    except OSError:
        return build()  # says what is wrong
    kept = _folder() / f"{digest.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return json.loads(_read_own(kept))
    made = build()
    _write((made,), kept)
    return made


def _keep(document: Document, path: Path) -> None:
    keys = {_joined(place): mark for place, mark in document.key_marks.items()}
    values = {_joined(place): mark for place, mark in document.value_marks.items()}
    _write((document.data, keys, values), path)


def _write(parts: Iterable[Any], path: Path) -> None:
    """Keep each part on a line of its own, if that can be done."""
    with suppress(OSError, TypeError, ValueError):
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in path.parent.iterdir()) >= MAX_KEPT:
            for old in path.parent.glob("*.json"):
                old.unlink(missing_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        lines = (json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in parts)
        with open_new(temporary, 0o600) as file:
            file.write("\n".join(lines).encode())
        os.replace(temporary, path)
