"""Files that are whole or not there: written beside their target, then moved onto it."""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from advisor.ground.errors import AdviseError, InputError, MachineNotReady

ELSEWHERE = "choose another place with --output DIR"  # the way out for what a run writes
KEPT = "{} is there already and stays as it is."  # said where another name is taken
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
    """'legal-dept': the folder name nearest to a text; empty if no letter of it can stay."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:41]


def name_hint(text: str) -> str:
    """'such as legal-dept', for a hint; empty where there is no such name."""
    near = folder_name(text)
    return f"such as {near}" if near else ""


def restrict_umask() -> None:
    """Let this process and its children make no file that everybody may write to."""
    os.umask(os.umask(0o077) | 0o002)


def write_atomically(path: Path, content: str | bytes, *, disk: Disk | None = None) -> None:
    """Write a file so that readers and a power cut find the old content or the new.

    Raises MachineNotReady.
    """
    try:
        (disk or DISK).replace(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


PIPES_OF_THE_SHELL = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # `advise --answers <(...)`
MOST_BYTES = 256 * 2**20  # of a file that is read whole
MOST_CONFIG_BYTES = 16 * 2**20


class NoPlainFile(InputError, OSError):
    """It is no regular file, or far too large; an OSError for those who go on without it."""

    def __init__(self, what: str, path: Path) -> None:
        InputError.__init__(self, what, where=str(path), hint="name another file, or copy it again")
        self.strerror = what


def open_regular(path: Path, *, pipes: bool = False) -> BufferedReader:
    """A regular file to be read, or one of a shell's `pipes`. Raises OSError and NoPlainFile."""
    flags = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, given: os.open(name, given | flags))  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if pipes and not stat.S_ISREG(mode) and str(path).startswith(PIPES_OF_THE_SHELL):
        os.set_blocking(file.fileno(), True)
    elif not stat.S_ISREG(mode):
        file.close()  # a pipe waits for its writer, /dev/zero never ends
        raise NoPlainFile("is not a regular file", path)
    return file


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """The first `most_bytes + 1` of a file that a person names. Raises OSError and NoPlainFile."""
    with open_regular(path, pipes=True) as file:
        return file.read(most_bytes + 1)


def bytes_of(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError and NoPlainFile."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NoPlainFile(f"is larger than {most_bytes // 2**20} MiB", path)
    return content


def text_of(path: Path, *, errors: str = "strict", most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of such a file, its lines ended by \\n. Raises UnicodeDecodeError as well."""
    return re.sub("\r\n?", "\n", bytes_of(path, most_bytes=most_bytes).decode("utf-8", errors))


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def cannot_write(
    path: Path | str, error: OSError, *, way_out: str = "choose another place"
) -> MachineNotReady:
    """The error of a file or folder that could not be written; `way_out` is where else to."""
    what = f"cannot be written: {error.strerror or error}"
    if error.errno in NO_PERMISSION:
        is_fixed = error.errno == errno.EROFS
        what = "the disk is for reading alone" if is_fixed else "no permission to write here"
    elif error.errno in NO_SPACE:
        what, way_out = "no space left to write it", f"free some space, or {way_out}"
    return MachineNotReady(what, where=re.sub(rf"{TEMPORARY}\d+-", "", str(path)), hint=way_out)


def refused_by_system(error: OSError) -> AdviseError | None:
    """What the system refused, in words; None if the user cannot mend it."""
    if error.filename is None:
        if error.errno == errno.ENOENT and not _has_working_folder():
            what = "the folder that this was started in is no longer there"
            return MachineNotReady(what, hint="cd into one that is")
        is_output = error.errno in (*NO_SPACE, errno.EIO, errno.EBADF)
        return cannot_write("the output", error) if is_output else None
    path = Path(os.fsdecode(error.filename))
    if error.errno in (errno.EACCES, errno.EPERM) and not _readable(path):
        hint = "ask its owner, or copy it into a folder of yours"
        return InputError("no permission to read it", where=str(path), hint=hint)
    if error.errno in (*NO_PERMISSION, *NO_SPACE):
        return cannot_write(path, error)
    if error.errno in UNUSABLE:
        return InputError(os.strerror(error.errno), where=str(path), hint="name another one")
    return None


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


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _readable(path: Path) -> bool:
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def free_path(
    path: Path = Path(PLAN_FILE), taken: Callable[[Path], bool] = os.path.lexists
) -> Path:
    """The path, or one beside it that nothing has: plan-2.yaml for plan.yaml."""
    beside = (path.with_stem(f"{path.stem}-{number}") for number in range(2, 1000))
    return path if not taken(path) else next(one for one in beside if not taken(one))


def shown_path(path: Path) -> str:
    """The path as short as it can be typed from here."""
    if not path.is_relative_to(Path.cwd()):
        return str(path)
    short = os.path.relpath(path)
    # '-a' reads as an option, 'host:b' as a place on another machine.
    return f"./{short}" if short.startswith("-") or ":" in short else short


def without_home(text: str) -> str:
    """The text with the home folder as ~; it stands before quotes that a word of a shell needs."""
    home = os.path.expanduser("~")
    for at in map(re.escape, filter(lambda place: place[1:], (home, os.path.realpath(home)))):
        text = re.sub(rf"(?<!: )'(?a:(?=[^']*([^'\w@%+=:,./-]|'\"'))){at}/", "~/'", text)
        text = re.sub(rf"(?<![\w.-]){at}(?![\w.-])", "~", text)
    return text


def nearest_place(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds the path, or will hold it. Raises OSError."""
    place = nearest_place(path)
    if hasattr(os, "statvfs"):
        disk = os.statvfs(place)
        return disk.f_bavail * disk.f_frsize
    import shutil  # advice does without it, and starts sooner

    return shutil.disk_usage(place).free


TEMPORARY = (  # prefix of names that a killed run may leave behind; anyone may delete them
    ".advise-tmp-"
)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)


# A file of our own making: never through a link that somebody else has put there.
_OWN = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_OWN |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def open_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """A new file to write into, in place of any file or link of its name."""
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
        with open_regular(path) as file:
            return file.read()

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content, in hexadecimal."""
        import hashlib

        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

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
