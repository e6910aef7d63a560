"""`python -m tools.demo_picture` draws docs/demo.svg: what `advise demo` shows in the end, on an
emulated screen: one question before and after, the verdict, and the next step. It trains for real,
which takes minutes; what a person may skip is left out, with a line that says so.

`python -m tools.demo_picture --base FILE` brings a file of ~/.cache/finetune-advisor/base, which a
demo has measured without one, along with the next demos.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from advisor.commands.demo import MEASURED
from advisor.ground.files import write_atomically
from tools.terminal import REPOSITORY, Terminal
from tools.wizard_picture import lines_of, svg
from trainers.job.files import keep_value, read_json

TARGET = REPOSITORY / "docs" / "demo.svg"
COLUMNS, ROWS = 80, 60
MOST_S = 1800.0
# What begins a part of the output, and whether it is in the picture.
PARTS = (
    ("1. A small", True),
    ("2. Asking for", True),
    ("Teach ", False),
    ("4. What changed", True),
    ("  Gained least", False),
    ("  Lost most", False),
    ("  In the middle", False),
    ("  Task ", True),
    ("Done: ", False),
    ("Now with your own", True),
)


def main() -> None:
    """Run the demo and write the picture, or bring along what it has measured of its base."""
    if sys.argv[1:2] == ["--base"]:
        found = read_json(Path(sys.argv[2]))
        value, mark = found["value"], found["fingerprint"]
        value["kept"]["device"] = "a CPU elsewhere"
        return keep_value(MEASURED / f"{mark[:32]}.json", mark, value)
    write_atomically(TARGET, svg(excerpt(seen()), title="The demo of advise"))
    return print(f"wrote {TARGET}")


def seen() -> list[list[Any]]:
    """All lines of the demo, each a list of characters with their looks."""
    kept = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
    with (
        tempfile.TemporaryDirectory() as name,
        Terminal(["demo"], Path(name), columns=COLUMNS, rows=ROWS, environment=kept) as terminal,
    ):
        end = time.monotonic() + MOST_S
        while not terminal.is_over:
            terminal.settle(5)
            if terminal.prompt and terminal.pointed:
                terminal.choose("Quit")
            elif time.monotonic() > end:
                raise TimeoutError("\n".join(terminal.visible))
        terminal.settle(1)
        return lines_of(terminal)


def excerpt(lines: list[list[Any]]) -> list[list[Any]]:
    """The parts to show, under the command; `...` stands for what is left out between them."""
    blank = lines[0][0]._replace(data=" ", fg="default", bold=False)

    def line(text: str) -> list[Any]:
        return [blank._replace(data=one) for one in text]

    found, shows = [line("$ advise demo")], True
    for one in lines:
        text = text_of(one)
        was, shows = shows, next((shown for start, shown in PARTS if text.startswith(start)), shows)
        if was and not shows:
            found.append(line("..."))
        if shows and (text or text_of(found[-1])):
            found.append(one)
    return found


def text_of(line: list[Any]) -> str:
    """The characters of a line."""
    return "".join(one.data for one in line).rstrip()


if __name__ == "__main__":
    main()
