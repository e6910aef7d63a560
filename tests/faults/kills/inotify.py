"""What happens in a folder, as it happens: Linux' inotify, through the C library.

A kill that is meant to fall into a save of some milliseconds cannot wait for a poll.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x02, 0x40, 0x80, 0x100, 0x200
WATCHED = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE
IS_FOLDER = 0x40000000
HEAD = struct.Struct("iIII")


class Watch:
    """Events below a folder, those of folders made later included. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.library = ctypes.CDLL(None, use_errno=True)
        self.places: dict[int, Path] = {}

    def __enter__(self) -> Watch:
        self.fd = self.library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        list(self._add(self.root))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _add(self, folder: Path) -> Iterator[str]:
        """Watch the folder; the paths of what was in it before it was watched."""
        number = self.library.inotify_add_watch(self.fd, os.fsencode(folder), WATCHED)
        if number < 0:
            return  # it is gone again
        self.places[number] = folder
        with suppress(OSError):
            for path in list(folder.iterdir()):
                yield path.relative_to(self.root).as_posix()
                if path.is_dir() and not path.is_symlink():
                    yield from self._add(path)

    def events(self, timeout_s: float) -> Iterator[str]:
        """Paths, relative to the folder, of what happened since the last call; waits for the first."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return
        data, at = os.read(self.fd, 1 << 16), 0
        while at < len(data):
            number, mask, _, length = HEAD.unpack_from(data, at)
            at += HEAD.size + length
            name = data[at - length : at].rstrip(b"\0")
            if number not in self.places or not name:
                continue
            path = self.places[number] / os.fsdecode(name)
            yield path.relative_to(self.root).as_posix()
            if mask & IS_FOLDER and mask & (CREATE | MOVED_TO):
                yield from self._add(path)
