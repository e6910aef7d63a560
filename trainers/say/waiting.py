"""What the main process does alone, before the processes of a run are connected, and the others
wait for: they look for its file.

A main process that fails says so in a file of its own, so that nobody waits for what will never
come, whatever started the processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from advisor.ground.errors import TrainingFailed
from advisor.ground.files import DISK, TEMPORARY
from trainers.job.files import make_folder
from trainers.job.machine import process_count

Made = TypeVar("Made")
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 2.0  # between two looks, longer and longer


class ConnectionLost(TrainingFailed):
    """A process failed because another one was gone: not the cause, but what follows from it."""


def failure_file(file: Path) -> Path:
    """Where the main process of this start of the run says that it could not make a file."""
    # The launcher's number of the run is the same on all machines; without it, there is one alone.
    start = os.environ.get("TORCHELASTIC_RUN_ID") or os.getppid()
    return file.with_name(f"{TEMPORARY}failed-{start}-{file.stem}")


@contextmanager
def others_wait_for(file: Path) -> Iterator[None]:
    """The main process makes a file; if it fails, the processes that wait for it are told."""
    if process_count() == 1:
        yield
        return
    failed = failure_file(file)
    DISK.discard(failed)
    try:
        yield
    except BaseException as error:
        make_folder(failed.parent)
        failed.write_text(type(error).__name__, encoding="utf-8")
        raise


def wait_for(file: Path, look: Callable[[], Made | None]) -> Made:
    """What the main process has made, as soon as it is there.

    Raises ConnectionLost if the main process failed or is gone.

    Args:
        file: What it makes.
        look: Reads it; None as long as it is not there.
    """
    parent, pause_s = os.getppid(), FIRST_LOOK_S
    while True:
        failed = failure_file(file).exists()  # before the look: a retry would make both
        made = look()
        if made is not None:
            return made
        if failed:
            raise ConnectionLost("process 0 could not prepare the rows", hint="its error says why")
        if os.getppid() != parent:
            raise ConnectionLost("the launcher of this process is gone while it waited for rows")
        time.sleep(pause_s)
        pause_s = min(LAST_LOOK_S, 1.5 * pause_s)
