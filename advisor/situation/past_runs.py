"""The file of past runs: one JSON object a line, each a stage that was trained or measured here.

It lies in the user's data folder and may be deleted, copied to a like machine or switched off
(docs/learning.md). Lines that cannot be used are left out with a warning; a file that cannot be
written gives one too, and never stops a run.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advisor.estimate.past_runs import FORMAT, NO_RUNS, PastRun, PastRuns
from advisor.ground.errors import InputError
from advisor.ground.version import __version__

VARIABLE = "ADVISE_RUNS"  # environment: another file, or `off`
OFF = ("off", "no", "0", "false")
NAME = "runs.jsonl"
MOST_BYTES = 1 << 20  # from the end of the file: some 2,000 lines


def past_runs_path() -> Path | None:
    """$ADVISE_RUNS, else $XDG_DATA_HOME/finetune-advisor/runs.jsonl, or the same below
    ~/.local/share; None if it is switched off, or there is no home folder.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named.lower() in OFF:
        return None
    if named:
        return Path(named).expanduser()  # of a user that is not there: RuntimeError, told by cli
    home = os.environ.get("XDG_DATA_HOME", "")
    try:
        # The specification wants relative paths ignored.
        base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    except RuntimeError:  # no home folder
        return None
    return base / "finetune-advisor" / NAME


def read_past_runs(path: Path | None = None) -> tuple[PastRuns, tuple[str, ...]]:
    """(the runs of the file, what of it could not be used, in sentences). No file: no runs."""
    path = path or past_runs_path()
    if path is None:
        return NO_RUNS, ()
    try:
        with _open_file(path, os.O_RDONLY) as fd, open(fd, "rb", closefd=False) as file:
            start = max(0, os.fstat(fd).st_size - MOST_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return NO_RUNS, ()
    except (OSError, ValueError) as error:
        return NO_RUNS, (f"{path}: {_why(error)}: nothing is learned from past runs",)
    found = [_run_of(line) for line in lines[1 if start else 0 :] if line.strip()]
    runs = [run for run in found if isinstance(run, PastRun)]
    # What another version expected came from another formula.
    known = [run for run in runs if run.advise_version in (None, __version__)]
    counts = {reason: found.count(reason) for reason in ("damaged", "of a newer version")}
    if not known:  # said until there are new ones
        counts["of another version"] = len(runs)
    notes = tuple(
        f"{path}: {count} line{'s are' if count > 1 else ' is'} {reason} and left out"
        for reason, count in counts.items()
        if count
    )
    return (PastRuns(known) if known else NO_RUNS), notes


def _run_of(line: bytes) -> PastRun | str:
    """The run of a line, or why it is left out."""
    try:
        data = json.loads(line)
        if isinstance(data, dict):
            version = data.get("format")
            if isinstance(version, int) and version > FORMAT:
                return "of a newer version"
        run = PastRun.from_dict(data)
    except (ValueError, RecursionError, InputError):
        return "damaged"
    numbers = [
        run.params,
        *(number for one in run.memory for number in (one.expected_bytes, one.measured_bytes)),
        *(number for number in (run.expected_step_s, run.measured_step_s) if number is not None),
    ]
    return run if all(0 < number < 2**60 for number in numbers) else "damaged"


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def note_past_run(run: PastRun, path: Path | None = None) -> str:
    """Append the run to the file. Returns what went wrong in a sentence, or an empty string; the
    file is then as it was before.
    """
    path = path or past_runs_path()
    if path is None:
        return ""
    text = json.dumps(run.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    line = text.encode() + b"\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # somebody was killed while appending
                line = b"\n" + line
            if os.write(fd, line) < len(
                line
            ):  # one call: lines of two runs stand beside each other
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except (OSError, ValueError) as error:
        return f"{path}: {_why(error)}: this run teaches nothing ({VARIABLE}=off switches it off)"
    return ""


@contextmanager
def _open_file(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """A descriptor of a plain file. Raises ValueError if it is none: a pipe would wait."""
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), mode)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("no plain file")
        yield fd
    finally:
        os.close(fd)
