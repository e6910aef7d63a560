"""The terminal behind the questions, with arrow keys or with numbered lists."""

from __future__ import annotations

import os
import shutil
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from advisor.ground.terminal import shown
from advisor.ruleset.facts import Fact
from advisor.situation.answers import number_in
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply

TONES = {"plain": "", "strong": "bold", "quiet": "dim", "warning": "yellow"}
POINTER_COLUMNS = 3  # what questionary puts before each choice
SMALLEST_WIDTH = 20
BACK_SIGN = "<"
# What an empty line means, else "I don't know".
EMPTY = {
    "data_path": "I don't know, or none yet",
    "tasks": "I don't know, or one file holds the rows of all",
}


class Option(Struct, frozen=True, kw_only=True):
    """One choice: what is returned, what a person reads, and one line of help."""

    value: Any
    label: str
    help: str = ""


GO_BACK = Option(value=BACK, label="Back")


COMMAND_INDENT = " " * 4  # before a command to be copied, in a message of several lines


class Ui(ABC):
    """A terminal that asks. Ctrl-C raises KeyboardInterrupt, the end of input EOFError."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @property
    @abstractmethod
    def rows(self) -> int:
        """Lines of the screen; many if nothing scrolls out of reach."""

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
        """Print one paragraph behind a lead; the lines that follow are indented."""
        if not lead:
            for line in text.split("\n"):  # a command on a line of its own is left whole
                said = Text(line, style=TONES[tone], overflow="fold")
                self.print(said, soft_wrap=line.startswith(COMMAND_INDENT))
            return
        said = Text(text, style=TONES[tone], overflow="fold")
        width = max(SMALLEST_WIDTH, self.console.width - len(lead))
        for place, part in enumerate(said.wrap(self.console, width)):
            part.rstrip()
            start = lead if place == 0 else " " * len(lead)
            self.print(start, part, sep="", markup=False, highlight=False, soft_wrap=True)

    def say_line(self, text: str) -> None:
        """Print a line to be copied: it is left whole, however narrow the terminal."""
        self.print(Text(text, style="bold"), soft_wrap=True)

    def answered(self, question: str, answer: str) -> None:
        """Leave one line for an answered question."""
        # Remarks in brackets were for answering; the line that stays is short.
        line = Text.assemble(question.split(" (")[0], "  ", (answer, "bold"), overflow="fold")
        self.print(Padding(line, (0, 0, 0, 2)))

    def print(self, *what: Any, **how: Any) -> None:
        """Print it on the console."""
        self.console.print(*what, **how)

    @abstractmethod
    def begin(self, question: str, *, again: bool) -> None:
        """A question is put; one gone back to takes what was said since off the screen."""


def terminal_ui(console: Console) -> Ui:
    """The prompts that suit this terminal."""
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return PlainUi(console) if dumb else QuestionaryUi(console)


def _place_of(current: Any, options: Sequence[Option]) -> int | None:
    """The place of the option that is the current answer; True is not 1, and None is none."""
    for place, option in enumerate(options):
        if current is not None and type(option.value) is type(current) and option.value == current:
            return place
    return None


class QuestionaryUi(Ui):
    """Lists to move in with the arrow keys."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.lines, self.begun = 0, dict[str, int]()  # printed; and how many before a question

    def print(self, *what: Any, **how: Any) -> None:
        with self.console.capture() as printed:
            super().print(*what, **how)
        text = printed.get()
        width = self.console.width  # a command is not wrapped by us, but by the terminal
        cells = (Text.from_ansi(line).cell_len for line in text.splitlines())
        self.lines += sum(max(1, -(-count // width)) for count in cells)
        self.console.file.write(text)
        self.console.file.flush()

    def begin(self, question: str, *, again: bool) -> None:
        if again and question in self.begun:
            from prompt_toolkit.application import get_app_session

            screen, self.lines, now = get_app_session().output, self.begun[question], self.lines
            screen.cursor_up(now - self.lines)
            screen.erase_down()
            screen.flush()
        self.begun[question] = self.lines

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
        start = _place_of(current, options)
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
        hint = "; ".join(filter(None, ["Tab lists files" if path else "", hint]))
        hints = [f"  {prompt_lines(hint, width)}"] if hint else []
        whole = "\n".join([prompt_lines(message, width), *hints, " >"])
        more: dict[str, Any] = {}
        if path:  # not questionary's own prompt, whose list opens by itself and takes the Enter
            from questionary.prompts.path import GreatUXPathCompleter

            files = GreatUXPathCompleter(expanduser=True)
            more = {"completer": files, "complete_while_typing": False}
        prompt = questionary.text(whole, default=default, qmark="?", erase_when_done=True, **more)
        typed = str(prompt.unsafe_ask())
        return typed.rstrip("/") or typed if path else typed


def prompt_lines(text: str, width: int) -> str:
    """A question wrapped by us: prompt_toolkit crops every line of a prompt but the last."""
    room = max(SMALLEST_WIDTH, width - POINTER_COLUMNS)
    lines = (textwrap.wrap(shown(one), room, break_on_hyphens=False) for one in text.split("\n"))
    return "\n  ".join(line for part in lines for line in part)


def choice_lines(option: Option, width: int) -> str:
    """A choice with its help, wrapped so that no terminal of this width crops it."""
    text = f"{option.label} – {option.help}" if option.help else option.label
    room = max(SMALLEST_WIDTH, width - POINTER_COLUMNS - 1)
    lines = textwrap.wrap(shown(text), room, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return ("\n" + " " * POINTER_COLUMNS).join(lines)


class PlainUi(Ui):
    """Numbered lists and plain lines, for simple terminals and screen readers."""

    rows = 1000  # read in order, or on paper

    def choose(self, message: str, options: Sequence[Option], *, current: Any = None) -> Any:
        self.say(message, tone="strong")
        for number, option in enumerate(options, 1):
            self.say(f"  {number}) {option.label}" + (f" – {option.help}" if option.help else ""))
        before = _place_of(current, options)
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

    def begin(self, question: str, *, again: bool) -> None:
        pass  # what was read is not unread

    def _line(self, prompt: str) -> str:
        self.console.print(prompt, end="", markup=False, highlight=False)
        return input().strip()


# --------------------------------------------------------------------------- choices and typing


def choices_of(fact: Fact) -> list[Option]:
    """The values that a question may be answered with."""
    values = fact.values.items()
    return [Option(value=name, label=value.label, help=value.help) for name, value in values]


def ways_out(question: Question) -> Iterable[Option]:
    """The choices beside the answers: "I don't know", and back."""
    if not question.fact.required:
        yield Option(value=DONT_KNOW, label="I don't know", help=question.fact.unknown)
    if question.can_go_back:
        yield Option(value=BACK, label="Back", help="to the question before")


def ask_typed(
    question: Question, ui: Ui, read: Callable[[str], Any], *, path: bool = False, empty: str = ""
) -> Reply:
    """A typed answer, asked for again with the reason until it can be read.

    Nothing typed is DONT_KNOW; `empty` says what that means. An answer that was given before
    stands in the line: Enter keeps it, and "?" takes it away.
    """
    empty = empty or EMPTY.get(question.fact.id, "I don't know")
    back = f"; {BACK_SIGN} and Enter: back" if question.can_go_back else ""
    default = "" if question.current is None else str(question.current)
    keeps = bool(default)
    while True:
        hint = f"Enter keeps {default}; ? and Enter: {empty}" if keeps else f"Enter alone: {empty}"
        text = ui.enter(
            question.message, hint=hint + back, default=default, path=path, keep=keeps
        ).strip()
        if text == BACK_SIGN and question.can_go_back:
            return BACK
        if text in ("", "?"):
            return DONT_KNOW
        try:
            return read(text)
        except ValueError as error:
            ui.say(str(error), tone="warning")
            default, keeps = text, False


def read_number(text: str, fact: Fact) -> int | float:
    """The number in '5000', '5,000', '5k' or '1.2m'. Raises ValueError in words."""
    value = number_in(text, whole=fact.integer)
    if fact.integer and value != int(value):
        raise ValueError(f"{text} is not a whole number.")
    if fact.min is not None and value < fact.min:
        raise ValueError(f"{text} is not possible: at least {fact.min:g}.")
    if fact.max is not None and value > fact.max:
        raise ValueError(f"{text} is not possible: at most {fact.max:g}.")
    return int(value) if fact.integer else value
