"""A disk that loses what was not synced: crashes, torn writes and a full disk, all from a seed.

What programs see lies in a real folder, so that any code may read it. Beside it, a model of the
disk notes what is safe: the content of a file since it was synced, the names in a folder since the
folder was. A power cut puts the real folder back to what is safe, plus any part of the rest: of the
names each change or not, in any order between folders; of a file the old content, the new, a
beginning of it, or a tail of zeros.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from advisor.ground.files import Disk


class Crash(BaseException):
    """The process is gone, in the middle of an operation."""


@dataclass(eq=False)
class File:
    """A file's content as it is read, and what of it is safe."""

    content: bytes
    safe: bytes | None = None  # None: nothing


@dataclass(eq=False)
class Folder:
    """The names in a folder as they are read, and those that are safe."""

    names: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)


Node = File | Folder


# Changes of names that may still get lost, together: (folder, name, what it names now).
Change = list[tuple[Folder, str, Node | None]]


def apply(change: Change) -> None:
    """It is safe."""
    for folder, name, node in change:
        folder.safe.pop(name, None)
        folder.safe |= {name: node} if node is not None else {}


def full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class SimulatedDisk(Disk):
    """The disk of everything below one folder.

    Args:
        root: The folder.
        random: Decides what a power cut leaves.
    """

    def __init__(self, root: Path, random: Random) -> None:
        self.root, self.random = root, random
        self.tree = Folder()
        self.changes: list[Change] = []
        self.operations = 0  # so far, of this process
        self.crash_at: int | None = None
        self.room: int | None = None  # bytes until the disk is full
        self.dead = False
        self.adopt()
        self.sync_everything()

    # ---------------------------------------------------------------- what processes do

    def make_folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with self._operation():
            if not self._room(1):
                raise full(path)
            path.mkdir(exist_ok=True)
            self._set(path, Folder())
        self.sync(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        self._write(path, content, b"")

    def append(self, path: Path, content: bytes) -> None:
        node = self._find(path)
        self._write(path, content, node.content if isinstance(node, File) else b"")

    def _write(self, path: Path, content: bytes, before: bytes) -> None:
        with self._operation() as torn:
            if torn:
                content = content[: self.random.randrange(len(content) + 1)]
            room = self._room(len(content))
            whole = before + content[:room]
            path.write_bytes(whole)
            node = self._find(path)
            if isinstance(node, File):
                node.content = whole
            else:
                self._set(path, File(whole))
            if room < len(content):
                raise full(path)

    def sync(self, path: Path) -> None:
        if not f"{path}/".startswith(f"{self.root}/"):
            return
        with self._operation():
            node = self._find(path)
            if isinstance(node, File):
                node.safe = node.content
            elif isinstance(node, Folder):
                self._adopt(node, path)
                for change in list(self.changes):
                    if any(folder is node for folder, *_ in change):
                        apply(change)
                        self.changes.remove(change)
            else:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def rename(self, source: Path, target: Path) -> None:
        with self._operation():
            os.replace(source, target)
            node = self._find(source)
            assert node is not None, source
            one, other = self._folder(source), self._folder(target)
            del one.names[source.name]
            other.names[target.name] = node
            self.changes.append([(one, source.name, None), (other, target.name, node)])

    def remove(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        for name in self.names(path):
            self.remove(path / name)
        with self._operation():
            path.rmdir() if path.is_dir() else path.unlink()
            self._set(path, None)

    # ---------------------------------------------------------------- what happens to them

    @contextmanager
    def _operation(self) -> Iterator[bool]:
        """Count an operation; whether the process dies in the middle of it."""
        self.operations += 1
        if not self.dead and self.operations == self.crash_at:
            self.dead = True
            if self.random.random() < 0.5:
                yield True
        elif not self.dead:
            yield False
        if self.dead:  # also before it did anything
            raise Crash

    def _room(self, wanted: int) -> int:
        """How many of so many bytes the disk still takes."""
        if self.room is None:
            return wanted
        taken = max(0, min(wanted, self.room))
        self.room -= wanted  # once it was full, nothing fits
        return taken

    def restart(self) -> None:
        """A new process begins on what is there now."""
        self.dead, self.operations, self.crash_at, self.room = False, 0, None, None

    def cut_power(self) -> None:
        """Lose what was not safe, or a part of it, and put the real folder into that state."""
        self.adopt()
        in_order = self.random.random() < 0.3  # some file systems write changes in their order
        last = self.random.randrange(len(self.changes) + 1)
        for place, change in enumerate(self.changes):
            if place < last if in_order else self.random.random() < 0.5:
                apply(change)
        self.changes.clear()
        shutil.rmtree(self.root)
        self._settle(self.tree, self.root)

    def _settle(self, folder: Folder, path: Path) -> None:
        path.mkdir()
        folder.names = dict(folder.safe)
        for name, node in folder.names.items():
            if isinstance(node, Folder):
                self._settle(node, path / name)
            else:
                if node.content != node.safe:
                    node.content = node.safe = self._torn(node)
                (path / name).write_bytes(node.content)

    def _torn(self, file: File) -> bytes:
        """What is left of a file that was not synced."""
        before, now = file.safe or b"", file.content
        cut = self.random.randrange(len(now) + 1)
        if now.startswith(before):  # appended to: what was safe stays
            cut = max(cut, len(before))
        return self.random.choice([before, now, now[:cut], now[:cut] + bytes(len(now) - cut)])

    def sync_everything(self) -> None:
        """All that is there is safe, as after a long while."""
        self.changes.clear()
        left: list[Node] = [self.tree]
        while left:
            node = left.pop()
            if isinstance(node, Folder):
                node.safe = dict(node.names)
                left += node.names.values()
            else:
                node.safe = node.content

    # ---------------------------------------------------------------- what goes past this class

    def adopt(self) -> None:
        """Take over what was made or removed without this disk, such as a lock file."""
        self._adopt(self.tree, self.root, deep=True)

    def changed_outside(self, path: Path) -> None:
        """A file was changed by somebody else, or by the disk itself: it is safe as it is now."""
        node = self._find(path)
        if path.exists():
            assert isinstance(node, File)
            node.content = node.safe = path.read_bytes()

    def _adopt(self, folder: Folder, path: Path, *, deep: bool = False) -> None:
        there = set(os.listdir(path)) if path.is_dir() else set()
        for name in set(folder.names) - there:
            del folder.names[name]
            self.changes.append([(folder, name, None)])
        for name in there:
            is_new = name not in folder.names
            if is_new:
                is_folder = (path / name).is_dir()
                node = Folder() if is_folder else File((path / name).read_bytes())
                folder.names[name] = node
                self.changes.append([(folder, name, node)])
            inner = folder.names[name]
            if isinstance(inner, Folder) and (deep or is_new):
                self._adopt(inner, path / name, deep=True)

    # ---------------------------------------------------------------- the tree

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self.tree
        inside = str(path)[len(str(self.root)) + 1 :]  # pathlib would take a tenth of the time
        for part in inside.split("/") if inside else ():
            node = node.names.get(part) if isinstance(node, Folder) else None
        if node is None and path.exists() and path != self.root:
            parent = self._find(path.parent)
            if isinstance(parent, Folder):
                self._adopt(parent, path.parent)
                return parent.names.get(path.name)
        return node

    def _folder(self, path: Path) -> Folder:
        """The folder that holds a name."""
        found = self._find(path.parent)
        assert isinstance(found, Folder), path
        return found

    def _set(self, path: Path, node: Node | None) -> None:
        folder = self._folder(path)
        folder.names.pop(path.name, None)
        if node is not None:
            folder.names[path.name] = node
        self.changes.append([(folder, path.name, node)])
