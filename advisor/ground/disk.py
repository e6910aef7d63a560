"""The disk of a run folder: the few operations by which files of a run are made, replaced and
removed, so that a crash or a power cut leaves the old state or the new one.

Everything that must survive goes through one `Disk`. What is written is safe once `sync` has
returned for the file and for the folder that holds its name; a rename is safe once the folder is
synced. tests/faults/simulator replaces the disk with one that loses everything else.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = (  # prefix of names that a killed run may leave behind; anyone may delete them
    ".advise-tmp-"
)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)


# A file of our own making: never through a link that somebody else has put there.
_OWN = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_OWN |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def open_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """A new file to write into. What has its name is removed first, and a link is not followed.

    Args:
        mode: Who may read and write it, less what the umask takes away.
    """
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, _OWN, mode), "wb")


class Disk:
    """The machine's own disk. Every method raises OSError as the system does."""

    def make_folder(self, path: Path) -> None:
        """Make the folder and those above it, and sync the names of new ones; it may be there."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        path.mkdir(exist_ok=True)
        self.sync(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        """Write the whole file. It is not safe before `sync`."""
        with open_new(path) as file:
            file.write(content)

    def append(self, path: Path, content: bytes) -> None:
        """Write at the end of a file, which is made if it is not there. Not safe before `sync`."""
        with path.open("ab") as file:
            file.write(content)

    def sync(self, path: Path) -> None:
        """Wait until a file's content, or the names in a folder, are on the disk."""
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            # A folder that may be written but not read, or a file system that syncs files alone.
            if not (error.errno in NO_FOLDER_SYNC and path.is_dir()):
                raise

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; a file of that name is replaced."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Delete a file, or a folder with everything in it; nothing if it is not there."""
        if path.is_dir() and not path.is_symlink():
            import shutil  # with all its archive formats: only where it is used

            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: Path) -> list[str]:
        """The files below a folder, sorted, each by its path from there with `/`."""
        found = []
        for name in self.names(folder):
            path = folder / name
            if path.is_dir():
                found += [f"{name}/{inner}" for inner in self.files(path)]
            else:
                found.append(name)
        return found

    def size(self, path: Path) -> int:
        """Bytes of a file."""
        return path.stat().st_size

    def read(self, path: Path) -> bytes:
        """The content of a file."""
        return path.read_bytes()

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content, in hexadecimal."""
        import hashlib

        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # ---------------------------------------------------------------- made of the above

    def sync_tree(self, folder: Path) -> None:
        """Wait until everything below a folder is on the disk, its names included."""
        for name in self.names(folder):
            path = folder / name
            if path.is_dir():
                self.sync_tree(path)
            else:
                self.sync(path)
        self.sync(folder)

    def replace(self, path: Path, content: bytes) -> None:
        """Write a file so that its readers, and a power cut, find the old content or the new."""
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        try:
            self.write(temporary, content)
            self.sync(temporary)
            self.rename(temporary, path)
            self.sync(path.parent)
        except OSError:
            self.discard(temporary)
            raise

    def discard(self, path: Path) -> None:
        """Delete what is not needed any more; what cannot be deleted stays."""
        with suppress(OSError):
            self.remove(path)


DISK = Disk()
