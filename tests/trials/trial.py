"""One trial: a person with files and answers, from the first question to the next step."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.terminal import Terminal

PEOPLE = Path(__file__).parent / "people"
MENU = "What now"
BEGINS = "Working it out"  # the line before an answer
MOST_QUESTIONS = 40


@dataclass(kw_only=True)
class Trial:
    """What came of it."""

    answer: list[str] = field(default_factory=list)  # between the last question and the menu
    screen: list[str] = field(default_factory=list)  # what stands on the screen at the menu
    printed: list[str] = field(default_factory=list)
    dead_ends: list[str] = field(default_factory=list)


def people() -> list[str]:
    """The names of all trials."""
    return sorted(path.stem for path in PEOPLE.glob("*.yaml"))


def person(name: str) -> dict[str, Any]:
    """One person's file: `who`, `files`, `answers`, and what has to be seen."""
    return dict(yaml.safe_load((PEOPLE / f"{name}.yaml").read_text(encoding="utf-8")))


def write_files(about: Mapping[str, Any], folder: Path) -> None:
    """The files that a person brings; `rows` repeats lines in turn with a number for each {n}."""
    for name, file in (about.get("files") or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = {"text": file} if isinstance(file, str) else file
        each = file["line"] if isinstance(file.get("line"), list) else [file.get("line", "")]
        lines = (each[n % len(each)].replace("{n}", str(n)) for n in range(file.get("rows", 0)))
        text = file.get("text", "") + "".join(f"{line}\n" for line in lines)
        path.write_bytes(
            text.replace("\n", file.get("newline", "\n")).encode(file.get("encoding", "utf-8"))
        )


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
        if why := _answer_all(terminal, about.get("answers") or {}, trial):
            trial.dead_ends.append(why)
        trial.screen = terminal.visible
        for label in about.get("menu") or []:
            if not (terminal.choose(label) or _chosen_below(terminal, label)):
                trial.dead_ends.append(f"no entry of the menu is called {label}")
                break
            terminal.wait_for_prompt()
        trial.printed = terminal.printed
    return trial


def _chosen_below(terminal: Terminal, label: str) -> bool:
    """Choose it in the menu that "More choices" opens."""
    if not terminal.choose("More choices"):
        return False
    terminal.wait_for_prompt()
    return terminal.choose(label)


def _answer_all(terminal: Terminal, answers: Mapping[str, Any], trial: Trial) -> str:
    """Answer each question until the menu stands there; returns why it never does."""
    before = [BEGINS]
    for _ in range(MOST_QUESTIONS):
        terminal.wait_for_prompt()
        asked = terminal.prompt
        if terminal.is_over or MENU in asked:
            lines = terminal.printed
            end = next((n for n, line in enumerate(lines) if MENU in line), len(lines))
            last = before[-1].partition("?")[0]  # it may be asked after that line
            begins = [n for n, line in enumerate(lines[:end], 1) if BEGINS in line or last in line]
            start = max(begins, default=0)
            trial.answer = lines[start:end]
            return "the wizard ended" if terminal.is_over else ""
        if before[-2:] == [asked, asked]:
            return f"asked three times: {asked}"
        if why := _answer(terminal, asked, answers):
            return why
        before.append(asked)
    return "the questions never end"


def _answer(terminal: Terminal, asked: str, answers: Mapping[str, Any]) -> str:
    """Answer as the person does; what they have no answer to they do not know. Returns why it cannot be."""
    for words, answer in answers.items():
        if re.search(words, asked, re.IGNORECASE):
            # A text alone is chosen from a list, or typed where there is none.
            either = answer if isinstance(answer, dict) else {"choose": answer, "type": answer}
            if not terminal.pointed:
                terminal.press(str(either["type"]), "enter")
            elif not terminal.choose(str(either["choose"])):
                return f"{asked}: no choice begins with {either['choose']!r}"
            return ""
    if not (terminal.pointed and terminal.choose("I don't know")):
        terminal.press("enter")
    return ""
