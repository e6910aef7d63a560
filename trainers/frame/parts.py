"""The parts of a stage and what each took: loading, the base before training, the steps, the result
after them. Together they are the whole time of this attempt.

A part without steps shows that it is at work: a bar on a terminal, elsewhere a line from time to
time. What goes through rows says how many are done (`followed`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from advisor.ground.units import format_duration
from advisor.plan.record import Times

LOAD, BEFORE, TRAIN, AFTER = "load_s", "before_s", "train_s", "after_s"
SAID = {
    LOAD: "loading rows and model",
    BEFORE: "measuring the model before training",
    AFTER: "saving, checking and measuring the result",
}
LINE_EVERY_S = 10.0  # without a terminal
Item = TypeVar("Item")


class Wait:
    """Shows that something without steps of its own is at work: a bar on a terminal, which moves
    even while nothing can be counted; elsewhere a line now and then, from a thread.
    """

    at_work: Wait | None = None  # the one of this process

    def __init__(self, label: str, text: str) -> None:
        self.label, self.text, self.began_s = label, text, time.monotonic()
        self.what, self.done, self.total = "", 0, 0
        self.bar: Any = None
        self.ended = threading.Event()
        if sys.stderr.isatty():
            self._open_bar()
        else:
            threading.Thread(target=self._lines, name="wait", daemon=True).start()
        Wait.at_work = self

    def _open_bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from advisor.ground.terminal import console, show_streams

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,  # the line that says what began stays
        )
        self.bar.start()
        show_streams()  # rich has put its own in place
        self.task = self.bar.add_task(self.label, total=None, text="")

    def _lines(self) -> None:
        while not self.ended.wait(LINE_EVERY_S):
            took = format_duration(time.monotonic() - self.began_s)
            print(
                f"{self.label}: {self.text}: {self._counted()}{took} so far",
                file=sys.stderr,
                flush=True,
            )

    def _counted(self) -> str:
        return f"{self.done} of {self.total} {self.what}, " if self.total else ""

    def show(self, what: str, done: int, total: int) -> None:
        """So many of them are done."""
        self.what, self.done, self.total = what, done, total
        if self.bar is not None:
            text = f"{done} of {total} {what}"
            self.bar.update(self.task, completed=done, total=total, text=text)

    def count_no_more(self) -> None:
        """What comes next cannot be counted."""
        self.total = 0
        if self.bar is not None:
            self.bar.update(self.task, total=None, text="")

    def close(self) -> None:
        self.ended.set()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if Wait.at_work is self:
            Wait.at_work = None


def followed(items: Sequence[Item], what: str, *, each: int = 1, of: int = 0) -> Iterator[Item]:
    """The items, one by one, while the part at work shows how many are done. Nothing is shown where
    no part waits, as in the midst of training.

    Args:
        items: Rows, or groups of them.
        what: Their name in the plural.
        each: How many rows an item stands for.
        of: All rows; default: one for each item.
    """
    total = of or len(items)
    try:
        for place, item in enumerate(items):
            if Wait.at_work is not None:
                Wait.at_work.show(what, min(total, place * each), total)
            yield item
    finally:  # also where no further answers are begun
        if Wait.at_work is not None:
            Wait.at_work.count_no_more()


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
        self.wait: Wait | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Show no more."""
        if self.wait is not None:
            self.wait.close()
            self.wait = None

    def begin(self, part: str) -> None:
        """The part before ends here."""
        self._end()
        self.close()
        self.part = part
        if self.shown and part in SAID:
            print(f"{self.label}: {SAID[part]}", file=sys.stderr, flush=True)
            self.wait = Wait(self.label, SAID[part])

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
