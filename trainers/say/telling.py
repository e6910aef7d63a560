"""What a stage tells a person beside its progress."""

from __future__ import annotations

import sys
from contextlib import suppress

from advisor.ground.terminal import shown
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process


def say(text: str) -> None:
    """Print a message on stderr. Nobody may be there any more: a terminal that was closed ends no
    step before it is saved.
    """
    with suppress(OSError):
        print(shown(text), file=sys.stderr, flush=True)


def tell(job: Job, line: str | None) -> None:
    """Print the line under the stage's name, in the main process alone; nothing without one."""
    if line and is_main_process():
        say(f"{label(job)}: {line}")
