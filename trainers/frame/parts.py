"""The parts of a stage and what each took: loading, the base before training, the steps, the result
after them. Together they are the whole time of this attempt.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from advisor.plan.record import Times

LOAD, BEFORE, TRAIN, AFTER = "load_s", "before_s", "train_s", "after_s"
SAID = {
    LOAD: "loading rows and model",
    BEFORE: "measuring the model before training",
    AFTER: "saving, checking and measuring the result",
}


class Parts:
    """Which part a stage is in, since when, and how long the others took.

    Args:
        label: What messages call the stage.
        shown: Whether this process says where it is. The steps have a display of their own.
    """

    def __init__(self, label: str, *, shown: bool) -> None:
        self.label, self.shown = label, shown
        self.took_s: dict[str, float] = {}
        self.part, self.began_s = "", time.monotonic()

    def begin(self, part: str) -> None:
        """The part before ends here."""
        self._end()
        self.part = part
        if self.shown and part in SAID:
            print(f"{self.label}: {SAID[part]}", file=sys.stderr, flush=True)

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
