"""Shipped YAML files, read once and kept as JSON in the user's cache folder: reading YAML is most
of what advice costs.

What is kept is named by a digest of the file's bytes and a stamp of the code, so that neither can
be out of date. A file is kept once it was found to have its shape, so what is kept is not checked
again: that took longer than reading it. A cache that cannot be written or read is no error: the
file is then parsed.
Nor is one trusted that another user could have written: what is kept stands for our rules.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from advisor.ground import yaml_reader
from advisor.ground.disk import open_new
from advisor.ground.errors import InputError
from advisor.ground.resources import cache_folder, rules_dir
from advisor.ground.shape import Shape, check_shape
from advisor.ground.yaml_reader import Document, Path_, parse_yaml

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
        return yaml_reader.read_yaml(path, name=name)  # says what is wrong
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
