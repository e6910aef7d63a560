"""When a checkpoint is due: after so many steps or so many minutes, whichever comes first, but less
often where saving would take more than a small share of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trainers.job.job import Job
from trainers.step import settings

LARGEST_SHARE = 0.05  # of the time that saving may take
SHORT_S = 1.0  # a save that takes less is never put off where the steps say so: ten in a run


class SaveClock:
    """Decides after each step whether to save.

    Args:
        every: Steps between checkpoints.
        is_asked: The plan names these steps: they are kept, however long saving takes.
        minutes: The longest time between checkpoints; None: steps alone count.
        now_s: A clock in seconds.
    """

    def __init__(
        self,
        every: int,
        *,
        is_asked: bool,
        minutes: float | None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every, self.is_asked, self.minutes, self.now_s = every, is_asked, minutes, now_s
        self.took_s = 0.0  # the last save
        self.is_waiting = False  # due, but too near to the last one
        self.begin()

    def begin(self) -> None:
        """Training begins, or a checkpoint has just been written."""
        self.last_s, self.is_waiting = self.now_s(), False

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        trained_s = self.now_s() - self.last_s
        if step % self.every == 0:
            if self.is_asked or self.took_s < SHORT_S:
                return True
            self.is_waiting = True
        if self.minutes is not None and trained_s >= self.minutes * 60:
            self.is_waiting = True
        return self.is_waiting and self.took_s <= LARGEST_SHARE * (trained_s + self.took_s)

    def saved(self, took_s: float) -> None:
        """A checkpoint was written, and took so long."""
        self.took_s = took_s
        self.begin()


def save_clock(job: Job, steps: int) -> SaveClock:
    """When the stage writes its checkpoints."""
    stage = job.stage
    every = settings.save_every(job, steps)
    return SaveClock(every, is_asked=stage.save_steps is not None, minutes=stage.save_minutes)
