"""A rich console for our own colours around text of other people: `advise --json` prints without
it, and rich takes a tenth of a second to import.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Console
from rich.segment import Segment

from advisor.ground.resources import as_called
from advisor.ground.terminal import ShownStream, is_terminal, shown


class _WithoutPadding:
    """A file or a pipe, to which rich's cells come without the blanks that fill their lines."""

    def __init__(self, below: Any) -> None:
        self.below = below

    def write(self, text: str) -> int:
        return int(self.below.write(re.sub(r" +(?=\n)", "", text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def console(*, stderr: bool = False) -> Console:
    """A rich console for our own colours around text of other people.

    It respects NO_COLOR and takes neither markup (`[red]`) nor emoji names (`:x:`) for its own.
    """
    stream = sys.stderr if stderr else sys.stdout
    below: Any = stream.below if isinstance(stream, ShownStream) else stream

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process with exit code 1

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(shown(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            """The segments with their text shown, without links: their targets are written raw."""
            for segment in super().render(renderable, options):
                if segment.control:
                    yield segment
                    continue
                style = segment.style
                if style is not None and style.link:
                    style = style.update_link(None)
                yield Segment(shown(as_called(segment.text)), style)

    file: Any = below if is_terminal(below) else _WithoutPadding(below)
    return Printer(
        file=file, stderr=stderr, highlight=False, soft_wrap=False, markup=False, emoji=False
    )
