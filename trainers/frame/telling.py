"""What a stage tells a person beside its progress."""

from __future__ import annotations

from trainers.frame.job import Job, label
from trainers.frame.machine import is_main_process


def tell(job: Job, line: str | None) -> None:
    """Print the line under the stage's name, in the main process alone; nothing without one."""
    if line and is_main_process():
        from trainers.frame.progress import say

        say(f"{label(job)}: {line}")
