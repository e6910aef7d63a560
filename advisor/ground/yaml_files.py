"""Strict YAML: one reader for rules, facts, catalogues, answers and plans, and a cache of shipped
files.

Plain data only, each node's position kept, YAML 1.2 scalars, and everything that surprises people
refused with file, line and column: duplicate keys, aliases and anchors, tags, merge keys, unquoted
yes/no/on/off, great depth and size. JSON is read through it too (JSON is YAML), so that errors in
an answers file look the same in both forms.

Reading YAML is most of what advice costs, so the data of shipped files, and what is made of them,
are kept as JSON in the user's cache folder, named by a digest of the files' bytes and a stamp of
the code: neither can be out of date. A file is kept once it was found to have its shape, and is not
checked again. A cache that cannot be written or read is no error, and one that another user could
have written is not trusted: what is kept stands for our rules.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from msgspec import MsgspecError, Struct
from msgspec.json import decode, encode

from advisor.ground.errors import InputError, refuse
from advisor.ground.files import bytes_of, open_new, read_at_most
from advisor.ground.resources import PACKAGE, cache_folder, rules_dir
from advisor.ground.shape import VERSION, Choice, Date, Keys, MapOf, Path_, Shape, Text, check_shape
from advisor.ground.types import Source

MAX_BYTES = 1_000_000
MAX_VALUES = 60_000  # what a second is enough for

Marks = dict[Path_, tuple[int, int]]  # path -> (line, column), both from 1
Positions = tuple[Marks, Marks]  # of keys, of values


class Document:
    """Plain data and the places of its parts, each found when it is first asked for.

    No struct, so that what is kept of a value that stands in a file has the file's name alone.
    """

    def __init__(
        self,
        name: str,
        find_data: Callable[[], Any],
        find_positions: Callable[[], Positions] = lambda: ({}, {}),
        *,
        checked: bool = False,
    ) -> None:
        self.name, self._find_data, self._find_positions = name, find_data, find_positions
        self.checked = checked  # a shipped file that was found to have its shape, now or before

    @cached_property
    def data(self) -> Any:
        return self._find_data()

    @cached_property
    def positions(self) -> Positions:
        return self._find_positions()

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        """'plan.yaml:12:13' for a path, or for the nearest enclosing node that has a position."""
        keys, values = self.positions
        first, second = (keys, values) if key else (values, keys)
        path = tuple(path)
        while (mark := first.get(path) or second.get(path)) is None and path:
            path = path[:-1]
        return f"{self.name}:{mark[0]}:{mark[1]}" if mark else self.name


class Spot(Struct, frozen=True, eq=False):
    """A place in a document; `spot / "key"` is one below it.

    All places are equal: two values do not differ because they stand in different places.
    """

    document: Document
    path: Path_ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spot)

    def __hash__(self) -> int:
        return 0

    def __truediv__(self, part: str | int) -> Spot:
        return Spot(self.document, (*self.path, part))

    def at(self, *, key: bool = False) -> str:
        return self.document.at(self.path, key=key)


# --------------------------------------------------------------------------- reading


def read_yaml(path: Path | str, *, name: str | None = None) -> Document:
    """The file as a Document. Raises InputError, located, for anything that is not plain data."""
    path = Path(path)
    name = name or str(path)
    try:
        if path.is_dir():
            raise InputError("is a folder, a YAML or JSON file is expected", where=name)
        raw = read_at_most(path, MAX_BYTES)
    except FileNotFoundError:
        raise InputError("no such file", where=name, hint="check the path") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=name) from None
    return parse_yaml(raw, name=name)


def parse_yaml(raw: bytes | str, *, name: str) -> Document:
    """The text as a Document; `name` is the file in messages ('<stdin>' for standard input)."""
    text = raw if isinstance(raw, str) else decode_utf8(raw, name)
    not_by_hand = "this does not look like a hand-written file"
    if len(raw) > MAX_BYTES:
        raise InputError(f"larger than {MAX_BYTES:,} bytes", where=name, hint=not_by_hand)
    # Each value is followed by a comma, a colon or the end of a line.
    if text.count(",") + text.count(": ") + text.count("\n") > MAX_VALUES:
        raise InputError(f"more than {MAX_VALUES:,} values", where=name, hint=not_by_hand)
    from advisor.ground.yaml_reader import read_events  # what is kept needs none of it

    data, positions = read_events(text, name)
    return Document(name, lambda: data, lambda: positions)


def decode_utf8(raw: bytes, name: str) -> str:
    """The text of a UTF-8 file, without its mark. Raises InputError, located."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"{name}:{raw.count(10, 0, error.start) + 1}"
        raise InputError("not UTF-8 text", where=at, hint="save the file as UTF-8") from None
    if "\0" in text:
        at = f"{name}:{text.count(chr(10), 0, text.index(chr(0))) + 1}"
        raise InputError("contains a NUL byte", where=at, hint="this is not a text file")
    return text


# --------------------------------------------------------------------------- shipped files

MAX_KEPT = 1000  # files in the cache; more means many versions came and went


def read_shipped(
    path: Path, *, shape: Shape | Callable[[], Shape] | None = None, root: Path | None = None
) -> Document:
    """A file under rules/, called 'rules/...' in messages.

    `shape`, or what builds it, is the one that every reader of the file asks for; without one its
    reader checks it. Raises InputError with every fault.
    """
    root = root or rules_dir()
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-2:])
    name = f"rules/{inside.as_posix()}"
    try:
        raw = bytes_of(path)
    except OSError:
        return read_yaml(path, name=name)  # says what is wrong

    def checked_data() -> Any:
        document = parse_yaml(raw, name=name)
        if shape is not None:
            faults = check_shape(document, shape if isinstance(shape, Shape) else shape())
            refuse(faults)
        return document.data

    data = _kept((b"any" if shape is None else b"checked") + raw, checked_data)
    return Document(
        name, lambda: data, lambda: parse_yaml(raw, name=name).positions, checked=shape is not None
    )


def read_derived(
    name: str, paths: Iterable[Path], build: Callable[[], Any], kind: Any = Any
) -> Any:
    """What `build` makes of shipped files, made again if a file or the code changed.

    One file is read in place of many of which an answer needs a few facts.

    Args:
        kind: The struct that it is; left out: plain data. A `Document` in it is one of those files.
    """
    try:
        parts = [f"\n{path.name}\n".encode() + bytes_of(path) for path in paths]
    except OSError:
        return build()  # says what is wrong
    return _kept(name.encode() + b"".join(parts), build, kind)


def _kept(source: bytes, build: Callable[[], Any], kind: Any = Any) -> Any:
    """The data that were kept of these bytes; otherwise `build` makes them, and they are kept."""
    path = _folder() / f"{hashlib.sha256(_code() + source).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, MsgspecError):
        return decode(_read_own(path), type=kind, dec_hook=_document)
    data = build()
    with suppress(OSError, TypeError, ValueError, MsgspecError):
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if len(os.listdir(path.parent)) >= MAX_KEPT:
            for old in path.parent.glob("*.json"):
                old.unlink(missing_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        text = encode(data, enc_hook=_name_of)
        with open_new(temporary, 0o600) as file:
            file.write(text)
        os.replace(temporary, path)
    return data


def _name_of(value: Any) -> str:
    """A document goes by its name. Raises TypeError for what cannot be kept."""
    if not isinstance(value, Document):
        raise TypeError(f"cannot keep a {type(value).__name__}")
    return value.name


def _document(kind: type, name: str) -> Document:
    """The shipped file of that name, as it is when somebody asks."""
    read = partial(read_shipped, rules_dir() / name.removeprefix("rules/"))
    return Document(name, lambda: read().data, lambda: read().positions, checked=True)


@cache
def _code() -> bytes:
    """A digest of names, sizes and times of our source files: other code may read otherwise."""
    return hashlib.sha256("\n".join(sorted(_stamps(str(PACKAGE)))).encode()).digest()


def _stamps(folder: str) -> Iterator[str]:
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
    """The content of a file that nobody else can have written. Raises OSError otherwise."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise PermissionError(errno.EPERM, "not a file of this user alone", str(path))
        return file.read()


LINK = r"https?://\S+"
SOURCE_KINDS = ("document", "paper", "vendor", "measured", "derived", "assumed")
SOURCE = Keys(
    keys={
        "title": Text(),
        "url": Text(pattern=LINK, such_as="https://arxiv.org/abs/2106.09685"),
        "checked": Date(help="the day somebody read it"),
        "kind": Choice(values=SOURCE_KINDS),
    },
    required=("title",),
)
SOURCES_FILE = Keys(
    help="Sources of rules and numbers",
    keys={"version": VERSION, "sources": MapOf(of=SOURCE)},
    required=("version", "sources"),
)


def source_from(entry: Mapping[str, Any]) -> Source:
    """The source of an entry that has the shape."""
    return Source(**entry)


@cache
def shipped_sources() -> Mapping[str, Mapping[str, Any]]:
    """Id -> entry of rules/sources.yaml. Raises InputError with the faults of the file."""
    return dict(read_shipped(rules_dir() / "sources.yaml", shape=SOURCES_FILE).data["sources"])
