"""The file of past runs: one JSON object a line, each a stage that was trained or measured here.

It lies in the user's data folder and may be deleted, copied to a like machine or switched off
(docs/learning.md). Lines that cannot be read are left out with a warning; a file that cannot be
written gives one too, and never stops a run.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from advisor.estimate.past.formula_stamp import formula_stamp
from advisor.estimate.past.runs import FORMAT, NO_RUNS, PastRun, PastRuns
from advisor.ground.disk import open_new
from advisor.ground.errors import InputError

VARIABLE = "ADVISE_RUNS"  # environment: another file, or `off`
OFF = ("off", "no", "0", "false")
NAME = "runs.jsonl"
MOST_RUNS = 400  # the newest that are kept once there are twice as many
MOST_BYTES = 2 * MOST_RUNS * 2048  # of the file that is read; a line has about 900
MOST_NAMED = 3  # lines that a warning names


def past_runs_path() -> Path | None:
    """$ADVISE_RUNS, else $XDG_DATA_HOME/finetune-advisor/runs.jsonl, or the same below
    ~/.local/share; None where it is switched off, or there is no home folder.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named.lower() in OFF:
        return None
    if named:
        return Path(
            named
        ).expanduser()  # of a user that is not there: RuntimeError, which cli explains
    home = os.environ.get("XDG_DATA_HOME", "")
    try:
        # The specification wants relative paths ignored.
        base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    except RuntimeError:  # no home folder
        return None
    return base / "finetune-advisor" / NAME


# ------------------------------------------------------------------------------ reading


def read_past_runs(path: Path | None = None) -> tuple[PastRuns, tuple[str, ...]]:
    """(the runs of the file, what of it could not be used, in sentences). No file: no runs."""
    path = path or past_runs_path()
    if path is None:
        return NO_RUNS, ()
    try:
        with _regular(path, os.O_RDONLY) as fd:
            size = os.fstat(fd).st_size
            if size > MOST_BYTES:
                os.lseek(fd, size - MOST_BYTES, os.SEEK_SET)
            raw = _all_of(fd)
    except (FileNotFoundError, NotADirectoryError):
        return NO_RUNS, ()
    except (OSError, ValueError) as error:
        return NO_RUNS, (f"{path}: {_why(error)}: nothing is learned from past runs",)
    lines = raw.split(b"\n")
    first = 1
    if size > MOST_BYTES:
        lines, first = lines[1:], 0  # the first is half a line, and the others have no number
    runs, damaged, newer = [], [], 0
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        found = _run_of(line)
        if isinstance(found, PastRun):
            runs.append(found)
        elif found == "newer":
            newer += 1
        else:
            damaged.append(number)
    notes = []
    if damaged:
        named = ", ".join(map(str, damaged[:MOST_NAMED]))
        more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        is_one = len(damaged) == 1
        notes.append(
            f"{path}: line{'' if is_one else 's'} {named}{more} {'is' if is_one else 'are'} damaged"
            " and left out"
        )
    if newer:
        notes.append(
            f"{path}: {newer} line{'s' if newer > 1 else ''} of a newer version of advise"
            f" {'are' if newer > 1 else 'is'} left out"
        )
    if not runs:
        return NO_RUNS, tuple(notes)
    stamp = formula_stamp()
    known = [run for run in runs if run.formula == stamp]
    if not known:  # said until there are new ones
        notes.append(
            f"{path}: its {len(runs)} run{'s' if len(runs) > 1 else ''} taught another version of"
            " advise, whose formula was another: nothing is learned from past runs until there are"
            " new ones"
        )
        return NO_RUNS, tuple(notes)
    return PastRuns(known), tuple(notes)


def _run_of(line: bytes) -> PastRun | str:
    """The run of a line, or 'newer' or 'damaged'."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return "damaged"
    if not isinstance(data, dict):
        return "damaged"
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        return "newer"
    try:
        run = PastRun.from_dict(data)
    except InputError:
        return "damaged"
    numbers = [
        run.params,
        *(number for one in run.memory for number in (one.expected_bytes, one.measured_bytes)),
        *(number for number in (run.expected_step_s, run.measured_step_s) if number is not None),
    ]
    return run if all(0 < number < 2**60 for number in numbers) else "damaged"


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


# ------------------------------------------------------------------------------ writing


def note_past_run(run: PastRun, path: Path | None = None) -> str:
    """Append the run to the file. Returns what went wrong in a sentence, or an empty string; the
    file is then as it was before.
    """
    path = path or past_runs_path()
    if path is None:
        return ""
    text = json.dumps(run.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path) as fd:
            _append(fd, text.encode() + b"\n")
            lines = _newest(fd)
            if lines is not None:
                _replace(path, lines)
    except (OSError, ValueError) as error:
        return f"{path}: {_why(error)}: this run teaches nothing ({VARIABLE}=off switches it off)"
    return ""


@contextmanager
def _regular(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """A descriptor of a plain file. Raises ValueError where it is none: a pipe would wait."""
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), mode)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("no plain file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file, which nobody else appends to until it is closed."""
    while True:
        with _regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
            _lock(fd)
            # Whoever held the lock before may have put a shorter file in its place.
            try:
                is_same = os.path.samestat(os.fstat(fd), os.stat(path))
            except FileNotFoundError:
                is_same = False
            if is_same:
                yield fd
                return


def _lock(fd: int) -> None:
    try:
        import fcntl
    except ImportError:  # no POSIX: appending alone is whole enough
        return
    with suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX)


def _append(fd: int, line: bytes) -> None:
    """Add a whole line or nothing. Raises OSError."""
    size = os.fstat(fd).st_size
    if size and _byte_at(fd, size - 1) != b"\n":  # somebody was killed while appending
        line = b"\n" + line
    try:
        written = os.write(fd, line)
        if written < len(line):
            os.write(fd, line[written:])  # says why: the disk is full
            if os.fstat(fd).st_size < size + len(line):
                raise OSError("only a part could be written")
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, size)
        raise


def _byte_at(fd: int, place: int) -> bytes:
    os.lseek(fd, place, os.SEEK_SET)
    return os.read(fd, 1)


def _newest(fd: int) -> Sequence[bytes] | None:
    """The newest lines that stay, where there are too many."""
    os.lseek(fd, 0, os.SEEK_SET)
    lines = _all_of(fd).splitlines()
    return lines[-MOST_RUNS:] if len(lines) > 2 * MOST_RUNS else None


def _all_of(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _replace(path: Path, lines: Sequence[bytes]) -> None:
    """Put a shorter file in place, whole or not at all; the longer one does as well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open_new(temporary, 0o600) as file:
            file.write(b"\n".join(lines) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
