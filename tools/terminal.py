"""A program in a real pseudo-terminal with an emulated screen: what a person sees and presses."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

KEYS = {"down": "\x1b[B", "up": "\x1b[A", "enter": "\r", "ctrl-c": "\x03"}
QUIET_S = 0.25  # nothing printed for so long: the program waits for a key, or computes
POINTERS = ("»", ">", "❯")
REPOSITORY = Path(__file__).resolve().parent.parent


class Terminal:
    """`advise ARGUMENTS` in a folder, on a screen of so many columns and rows."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        columns: int,
        rows: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        env = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / ".state"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUTF8": "1",
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers the question where the cursor is
            **(environment or {}),
        }
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)
        self.keys: list[str] = []
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "advisor", *arguments],
            cwd=str(folder),
            env=env,
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=60,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    @property
    def is_over(self) -> bool:
        """Whether the program has ended."""
        return not self.child.isalive()

    def press(self, *names: str) -> None:
        """Press keys by their names, or type a text."""
        for name in names:
            self.keys.append(name)
            self.child.send(KEYS.get(name, name))

    def settle(self, seconds: float = 60) -> None:
        """Read until nothing more is printed for a moment."""
        end, quiet = time.monotonic() + seconds, time.monotonic() + QUIET_S
        while time.monotonic() < min(end, quiet):
            try:
                self._stream.feed(self.child.read_nonblocking(65_536, timeout=0.05))
                quiet = time.monotonic() + QUIET_S
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                self.child.wait()
                return

    def wait_for_prompt(self, seconds: float = 90) -> None:
        """Read until a question stands on the screen, or the program has ended."""
        end, before = time.monotonic() + seconds, [""]
        while time.monotonic() < end:
            self.settle()
            if self.is_over or (self.prompt and self.visible == before):
                return
            before = self.visible  # a busy machine may pause while it draws
        raise TimeoutError("no question on the screen:\n" + "\n".join(self.visible))

    @property
    def visible(self) -> list[str]:
        """The lines of the screen, as they stand now."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def printed(self) -> list[str]:
        """Every line so far that was not erased, those scrolled off the screen first."""
        width = self.screen.columns
        gone = [
            "".join(line[place].data for place in range(width)).rstrip()
            for line in self.screen.history.top
        ]
        return [*gone, *self.visible[: self.screen.cursor.y + 1]]

    @property
    def prompt(self) -> str:
        """The question that is being asked, in one line; "" if none is."""
        lines = self.visible
        starts = [place for place, line in enumerate(lines) if line.startswith("? ")]
        if not starts:
            return ""
        words = [lines[starts[-1]][2:]]
        for line in lines[starts[-1] + 1 :]:
            # A question goes on two columns in, a choice stands three in.
            is_choice = line.startswith("   ") or line.strip().startswith(POINTERS)
            if is_choice or not line.startswith("  "):
                break
            words.append(line.strip())
        return " ".join(words)

    @property
    def pointed(self) -> str:
        """The choice that the pointer stands at; "" if there is none."""
        for line in reversed(self.visible):
            if line.strip().startswith(POINTERS) and len(line.strip()) > 2:
                return line.strip()[1:].strip()
        return ""

    def choose(self, label: str) -> bool:
        """Move the pointer to the choice that begins with this label and press Enter.

        False, with nothing chosen, where no choice does.
        """
        first = self.pointed
        for _ in range(40):
            at = self.pointed
            if at.lower().startswith(label.lower()):
                self.press("enter")
                return True
            self.press("down")
            end = time.monotonic() + 5
            while self.pointed == at and time.monotonic() < end:  # a busy machine draws late
                self.settle(1)
            if self.pointed == first:
                return False
        return False
