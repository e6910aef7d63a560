"""One row as the trainers see it: what is learned in colour, or between marks where there is no
colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advisor.render.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEARNED, READ = "bold green", "dim"
OPEN, CLOSE = "[[", "]]"


def print_row(shown: dict[str, Any], console: Console) -> None:
    """Print the row, what the colours or marks mean, and what is to be said about it."""
    coloured = console.color_system is not None and not console.no_color
    print_ = _printer(console)
    print_("")
    print_(
        f"Row {shown['row']} of {shown['path']}"
        + (f", as {shown['model']} sees it" if shown["model"] else ""),
        "bold",
    )
    if shown["left_out"]:
        print_(
            f"  This row is left out of the training, and counted: {shown['left_out']}", "yellow"
        )
    if shown["parts"]:
        print_(f"  chat template: {shown['template']}")
        print_(
            "  learned: in green and bold; the rest is only read"
            if coloured
            else f"  learned: between {OPEN} and {CLOSE}; the rest is only read"
        )
    for part in shown["parts"]:
        counts = (
            f" ({part['learned_tokens']:,} of {part['tokens']:,} tokens learned)"
            if part["tokens"] is not None
            else ""
        )
        print_("")
        print_(f"{part['title']}{counts}", "underline")
        console.print(stretches(part["stretches"], console, coloured=coloured), soft_wrap=True)
        if part.get("answer") is not None:
            print_(
                f"  the right answer, which the model's own is checked against: {part['answer']}"
            )
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


def _printer(console: Console) -> Any:
    from rich.text import Text

    return lambda text, style="": console.print(
        Text(plain(text, console), style=style, overflow="fold"), soft_wrap=True
    )


def row_json(shown: dict[str, Any]) -> dict[str, Any]:
    """The row as one JSON document."""
    return {"schema_version": 1, **shown}
