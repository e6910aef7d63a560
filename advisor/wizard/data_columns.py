"""Which column is what: a row is shown, the guess is offered, and any other choice is a list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.data.recognition.naming import Candidate
from advisor.ground.terminal import one_line, shown, width_of
from advisor.wizard.prompts import Option, Ui

SHOWN_COLUMNS = 14
NAME_CHARS = 24
VALUE_CHARS = 46  # with the name and the space around it they fit into 80 columns
HELP_CHARS = 40
WAYS = 2  # other readings that are offered beside the first
# What a row may hold -> the roles of its columns and how the question for each ends.
HOLDS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "pair": ("A request and its answer", (("question", "the request"), ("answer", "the answer"))),
    "label": ("A text and its category", (("text", "the text"), ("label", "the category"))),
    "text": ("A text alone", (("text", "the text"),)),
    "chat": ("A whole conversation", (("messages", "the conversation"),)),
    "preference": (
        "A request, a better and a worse answer",
        (
            ("question", "the request"),
            ("chosen", "the better answer"),
            ("rejected", "the worse answer"),
        ),
    ),
}


def ask_columns(
    ui: Ui, path: str, row: Mapping[str, Any], ways: Sequence[Mapping[str, str]]
) -> dict[str, str] | None:
    """Role -> column, as the person says; None for another file.

    Args:
        row: One row, with nested columns beside its own.
        ways: How the file may be read, the likeliest first.
    """
    show_row(ui, path, row)
    while True:
        chosen = _offer(ui, ways) if ways else "columns"
        if chosen == "file":
            return None
        if isinstance(chosen, Mapping):
            return dict(chosen)
        picked = _pick(ui, row, ways[0] if ways else {}, can_go_back=bool(ways))
        if picked is not None:
            return picked
        if not ways:
            return None


def show_row(ui: Ui, path: str, row: Mapping[str, Any]) -> None:
    """One row, a column on a line, each value shortened."""
    cells = [(name, cell) for name, cell in row.items() if not isinstance(cell, Mapping)]
    ui.say(f"One row of {shown(path)}:")
    names = [one_line(name, NAME_CHARS) for name, _ in cells[:SHOWN_COLUMNS]]
    width = max(map(width_of, names), default=0)
    for name, (_, cell) in zip(names, cells, strict=False):
        ui.say(f"  {name}{' ' * (width - width_of(name))}  {value_words(cell, VALUE_CHARS)}")
    if len(cells) > SHOWN_COLUMNS:
        ui.say(f"  and {len(cells) - SHOWN_COLUMNS} more columns", tone="quiet")


def _offer(ui: Ui, ways: Sequence[Mapping[str, str]]) -> Any:
    """The guess as a question: the mapping that was chosen, "columns" or "file"."""
    options = [Option(value=ways[0], label="Yes")]
    options += [Option(value=way, label=f"No: {way_words(way)}") for way in ways[1 : 1 + WAYS]]
    options += [
        Option(value="columns", label="Choose the columns"),
        Option(value="file", label="Another file"),
        Option(value=ways[0], label="I don't know", help="the guess is taken"),
    ]
    return ui.choose(way_question(ways[0]), options, current=None)


def _pick(
    ui: Ui, row: Mapping[str, Any], guess: Mapping[str, str], *, can_go_back: bool
) -> dict[str, str] | None:
    """The columns chosen from lists, in which the guess is marked; None for back."""
    kinds = [Option(value=kind, label=label) for kind, (label, _) in HOLDS.items()]
    back = Option(value=None, label="Back" if can_go_back else "Another file")
    kind = ui.choose("What does each row hold?", [*kinds, back])
    if kind is None:
        return None
    chosen: dict[str, str] = {}
    for role, words in HOLDS[kind][1]:
        options = [
            Option(value=name, label=shown(name), help=value_words(cell, HELP_CHARS))
            for name, cell in row.items()
            if name not in chosen.values() and not isinstance(cell, Mapping)
        ]
        column = ui.choose(
            f"Which column is {words}?",
            [*options, Option(value=None, label="Back")],
            current=guess.get(role),
        )
        if column is None:
            return None
        chosen[role] = column
    if kind == "chat" and not isinstance(row[chosen["messages"]], list):
        return {"transcript": chosen["messages"]}
    return chosen


def way_question(way: Mapping[str, str]) -> str:
    """'Is Description the request and Agent Reply the answer?'"""
    parts = _parts(way)
    if len(parts) == 1:
        return f"Is {parts[0]}?"
    return f"Is {', '.join(parts[:-1])} and {parts[-1]}?"


def way_words(way: Mapping[str, str]) -> str:
    """'Subject is the request, Description the answer'."""
    (first, *rest) = _parts(way, verb=" is")
    return ", ".join([first, *(part.replace(" is the", " the", 1) for part in rest)])


ROLE_WORDS = {
    "question": "the request",
    "answer": "the answer",
    "text": "the text to learn from",
    "label": "the category",
    "context": "what it is about",
    "messages": "the conversation",
    "transcript": "the conversation",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "ranked": "the answers, the best one first",
    "ground_truth": "the right answer",
    "good": "the verdict",
    "system": "the instruction to the model",
    "history": "what was said before",
    "tools": "the functions",
}


def _parts(way: Mapping[str, str], *, verb: str = "") -> list[str]:
    return [
        f"{one_line(column, NAME_CHARS)}{verb} {ROLE_WORDS.get(role, role)}"
        for role, column in way.items()
    ]


def ways_of(candidates: Sequence[Candidate]) -> list[Mapping[str, str]]:
    """The mappings of readings."""
    return [candidate.mapping for candidate in candidates]


def value_words(cell: Any, columns: int) -> str:
    """A cell on one line, cut, safe on a terminal."""
    if cell is None:
        return "(empty)"
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return one_line(text, columns) or "(empty)"
