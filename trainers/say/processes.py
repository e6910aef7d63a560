"""How the processes of a run find each other, wait for each other and end.

What the main process does alone before they are connected, the others wait for: they look for its
file. A main process that fails says so in a file of its own, so that nobody waits for what will
never come, whatever started the processes.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from advisor.ground.errors import TrainingFailed
from advisor.ground.files import DISK, TEMPORARY
from trainers.job import Device
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


# For all to join, and for one that is alive and does not come to an exchange of gradients; one that
# ends is noticed at once (docs/reliability.md). A model may be loaded meanwhile.
JOIN_S = 1800


def connect(device: Device) -> None:
    """Connect this process with the others of the run; nothing if it is alone. transformers does
    so with its arguments, on the CPU without a limit of ours, and a base that one process reads for
    all has to know of the others before.

    On CUDA also for tensors on the host, where offloaded gradients are clipped, and parts of a
    checkpoint agreed upon.

    Raises ConnectionLost if another one does not come.
    """
    if process_count() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    backend = "gloo" if device.type == "cpu" else "cuda:nccl,cpu:gloo"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=JOIN_S))
    except (distributed.DistStoreError, distributed.DistNetworkError) as error:
        raise ConnectionLost(
            f"not all of the {process_count()} processes joined the run within {JOIN_S / 60:g}"
            " minutes",
            hint=(
                "one of them hangs, or cannot reach the others over the network; its output is"
                " above"
            ),
        ) from error


def run_and_leave(main: Callable[[], int]) -> int:
    """What `main` does; its exit code, unless the process has left with it before.

    The process ends without taking the interpreter down: gloo's threads may still hold tensors, and
    asking for the interpreter's lock then aborts a process that had done its work (about one in
    eight here; https://github.com/pytorch/pytorch/pull/179291).
    """
    code: str | int | None = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)

    atexit.register(leave)  # before anything else: called after everything else
    try:
        code = main()
    except SystemExit as error:
        code = error.code
        raise
    return code
