"""Every wait of more than two seconds shows what is done, what is left, and how fast it goes.

    with waiting("measuring before", total=len(rows), unit="rows") as done:
        for row in rows:
            ...
            done()

Waits may lie inside one another. A terminal gets a bar above a line that changes. Anything else (a
log, a pipe, TERM=dumb) gets the line from time to time. A thread looks at the clock, so that
counting an item costs an addition.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import asdict

from advisor.ground.files import TEMPORARY, text_of
from advisor.ground.terminal import shown
from advisor.ground.units import MIB, format_duration, gib

FILE = f"{TEMPORARY}progress"  # in a run folder, while a process works there
SHOWN_AFTER_S = 2.0
SPEED_AFTER_S = 1.0  # before that a rate is noise
TICK_S = 0.25
# Between two lines of a log: a tenth of what the wait has lasted, within these bounds.
LINE_EVERY_S = (5.0, 30.0)
FILE_EVERY_S = 1.0
MOST = 1e18  # of a number in a file
BYTES = "bytes"  # the unit that is shown in MiB
Item = TypeVar("Item")


class Wait(Struct):
    """One thing that takes a while. Call it with the number of items that are done."""

    what: str
    total: int = 0  # 0: not known
    unit: str = ""  # of the items, in the plural
    began_s: float = 0.0
    done: int = 0
    first: int = 0  # done before it began
    text: str = ""  # further numbers, in place of the rate
    left_s: float | None = None  # None: by the rate
    below: str = ""  # lines of its own that a terminal shows under the bar, each cut to its width
    seen: int = 0  # how many were done at the last look, and since when
    seen_s: float | None = None

    def __call__(self, count: int = 1) -> None:
        """So many more items are done."""
        self.done += count
        board.heard(self)

    def at(
        self, done: int | None = None, *, text: str | None = None, left_s: float | None = None
    ) -> None:
        """So many are done in all, and what else there is to show."""
        if done is not None:
            self.done = done
        if text is not None:
            self.text = text
        self.left_s = left_s
        board.heard(self)

    @property
    def count(self) -> str:
        """'12 of 64 rows'; empty if there is nothing to count."""
        is_bytes = self.unit == BYTES
        done, total = (f"{n / MIB:,.0f}" if is_bytes else f"{n:,}" for n in (self.done, self.total))
        unit = "MiB" if is_bytes else self.unit
        if not self.total:
            return f"{done} {unit}".strip() if self.done else ""
        return f"{done} of {total} {unit}".strip()

    def rate(self, now_s: float) -> float:
        """Items a second until the last one was done; 0 if it is not known yet."""
        took_s, moved = self._last_s(now_s) - self.began_s, self.done - self.first
        least = MIB if self.unit == BYTES else 1  # less is shown as nothing
        return moved / took_s if moved >= least and took_s >= SPEED_AFTER_S else 0.0

    def speed(self, now_s: float) -> str:
        """'1.5 answers/s', or the numbers that are shown in its place; empty if none is known."""
        rate = self.rate(now_s)
        if self.text or not rate:
            return self.text
        if self.unit == BYTES:
            return f"{rate / MIB:,.1f} MiB/s"
        if rate < 0.1:
            return f"{1 / rate:,.0f} s each"
        return f"{rate:,.{0 if rate >= 100 else 1}f} {self.unit or 'items'}/s"

    def seconds_left(self, now_s: float) -> float | None:
        """Until the last item; None if that is not known."""
        rate = self.rate(now_s)
        if self.left_s is not None or not rate or self.total <= self.done:
            return self.left_s
        return max(0.0, (self.total - self.done) / rate - (now_s - self._last_s(now_s)))

    def look(self, now_s: float) -> None:
        """Note when the number of those that are done changed: what is half done is not counted,
        so that its time would make the rate too small.
        """
        if self.done != self.seen:
            self.seen, self.seen_s = self.done, now_s

    def begin(self, now_s: float) -> None:
        """What was done until now is no part of the rate."""
        self.first, self.began_s, self.seen, self.seen_s = self.done, now_s, self.done, None

    def _last_s(self, now_s: float) -> float:
        last_s = self.seen_s if self.seen == self.done else None
        return now_s if last_s is None or last_s - self.began_s < SPEED_AFTER_S else last_s

    def sentence(self, now_s: float) -> str:
        """'generating answers: 12 of 64 answers, 1.5 answers/s, 35 s left'."""
        left_s, time = self.seconds_left(now_s), ""
        if left_s is not None:
            time = f"{format_duration(left_s)} left"
        elif not self.total:
            time = f"{format_duration(now_s - self.began_s)} so far"
        parts = filter(None, (self.count, self.speed(now_s), time))
        return f"{self.what}: {', '.join(parts)}"


class View(Struct, frozen=True):
    """What there is to see at one moment: the waits from the outermost to the innermost."""

    label: str
    waits: Sequence[Wait]
    memory: tuple[int, int | None] | None  # (bytes in use, the limit)
    now_s: float

    def line(self, *, named: bool = True) -> str:
        """Everything in one line; not named, it is put behind a label of somebody else's."""
        outer, *inner = self.waits
        shown_inner = [wait for wait in inner if wait.done or wait.total or wait is inner[-1]]
        parts = [wait.sentence(self.now_s) for wait in (outer, *shown_inner)]
        if self.memory is not None:
            used, limit = self.memory
            of = f" of {gib(limit):,.1f}" if limit else ""
            parts.append(f"memory {gib(used):,.1f}{of} GiB")
        return (f"{self.label}: " if self.label and named else "") + "; ".join(parts)


def is_live(stream: Any) -> bool:
    """Whether a bar can move on this stream."""
    return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("dumb", "unknown")


class WaitBar:
    """The view on a terminal, drawn over itself; nothing of it stays."""

    def __init__(self) -> None:
        from rich.live import Live

        from advisor.ground.console import console
        from advisor.ground.terminal import show_streams

        self.live = Live(
            console=console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,  # which holds data, and may go elsewhere
        )
        self.live.start()
        show_streams()  # rich has put its own in place, which read colours out of any text

    def draw(self, view: View) -> None:
        """Show this moment."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        wait = next((wait for wait in view.waits if wait.total), view.waits[-1])
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(wait.total or None, wait.done, animation_time=view.now_s))
        grid.add_row(Text(view.line()))
        for line in "\n".join(filter(None, (one.below for one in view.waits))).splitlines():
            grid.add_row(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
        self.live.update(grid, refresh=True)

    def close(self) -> None:
        """Take it away."""
        self.live.stop()


class Board:
    """The waits of this process, and who sees them; without its thread somebody calls `tick`."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, starts_thread: bool = True
    ) -> None:
        self.clock, self.starts_thread = clock, starts_thread
        self.is_shown = True  # False in all processes of a run but the first
        self.label = ""
        self.memory: Callable[[], tuple[int, int | None]] | None = None
        self.folder: Path | None = None  # of the run, for those who follow it
        self.heard: Callable[[Wait], object] = id  # told of every item, for tests
        self.waits: list[Wait] = []
        self._screen = threading.RLock()  # a list keeps itself in order
        self._ended = threading.Event()
        self._bar: WaitBar | None = None
        self._last_line_s = self._last_file_s = 0.0

    def open(self, what: str, *, total: int = 0, unit: str = "", done: int = 0) -> Wait:
        """A wait begins, inside those that are open."""
        now_s = self.clock()
        wait = Wait(what, total, unit, now_s, done, done)
        self.waits.append(wait)
        if len(self.waits) == 1:
            self._last_line_s, self._last_file_s = now_s, 0.0
            if self.is_shown and self.starts_thread:
                self._ended = threading.Event()
                watch = threading.Thread(target=self._watch, args=(self._ended,), daemon=True)
                watch.start()
        self.heard(wait)
        return wait

    def close(self, wait: Wait, *, alone: bool = False) -> None:
        """A wait ends, with those inside it; alone, those go on: a file may be closed late."""
        place = next((at for at, one in enumerate(self.waits) if one is wait), None)
        if place is None:
            return
        del self.waits[place : place + 1 if alone else None]
        if not self.waits:
            self.hand_over()

    def count_from_now(self) -> None:
        """What was done until now, such as loading a model, is no part of the innermost rate."""
        for wait in [one for one in self.waits if one.total][-1:]:
            wait.begin(self.clock())

    def hand_over(self) -> None:
        """Every wait ends: from here on a child process shows what it does on the same terminal."""
        self.waits = []
        self._ended.set()
        with self._screen:
            bar, self._bar = self._bar, None
            with suppress(OSError):  # the terminal is gone
                if bar is not None:
                    bar.close()
            if self.folder is not None and self.is_shown:
                with suppress(OSError):
                    (self.folder / FILE).unlink(missing_ok=True)

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(TICK_S):
            self.tick()

    # ---------------------------------------------------------------- what is seen

    def view(self) -> View | None:
        """This moment; None if nothing is waited for."""
        waits = list(self.waits)
        if not waits:
            return None
        now_s = self.clock()
        for wait in waits:
            wait.look(now_s)
        return View(self.label, waits, self.memory() if self.memory else None, now_s)

    def tick(self) -> None:
        """Show and write what is due."""
        with self._screen:
            view = self.view() if self.is_shown else None
            if view is None:
                return
            took_s, (least_s, most_s) = view.now_s - view.waits[0].began_s, LINE_EVERY_S
            with suppress(OSError):  # the terminal is gone, which is no reason to stop
                if self._bar is not None or (took_s >= SHOWN_AFTER_S and is_live(sys.stderr)):
                    self._bar = self._bar or WaitBar()
                    self._bar.draw(view)
                elif view.now_s - self._last_line_s >= min(most_s, max(least_s, took_s / 10)):
                    self._print(view)
            if self.folder is not None and view.now_s - self._last_file_s >= FILE_EVERY_S:
                self._last_file_s = view.now_s
                write_view(self.folder, view)

    def say_now(self) -> None:
        """Print this moment as a line, which stays; on a terminal, too."""
        with self._screen:
            view = self.view() if self.is_shown else None
            if view is not None:
                self._print(view)

    def say_in_log(self) -> None:
        """The same where there is no bar."""
        if not is_live(sys.stderr):
            self.say_now()

    def _print(self, view: View) -> None:
        self._last_line_s = view.now_s
        print(shown(view.line()), file=sys.stderr, flush=True)


board = Board()


@contextmanager
def waiting(what: str, *, total: int = 0, unit: str = "", done: int = 0) -> Iterator[Wait]:
    """Show a wait while the context lasts; `total` 0 is not known, BYTES are shown in MiB."""
    wait = board.open(what, total=total, unit=unit, done=done)
    try:
        yield wait
    finally:
        board.close(wait)


def track(
    items: Sequence[Item], what: str, *, unit: str = "rows", each: int = 1, of: int = 0
) -> Iterator[Item]:
    """The items, one by one, as a wait; each counts as `each` of `of` (default: of all)."""
    total = of or len(items) * each
    with waiting(what, total=total, unit=unit) as done:
        for place, item in enumerate(items, start=1):
            yield item
            done.at(min(total, place * each))


# --------------------------------------------------------------------------- for other processes


def write_view(folder: Path, view: View) -> None:
    """Leave the view in a run folder. It helps those who look; a run does not fail for it."""
    content = {
        "label": view.label,
        "at_s": time.time(),
        "memory": view.memory,
        "waits": [
            {
                **asdict(wait),
                "began_s": round(view.now_s - wait.began_s, 3),
                "seen_s": None if wait.seen_s is None else round(view.now_s - wait.seen_s, 3),
            }
            for wait in view.waits
        ],
    }
    temporary = folder / f"{FILE}-{os.getpid()}"
    with suppress(OSError):
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, folder / FILE)


def read_view(folder: Path) -> View | None:
    """What the process that works in a run folder is at; None if it has not said so."""
    try:
        text = text_of(folder / FILE)
        content = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
        # The moment at which it was written is 0.
        waits = [
            Wait(**one | {key: -one[key] for key in ("began_s", "seen_s") if one.get(key)})
            for one in content["waits"]
        ]
        now_s = max(0.0, time.time() - content["at_s"])
        view = View(str(content["label"]), waits, content["memory"], now_s)
        return view if waits and view.line() else None
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError):
        return None  # it is damaged
    except (TypeError, ValueError):
        return None  # it is not whole, or nothing can be drawn of it


def _number(text: str) -> float:
    """A number of a file that may be damaged. Raises ValueError for what nothing can be."""
    number = float(text)
    if not abs(number) < MOST:
        raise ValueError(f"{text} is no count, time or memory")
    return int(number) if number.is_integer() else number
