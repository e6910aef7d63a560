"""Files that are whole or not there: written under another name beside the target, then moved onto
it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path

from advisor.ground.disk import DISK, Disk
from advisor.ground.disk import TEMPORARY as TEMPORARY
from advisor.ground.errors import AdviseError, InputError, MachineNotReady

ELSEWHERE = "choose another place with --output DIR"  # the way out for what a run writes
PLAN_FILE = "plan.yaml"  # the launch file, where no other name is given
FOLDER_NAME = (  # of plans, stages and tasks
    "lower-case letters, digits, - and _, at most 41, starting with a letter or digit: it becomes a"
    " folder's name"
)
NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,40}"


def is_folder_name(text: str) -> bool:
    """Whether a plan, a stage or a task may have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def folder_name(text: str) -> str:
    """'legal-dept': a name near to one that cannot be; an empty string where no letter of it can
    stay.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:41]


def such_as(text: str) -> str:
    """'such as legal-dept', for a hint; empty where there is no such name."""
    near = folder_name(text)
    return f"such as {near}" if near else ""


def keep_others_out() -> None:
    """Let this process and its children make no file that everybody may write to, whatever the
    umask says.
    """
    os.umask(os.umask(0o077) | 0o002)


def write_atomically(path: Path, content: str | bytes, *, disk: Disk | None = None) -> None:
    """Write the file so that a reader sees the old content or the new, never half, and a power cut
    leaves one of them.

    Raises MachineNotReady.

    Args:
        disk: Another disk than the machine's.
    """
    try:
        (disk or DISK).replace(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


PIPES_OF_THE_SHELL = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # `advise --answers <(...)`


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """The content of a file, or its first `most_bytes + 1` bytes if it is longer: a link to
    /dev/zero never ends.

    Raises InputError for a folder, and for a pipe by name, which would wait for whoever writes
    into it; OSError as usual.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder, a file is expected", where=str(path))
    if stat.S_ISFIFO(mode) and not str(path).startswith(PIPES_OF_THE_SHELL):
        raise InputError(
            f"{path} is a pipe, a file is expected", where=str(path), hint="name a file"
        )
    with path.open("rb") as file:
        return file.read(most_bytes + 1)


MOST_BYTES = 256 * 2**20  # of a file that is read whole
MOST_CONFIG_BYTES = 16 * 2**20


class NoPlainFile(InputError, OSError):
    """What was to be read is no regular file, or a far larger one than such a file ever is.

    It is an OSError as well, for those who go on without the file.
    """

    def __init__(self, what: str, path: Path) -> None:
        InputError.__init__(self, what, where=str(path), hint="name another file, or copy it again")
        self.strerror = what


def bytes_of(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file of anybody's. Raises OSError; NoPlainFile where it is a pipe or
    a device, which may never end, or larger than `most_bytes`.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise NoPlainFile("is not a regular file", path)
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NoPlainFile(f"is larger than {most_bytes // 2**20} MiB", path)
    return content


def text_of(path: Path, *, errors: str = "strict", most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of such a file, its lines ended by \\n. Raises UnicodeDecodeError as well."""
    text = bytes_of(path, most_bytes=most_bytes).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def cannot_write(
    path: Path | str, error: OSError, *, way_out: str = "choose another place"
) -> MachineNotReady:
    """The error of a file or folder that could not be written, in words; `way_out` is where else it
    could go.
    """
    if error.errno in NO_SPACE:
        return MachineNotReady(
            "no space left to write it", where=str(path), hint=f"free some space, or {way_out}"
        )
    if error.errno in NO_PERMISSION:
        return MachineNotReady("no permission to write here", where=str(path), hint=way_out)
    return MachineNotReady(
        f"cannot be written: {error.strerror or error}", where=str(path), hint=way_out
    )


def refused_by_system(error: OSError) -> AdviseError | None:
    """What the system refused, in words; None where that cannot be the user's to mend, such as a
    file of ours that is missing.
    """
    if error.filename is None:
        if error.errno == errno.ENOENT and not _working_folder():
            return MachineNotReady(
                "the folder that this was started in is no longer there", hint="cd into one that is"
            )
        return (
            cannot_write("the output", error)
            if error.errno in (*NO_SPACE, errno.EIO, errno.EBADF)
            else None
        )
    path = Path(os.fsdecode(error.filename))
    if error.errno in NO_PERMISSION and not _readable(path):
        return InputError(
            "no permission to read it",
            where=str(path),
            hint="ask its owner, or copy it into a folder of yours",
        )
    if error.errno in (*NO_PERMISSION, *NO_SPACE):
        return cannot_write(path, error)
    return (
        InputError(f"{os.strerror(error.errno)}", where=str(path), hint="name another one")
        if error.errno in UNUSABLE
        else None
    )


def refused_as_path(error: Exception) -> InputError | None:
    """What Python says of a text that can be no path, in words; None for another error."""
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return InputError("a path holds a zero byte: no file can be named so", hint="correct it")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return InputError(
            "a path begins with ~ and the name of nobody on this machine",
            hint="write the path from / on, or ./~name for a file of that name",
        )
    return None


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _readable(path: Path) -> bool:
    """Whether the path may be read, or made where it is not there: then a permission is missing to
    write.
    """
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def shown_path(path: Path) -> str:
    """The path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def nearest_place(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds the path, or will hold it. Raises OSError."""
    import shutil  # advice does without it, and starts sooner

    return shutil.disk_usage(nearest_place(path)).free
