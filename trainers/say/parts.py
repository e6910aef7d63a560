"""The parts of a stage and what each took: loading, the base before training, the steps, the result
after them. Together they are the whole time of this attempt.

Each of them is a wait (advisor/ground/progress.py); what goes on inside it opens waits of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from advisor.ground.progress import Wait, board
from advisor.record.stage import Times
from trainers.say.telling import say

LOAD, BEFORE, TRAIN, AFTER = "load_s", "before_s", "train_s", "after_s"
SAID = {
    LOAD: "loading rows and model",
    BEFORE: "measuring the model before training",
    AFTER: "saving, checking and measuring the result",
}
# What is said where several processes train and one of its own judges.
SAVING_ALONE, JUDGING_ALONE = "saving the result", "checking and measuring the result"


class Parts:
    """Which part a stage is in, since when, and how long the others took.

    Args:
        label: What messages call the stage.
        shown: Whether this process says where it is. The steps are a wait of their own.
        folder: The run folder, for those who follow it.
    """

    def __init__(self, label: str, *, shown: bool, folder: Path | None = None) -> None:
        board.is_shown, board.label, board.folder = shown, label, folder
        self.label, self.shown = label, shown
        self.took_s: dict[str, float] = {}
        self.part, self.began_s = "", time.monotonic()
        self.wait: Wait | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Show no more."""
        if self.wait is not None:
            board.close(self.wait)
            self.wait = None

    def begin(self, part: str, *, text: str | None = None) -> None:
        """The part before ends here.

        Args:
            part: One of those above.
            text: What is said of it; default: the usual.
        """
        self._end()
        self.close()
        self.part = part
        text = text or SAID.get(part)
        if self.shown and text is not None:
            say(f"{self.label}: {text}")
            self.wait = board.open(text)

    def _end(self) -> None:
        now_s = time.monotonic()
        if self.part:
            self.took_s[self.part] = self.took_s.get(self.part, 0.0) + now_s - self.began_s
        self.began_s = now_s

    def times(self) -> Times:
        """What every part took, the one at work so far."""
        self._end()
        took_s: dict[str, Any] = {part: round(s, 3) for part, s in self.took_s.items()}
        return Times(total_s=round(sum(took_s.values()), 3), **took_s)
