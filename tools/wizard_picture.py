"""`python -m tools.wizard_picture` draws docs/wizard.svg: the wizard as a person sees it, from the
first question to the menu, run for real on an emulated screen.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from advisor.ground.files import write_atomically
from tools.terminal import REPOSITORY, Terminal

TARGET = REPOSITORY / "docs" / "wizard.svg"
COLUMNS, ROWS = 80, 50
ROWS_OF_DATA = 5000
# Words of a question, the choice to take from its list, the text to type where it has none. What is
# not named is not known.
ANSWERS = (
    ("What should the model do", "Answer customers", ""),
    ("Where are your examples", "", "tickets.jsonl"),
    ("How much may it cost", "As little", ""),
    ("Which model", "", "Qwen/Qwen3-8B"),
    ("graphics card", "Another", "RTX 4090"),
    ("card called", "", "RTX 4090"),
    ("GPU", "Another", "RTX 4090"),
)
MENU = "What now"
SIZE, LINE, WIDE, MARGIN = 13.0, 18.0, 7.83, 18.0  # of a monospaced font: a column is 0.602 em wide
PAPER, INK = "#111827", "#e5e7eb"
COLOURS = {
    "default": INK,
    "brown": "#fbbf24",
    "yellow": "#fbbf24",
    "green": "#4ade80",
    "cyan": "#67e8f9",
    "blue": "#93c5fd",
    "red": "#fca5a5",
    "magenta": "#f0abfc",
    "white": "#ffffff",
}
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def main() -> None:
    """Run the wizard and write the picture."""
    write_atomically(TARGET, svg(seen()))
    print(f"wrote {TARGET}")


def seen() -> list[list[Any]]:
    """The screen at the menu, line by line, each a list of characters with their looks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (
            {
                "prompt": f"My order {number} has not arrived. Where is it? It was promised for the"
                f" {number % 28 + 1}th.",
                "completion": f"I am sorry about order {number}. It left our house on Monday and"
                " arrives tomorrow; I have sent you the link to follow it.",
            }
            for number in range(ROWS_OF_DATA)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "tickets.jsonl").write_text(text, encoding="utf-8")
        with Terminal([], folder, columns=COLUMNS, rows=ROWS) as terminal:
            while True:
                terminal.wait_for_prompt()
                asked = terminal.prompt
                if MENU in asked or terminal.is_over:
                    return lines_of(terminal)
                answer(terminal, asked)


def answer(terminal: Terminal, asked: str) -> None:
    """Answer one question."""
    for words, label, text in ANSWERS:
        if words in asked:
            if not terminal.pointed:
                terminal.press(text, "enter")
            elif not terminal.choose(label):
                raise AssertionError(f"{asked}: {label} cannot be chosen")
            return
    if not terminal.pointed or not terminal.choose("I don't know"):
        terminal.press("enter")


def lines_of(terminal: Terminal) -> list[list[Any]]:
    """All lines so far, those that were scrolled away first, without empty ones at the end."""
    screen = terminal.screen
    rows = [*screen.history.top, *(screen.buffer[place] for place in range(screen.lines))]
    lines = [[row[place] for place in range(screen.columns)] for row in rows]
    while lines and not "".join(one.data for one in lines[-1]).strip():
        lines.pop()
    return lines


def svg(lines: list[list[Any]], *, title: str = "The wizard of advise") -> str:
    """The picture of a terminal with these lines."""
    width, height = COLUMNS * WIDE + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    words = "\n".join("".join(one.data for one in line).rstrip() for line in lines)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{title}"'
        f' font-family="{FONT}" font-size="{SIZE:g}">'
    )
    return "\n".join(
        [
            head,
            f"<title>{title}</title>",
            f"<desc>{escape(words)}</desc>",
            f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>',
            *(line_svg(line, place) for place, line in enumerate(lines)),
            "</svg>",
            "",
        ]
    )


def line_svg(line: list[Any], place: int) -> str:
    """One line, in runs of equal looks; each run starts at its own column, whatever the font."""
    y = MARGIN + LINE * (place + 0.75)
    parts, column = [], 0
    for looks, run in groupby(line, key=lambda one: (one.fg, one.bold)):
        text = "".join(one.data for one in run)
        if text.strip():
            parts.append(run_svg(text, column, y, *looks))
        column += len(text)
    return "".join(parts)


def run_svg(text: str, column: int, y: float, colour: str, bold: bool) -> str:
    """A run of characters of one look."""
    lead = len(text) - len(text.lstrip())
    text = text.strip()
    x = MARGIN + (column + lead) * WIDE
    weight = ' font-weight="700"' if bold else ""
    fill = COLOURS.get(colour, f"#{colour}" if len(colour) == 6 else INK)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" textLength="{len(text) * WIDE:.1f}" fill="{fill}"{weight}'
        f' xml:space="preserve">{escape(text)}</text>'
    )


def words_of(picture: str) -> Iterable[str]:
    """The lines of a picture, as its description holds them."""
    return picture.partition("<desc>")[2].partition("</desc>")[0].splitlines()


if __name__ == "__main__":
    main()
