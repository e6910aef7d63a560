"""One row as the trainers see it: what is learned in colour, or between marks where there is no
colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advisor.render.terminal import plain, rich_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEARNED, READ = "bold green", "dim"
OPEN, CLOSE = "[[", "]]"


def print_row(shown: dict[str, Any], console: Console) -> None:
    """Print the row, what the colours or marks mean, and what is to be said about it."""
    coloured = console.color_system is not None and not console.no_color

    def print_(text: str, style: str = "") -> None:
        console.print(rich_text(text, console, style), soft_wrap=True)

    print_("")
    seen_by = f", as {shown['model']} sees it" if shown["model"] else ""
    print_(f"Row {shown['row']} of {shown['path']}{seen_by}", "bold")
    if shown["left_out"]:
        why = shown["left_out"]
        print_(f"  This row is left out of the training, and counted: {why}", "yellow")
    if shown["parts"]:
        print_(f"  chat template: {shown['template']}")
        how = "in green and bold" if coloured else f"between {OPEN} and {CLOSE}"
        print_(f"  learned: {how}; the rest is only read")
    for part in shown["parts"]:
        counts = ""
        if part["tokens"] is not None:
            counts = f" ({part['learned_tokens']:,} of {part['tokens']:,} tokens learned)"
        print_("")
        print_(f"{part['title']}{counts}", "underline")
        console.print(stretches(part["stretches"], console, coloured=coloured), soft_wrap=True)
        if part.get("answer") is not None:
            answer = part["answer"]
            print_(f"  the right answer, which the model's own is checked against: {answer}")
    if shown["notes"]:
        print_("")
    for note in shown["notes"]:
        print_(f"  note: {note}")


def stretches(parts: list[dict[str, Any]], console: Console, *, coloured: bool) -> Text:
    """The text of a sequence, its learned stretches coloured or marked."""
    from rich.text import Text

    text = Text(overflow="fold")
    for part in parts:
        said = plain(part["text"], console)
        if not part["learned"]:
            text.append(said, READ if coloured else "")
        elif coloured:
            text.append(said, LEARNED)
        else:
            text.append(f"{OPEN}{said}{CLOSE}")
    return text


def row_json(shown: dict[str, Any]) -> dict[str, Any]:
    """The row as one JSON document."""
    return {"schema_version": 1, **shown}
