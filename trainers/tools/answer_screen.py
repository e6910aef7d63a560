"""Where the answers of a chat appear while they are written: in columns side by side, or one after
the other, each behind its name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from advisor.ground.progress import is_live
from advisor.ground.terminal import console

COLUMN_WIDTH = 50  # a terminal has columns if each is at least so wide
DRAW_EVERY_S = 0.1


class AnswerScreen(Protocol):
    """Takes the answers of some models to one question, one model after the other."""

    def begin(self, name: str) -> None:
        """A model begins to answer."""

    def write(self, text: str) -> None:
        """A piece of its answer."""

    def end(self) -> None:
        """Its answer is complete, or was interrupted."""

    def close(self) -> None:
        """No further model answers."""


class OneAfterAnother:
    """Each answer on lines of its own.

    Args:
        out: Takes them.
        is_named: Write the model's name before each.
    """

    def __init__(self, out: TextIO, *, is_named: bool) -> None:
        self.out, self.is_named = out, is_named

    def begin(self, name: str) -> None:
        if self.is_named:
            self.write(f"[{name}] ")

    def write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def end(self) -> None:
        self.write("\n")

    def close(self) -> None:
        """Nothing is held."""


class SideBySide:
    """A column for each model, drawn anew while its answer grows; the last drawing stays."""

    def __init__(self, names: Sequence[str]) -> None:
        from rich.live import Live

        self.texts = dict.fromkeys(names, "")
        self.name = names[0]
        self.drawn_s = 0.0
        self.live = Live(console=console(), auto_refresh=False)
        self.live.start()

    def begin(self, name: str) -> None:
        self.name = name
        self._draw()

    def write(self, text: str) -> None:
        self.texts[self.name] += text
        if time.monotonic() - self.drawn_s >= DRAW_EVERY_S:
            self._draw()

    def end(self) -> None:
        self._draw()

    def close(self) -> None:
        self._draw()
        self.live.stop()

    def _draw(self) -> None:
        self.drawn_s = time.monotonic()
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
        for name in self.texts:
            table.add_column(Text(name), ratio=1)
        table.add_row(*(Text(text.strip()) for text in self.texts.values()))
        return table


def screen_for(
    names: Sequence[str], out: TextIO, *, is_named: bool, may_move: bool
) -> AnswerScreen:
    """Columns where the terminal is wide enough for them, otherwise one answer after another.

    Args:
        names: The models that answer.
        out: Standard output.
        is_named: Say who answers, if one answers after the other.
        may_move: A person reads, not a program.
    """
    is_wide = console().width >= COLUMN_WIDTH * len(names)
    if may_move and len(names) > 1 and is_wide and is_live(out):
        return SideBySide(names)
    return OneAfterAnother(out, is_named=is_named)
