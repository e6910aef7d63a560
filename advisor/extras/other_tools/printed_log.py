"""What a program printed as it trained: its losses, as the state that a trainer would have saved,
and the error that it ended with.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError
from advisor.ground.files import read_at_most

TEXTS = (".txt", ".log", ".out", ".err")
MOST_TEXT, MOST_LOG = 200_000, 4_000_000  # bytes: a longer .txt is data
TAIL = 2000  # characters after the error: a text that goes on for longer is no output
MOST_ERROR = 300  # characters of it that are shown
NUMBER = r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)"
NAMED = re.compile(
    rf"(?i)([a-z][\w/]{{0,60}})['\"]?\s{{0,4}}[:=]?\s{{0,4}}['\"]?({NUMBER})(?![\w.])"
)
LOGGED = re.compile(
    r"\{\s*['\"][^{}\n]{0,2000}\}"
)  # transformers prints each entry as a dictionary
BAR = re.compile(
    r"\s*\d{1,3}%\|[^|\n]{0,300}\|\s*(\d+)/(\d+) \["
)  # Trainer's has no name before it
STEPS, TRAINED = ("step", "global_step", "current_steps", "iter", "iteration"), ("loss", "reward")
COLUMNS = {"training loss": "loss", "validation loss": "eval_loss"}  # of a notebook's table
ERROR = re.compile(
    r"(?m)^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)(?:: .*)?)$"
)
Entry = dict[str, Any]


def is_output(path: Path) -> bool:
    """Whether a file may be what a program printed, by its name."""
    return path.suffix.lower() in TEXTS


def printed(path: Path) -> str:
    """The text of a file that may be the output of a program; else empty. Without errors."""
    most = MOST_TEXT if path.suffix.lower() == ".txt" else MOST_LOG
    with suppress(OSError, AdviseError):
        if is_output(path) and path.is_file() and path.stat().st_size <= most:
            text = read_at_most(path, most).decode("utf-8", "replace")
            return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text.replace("\r", "\n"))
    return ""


def printed_state(text: str) -> tuple[dict[str, Any], list[str]]:
    """(the like of a trainer_state.json, what it leaves open); an empty one if no loss is there."""
    log, planned, at, counted = list[Entry](), 0, 0, False
    bar: int | None = None
    columns: list[str] = []
    for line in text.splitlines():
        if here := BAR.match(line):
            done, total = map(int, here.groups())
            planned = planned or total  # the first is that of training; later ones evaluate
            bar = done if total == planned else bar
        columns, entries = _entries(line, columns)
        for entry in entries:
            is_trained = any(name in entry for name in TRAINED)
            said = next((int(entry[name]) for name in STEPS if name in entry), bar)
            counted |= said is None
            # A bar is drawn less often than a step is made: no two entries are of one step.
            at = max(said or 0, at + 1) if is_trained else max(said or 0, at)
            log.append({**entry, "step": at})
    if not log:
        return {}, []
    epochs = [float(one["epoch"]) for one in log if "epoch" in one]
    state = {"log_history": log, "global_step": 0 if counted else at, "max_steps": planned}
    notes = ["the text names no steps: each entry of its log counts as one"] if counted else []
    if error := last_error(text):
        notes.append(f"the run ended with an error: {error}")
    return {**state, "epoch": epochs[-1] if epochs else None}, notes


def _entries(line: str, columns: list[str]) -> tuple[list[str], list[Entry]]:
    """(the columns of the table that goes on here, what a line logs)."""
    cells = [one.strip() for one in re.split(r"[\t|]", line.strip().strip("|"))]
    names = [one.lower() for one in cells]
    if names[0] in STEPS and any(name in COLUMNS for name in names):
        return [COLUMNS.get(name, name) for name in names], []
    if columns and (not line.strip("|-: \t") or len(cells) == len(columns)):
        pairs = zip(columns, cells, strict=False)
        row = {name: one for name, one in pairs if re.fullmatch(NUMBER, one)}
        return columns, [row] if len(row) > 1 else []
    found = [dict(NAMED.findall(one[0])) for one in LOGGED.finditer(line)]
    if not found and re.search(r"(?i)\bloss\b", line[:TAIL]):
        words = {name.lower(): value for name, value in NAMED.findall(line[:TAIL])}
        found = [words] if any(name in words for name in STEPS) else []
    return [], [one for one in found if {"loss", "eval_loss", "reward"} & one.keys()]


def last_error(text: str) -> str:
    """The line of the exception that a program ended with; empty if it ended otherwise."""
    *_, last = [None, *ERROR.finditer(text)]
    if last is None or len(text.rstrip()) - last.end() > TAIL:
        return ""
    is_alone = not text[: last.start()].strip()
    return last[1][:MOST_ERROR] if is_alone or "Traceback (most recent" in text else ""
