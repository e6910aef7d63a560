"""The terminal behind the questions: questionary where the terminal can move its cursor, numbered
lists where it cannot.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from advisor.ground.terminal import shown

if TYPE_CHECKING:
    from rich.console import Console

TONES = {"plain": "", "strong": "bold", "quiet": "dim", "warning": "yellow"}
POINTER_COLUMNS = 3  # what questionary puts before each choice
SMALLEST_WIDTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One choice: what is returned, what a person reads, and one line of help."""

    value: Any
    label: str
    help: str = ""


class Ui(ABC):
    """What the wizard needs of a terminal.

    Ctrl-C raises KeyboardInterrupt, the end of input EOFError.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @property
    @abstractmethod
    def rows(self) -> int:
        """Lines of the screen; many where nothing scrolls out of reach."""

    @abstractmethod
    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        """The value of the option that was chosen; `current` is preselected."""

    @abstractmethod
    def enter(self, message: str, *, hint: str, default: str, path: bool, keep: bool) -> str:
        """A typed line.

        Args:
            default: A text to start from.
            keep: Whether an empty line means `default`, where it cannot be shown to be edited.
        """

    def say(self, text: str, *, tone: str = "plain", lead: str = "") -> None:
        """Print one paragraph; `lead` stands before it, and the lines that follow start below its
        end.
        """
        from rich.text import Text

        said = Text(text, style=TONES[tone], overflow="fold")
        if not lead:
            self.console.print(said)
            return
        for place, line in enumerate(
            said.wrap(self.console, max(SMALLEST_WIDTH, self.console.width - len(lead)))
        ):
            line.rstrip()
            self.console.print(
                lead if place == 0 else " " * len(lead),
                line,
                sep="",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def say_line(self, text: str) -> None:
        """Print a line to be copied: it is left whole, however narrow the terminal."""
        from rich.text import Text

        self.console.print(Text(text, style="bold"), soft_wrap=True)

    def answered(self, question: str, answer: str) -> None:
        """Leave one line for an answered question."""
        from rich.padding import Padding
        from rich.text import Text

        # Remarks in brackets were for answering; the line that stays is short.
        self.console.print(
            Padding(
                Text.assemble(question.split(" (")[0], "  ", (answer, "bold"), overflow="fold"),
                (0, 0, 0, 2),
            )
        )


def terminal_ui(console: Console) -> Ui:
    """The prompts that suit this terminal."""
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return PlainUi(console) if dumb else QuestionaryUi(console)


def place_of(current: Any, options: Sequence[Option]) -> int | None:
    """The place of the option that is the current answer."""
    return next((at for at, option in enumerate(options) if same(option.value, current)), None)


def same(value: Any, current: Any) -> bool:
    """Whether an option is the current answer; True is not 1, and None is none."""
    return current is not None and type(value) is type(current) and bool(value == current)


class QuestionaryUi(Ui):
    """Lists to move in with the arrow keys."""

    @property
    def rows(self) -> int:
        return self.console.height

    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        import questionary

        # Places instead of values: questionary compares by equality, where True is 1, and wants no
        # None.
        width = shutil.get_terminal_size().columns
        choices = [
            questionary.Choice(title=choice_lines(option, width), value=place)
            for place, option in enumerate(options)
        ]
        start = place_of(current, options)
        question = questionary.select(
            prompt_lines(f"{message} (arrow keys, Enter)", width),
            choices=choices,
            default=None if start is None else choices[start],
            instruction=" ",  # ours stands in the message, which is wrapped
            qmark="?",
            erase_when_done=True,
        )
        return options[question.unsafe_ask()].value

    def enter(self, message: str, *, hint: str, default: str, path: bool, keep: bool) -> str:
        import questionary

        # The hint belongs to the prompt, so that it goes away with it.
        width = shutil.get_terminal_size().columns
        whole = "\n".join(
            [
                prompt_lines(message, width),
                *([f"  {prompt_lines(hint, width)}"] if hint else []),
                " >",
            ]
        )
        prompt = questionary.path if path else questionary.text
        return str(prompt(whole, default=default, qmark="?", erase_when_done=True).unsafe_ask())


def prompt_lines(text: str, width: int) -> str:
    """A question wrapped by us: prompt_toolkit crops every line of a prompt but the last."""
    return "\n  ".join(
        textwrap.wrap(
            shown(text), max(SMALLEST_WIDTH, width - POINTER_COLUMNS), break_on_hyphens=False
        )
    )


def choice_lines(option: Option, width: int) -> str:
    """A choice as text that no terminal of this width crops: label and help, continued below where
    they are long.
    """
    text = f"{option.label} – {option.help}" if option.help else option.label
    room = max(SMALLEST_WIDTH, width - POINTER_COLUMNS - 1)
    lines = textwrap.wrap(shown(text), room, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return ("\n" + " " * POINTER_COLUMNS).join(lines)


class PlainUi(Ui):
    """Numbered lists and plain lines: for terminals that cannot move the cursor, and for screen
    readers.
    """

    rows = 1000  # read in order, or on paper

    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        self.say(message, tone="strong")
        for number, option in enumerate(options, 1):
            self.say(f"  {number}) {option.label}" + (f" – {option.help}" if option.help else ""))
        before = place_of(current, options)
        keeps = "" if before is None else f" (Enter alone: {options[before].label})"
        while True:
            text = self._line(f"Number from 1 to {len(options)}{keeps}: ")
            if not text and before is not None:
                return options[before].value
            if text.isdecimal() and 1 <= int(text) <= len(options):
                return options[int(text) - 1].value
            self.say(f"Please type a number from 1 to {len(options)}.")

    def enter(self, message: str, *, hint: str, default: str, path: bool, keep: bool) -> str:
        self.say(message, tone="strong")
        if hint:
            self.say(f"  {hint}", tone="quiet")
        return self._line("> ") or (default if keep else "")

    def _line(self, prompt: str) -> str:
        self.console.print(prompt, end="", markup=False, highlight=False)
        return input().strip()
