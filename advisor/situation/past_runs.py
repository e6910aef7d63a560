"""The file of past runs: one JSON object a line, each a stage that was trained or measured here.

It lies in the user's data folder and may be deleted, copied to a like machine or switched off
(docs/estimates.md). Lines that cannot be used are left out with a warning; a file that cannot be
written gives one too, and never stops a run.
"""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

from advisor.estimate.past_runs import FORMAT, NO_RUNS, PastRun, PastRuns
from advisor.ground.errors import InputError
from advisor.ground.files import open_regular
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
        _refuse_special(path)
        with open_regular(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - MOST_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return NO_RUNS, ()
    except (OSError, ValueError) as error:
        return NO_RUNS, (f"{path}: {_why(error)}: nothing is learned from past runs",)
    found = [_run_of(line) for line in lines[1 if start else 0 :] if line.strip()]
    # What another version expected came from another formula: counted until there are new runs.
    known = [run for run in found if run and run.advise_version in (None, __version__)]
    count = found.count(None) if known else len(found)
    note = f"{path}: {count} line{'s' if count > 1 else ''} left out: damaged or of another version"
    return (PastRuns(known) if known else NO_RUNS), ((note,) if count else ())


def _run_of(line: bytes) -> PastRun | None:
    """The run of a line; None if it is damaged or of a newer format."""
    try:
        run = PastRun.from_dict(json.loads(line))
    except (ValueError, RecursionError, InputError):
        return None
    if run.format > FORMAT:
        return None
    numbers = [run.params, run.expected_step_s, run.measured_step_s]
    numbers += [number for one in run.memory for number in (one.expected_bytes, one.measured_bytes)]
    return run if all(0 < number < 2**60 for number in numbers if number is not None) else None


def note_past_run(run: PastRun, path: Path | None = None) -> str:
    """Append the run to the file. Returns what went wrong in a sentence, or an empty string; the
    file is then as it was before.
    """
    path = path or past_runs_path()
    if path is None:
        return ""
    text = json.dumps(run.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    line = f"\n{text}\n".encode()  # the first break ends what a killed process left
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_special(path)
        with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
            size = file.tell()
            # One call: lines of two runs stand beside each other.
            if os.write(file.fileno(), line) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except (OSError, ValueError) as error:
        return f"{path}: {_why(error)}: this run teaches nothing ({VARIABLE}=off switches it off)"
    return ""


def _refuse_special(path: Path) -> None:
    """Raise ValueError for what is there and is no plain file: a pipe would wait."""
    if path.exists() and not path.is_file():
        raise ValueError("no plain file")


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
