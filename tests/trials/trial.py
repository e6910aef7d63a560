"""One trial: a person with files and answers, from the first question to the next step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.terminal import Terminal

PEOPLE = Path(__file__).parent / "people"
MENU = "What now"
BEGINS = "Working it out"  # the line before an answer
MOST_QUESTIONS = 40
COMMAND = re.compile(r"^\s*(\$ )?(advise|tar|scp|ollama|curl|pip|python|hf) \S")


class NoSuchChoice(Exception):
    """A question does not offer what the person looks for."""


@dataclass(kw_only=True)
class Trial:
    """What came of it."""

    questions: list[tuple[str, str]] = field(default_factory=list)  # asked, and what was pressed
    answer: list[str] = field(
        default_factory=list
    )  # the lines between the last answer and the menu
    screen: list[str] = field(default_factory=list)  # what stands on the screen at the menu
    printed: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    dead_ends: list[str] = field(default_factory=list)

    @property
    def lines_read(self) -> int:
        """Lines of the answer up to the first command to type, or all of them."""
        for place, line in enumerate(self.answer):
            if COMMAND.match(line):
                return place + 1
        return len(self.answer)

    @property
    def whole_answer_is_visible(self) -> bool:
        """Whether the answer's first line stands on the screen together with the menu."""
        first = next(line for line in self.answer if line.strip())
        return first in self.screen and any(MENU in line for line in self.screen)

    @property
    def next_step_is_visible(self) -> bool:
        """Whether a command, or a menu with what to do, stands on the screen at the end."""
        return any(COMMAND.match(line) or MENU in line for line in self.screen)


def people() -> list[str]:
    """The names of all trials."""
    return sorted(path.stem for path in PEOPLE.glob("*.yaml"))


def person(name: str) -> dict[str, Any]:
    """One person's file: `who`, `files`, `answers`, and what has to be seen."""
    return dict(yaml.safe_load((PEOPLE / f"{name}.yaml").read_text(encoding="utf-8")))


def write_files(about: Mapping[str, Any], folder: Path) -> None:
    """The files that a person brings; `rows` repeats a line with its number in place of {n}, or
    several lines in turn.
    """
    for name, file in (about.get("files") or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, str):
            file = {"text": file}
        lines = [file.get("text", "")]
        each = file["line"] if isinstance(file.get("line"), list) else [file.get("line", "")]
        lines += [
            each[n % len(each)].replace("{n}", str(n)) + "\n" for n in range(file.get("rows", 0))
        ]
        text = "".join(lines).replace("\n", file.get("newline", "\n"))
        path.write_bytes(text.encode(file.get("encoding", "utf-8")))


def run(
    name: str,
    folder: Path,
    *,
    columns: int,
    rows: int,
    environment: Mapping[str, str] | None = None,
) -> Trial:
    """Let a person go through the wizard up to the menu, and press what they press there."""
    about, trial = person(name), Trial()
    write_files(about, folder)
    with Terminal([], folder, columns=columns, rows=rows, environment=environment) as terminal:
        for _ in _questions(terminal, about, trial):
            pass
        trial.printed = terminal.printed
        trial.screen = terminal.visible
        for label in about.get("menu") or []:
            if not terminal.choose(label) and not (
                terminal.choose("More choices") and _chosen_below(terminal, label)
            ):
                trial.dead_ends.append(f"no entry of the menu is called {label}")
                break
            terminal.wait_for_prompt()
            trial.printed = terminal.printed
        trial.keys = terminal.keys
    return trial


def _chosen_below(terminal: Terminal, label: str) -> bool:
    """Choose it in the menu that "More choices" opens."""
    terminal.wait_for_prompt()
    return terminal.choose(label)


def _questions(terminal: Terminal, about: Mapping[str, Any], trial: Trial) -> Iterator[None]:
    """Answer each question until the menu stands there."""
    answers = dict(about.get("answers") or {})
    while len(trial.questions) < MOST_QUESTIONS:
        terminal.wait_for_prompt()
        asked = terminal.prompt
        if terminal.is_over or MENU in asked:
            lines = terminal.printed
            end = next((n for n, line in enumerate(lines) if MENU in line), len(lines))
            start = max((n + 1 for n, line in enumerate(lines[:end]) if BEGINS in line), default=0)
            trial.answer = lines[start:end]
            if terminal.is_over:
                trial.dead_ends.append("the wizard ended")
            return
        if [question for question, _ in trial.questions[-2:]] == [asked, asked]:
            trial.dead_ends.append(f"asked three times: {asked}")
            return
        try:
            pressed = _answer(terminal, asked, answers)
        except NoSuchChoice as fault:
            trial.dead_ends.append(str(fault))
            return
        trial.questions.append((asked, pressed))
        yield
    trial.dead_ends.append("the questions never end")


def _answer(terminal: Terminal, asked: str, answers: Mapping[str, Any]) -> str:
    """Answer as the person does; what they have no answer to they do not know."""
    for words, answer in answers.items():
        if not re.search(words, asked, re.IGNORECASE):
            continue
        # A text alone is chosen from a list, or typed where there is none.
        either = answer if isinstance(answer, dict) else {"choose": answer, "type": answer}
        if not terminal.pointed:
            terminal.press(str(either["type"]), "enter")
            return str(either["type"])
        if terminal.choose(str(either["choose"])):
            return str(either["choose"])
        raise NoSuchChoice(f"{asked}: no choice begins with {either['choose']!r}")
    if terminal.pointed and terminal.choose("I don't know"):
        return "I don't know"
    terminal.press("enter")
    return "Enter"
