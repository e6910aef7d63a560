"""Advice on a terminal: wraps, never crops, and needs no colour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.advice.types import Advice, Candidate
from advisor.ground.terminal import shown
from advisor.render.answer.page import LABEL, LINES, Page, first_screen, page_of
from advisor.render.answer.rivals import canonical, named_methods
from advisor.render.answer.why import answer_words, reason_items
from advisor.render.blocks import Block, Item, Items, PageTable, Paragraph
from advisor.render.words import meaning_of, memory_words, without_flags

Words = Callable[[str], str]
STYLES = {"plain": "", "strong": "bold", "quiet": "dim", "warning": "yellow"}
WIDE_TABLE = 100  # columns from which on a table is one
MENU_LINES = 9  # of the wizard's menu on a small screen, and of what keeps a plan from being run
# For terminals and files that cannot hold the sign itself; what has no counterpart is shown by its
# code point.
ASCII = str.maketrans({
    "★": "*", "☆": ".", "×": "x", "·": "-", "–": "-", "—": "-", "≈": "~", "→": "->", "“": '"',
    "”": '"', "’": "'", "…": "...", "±": "+-", "█": "#", "▏": "|", "⏎": "\\n",
})  # fmt: skip

# Where the rest of the answer is, by where the first screen is read.
WHOLE = {
    "shell": "the same command with --why",
    "menu": "in the menu",
    "run": "`advise` with the same answers and --why",
}


def print_advice(
    advice: Advice,
    console: Console,
    *,
    plan_path: str | None = None,
    read_in: Literal["shell", "menu", "run"] = "shell",
) -> None:
    """Print the first screen: what to do, why, what it needs, what could change it, and the next
    command last.

    Args:
        plan_path: The launch file, if one was written: the next command runs it.
        read_in: Where it is read. Where it is run now, or a menu follows, there is no next command.
    """
    with_steps = read_in == "shell" or not advice.fits or not advice.recommendation.stages
    first = first_screen(
        advice,
        plan_path=plan_path,
        columns=console.width,
        lines=min(LINES, console.height - MENU_LINES) if read_in == "menu" else LINES,
        with_steps=with_steps,
    )
    words = without_flags if read_in == "menu" else str
    _put(console, words(first.answer), "bold")
    console.print()
    for label, items in first.labelled.items():
        _print_labelled(label, items, console, words)
    console.print()
    if with_steps:
        for step in first.steps:
            _put(console, step.text)
            _print_commands(step.commands, console, "  ")
    more = first.more_warnings
    warnings = f"{more} more warning{'s' if more > 1 else ''}, reasons" if more else "All reasons"
    _put(console, f"{warnings}, sources and other methods: {WHOLE[read_in]}", "dim")


def print_whole_answer(
    advice: Advice, console: Console, *, plan_path: str | None = None, words: Words = str
) -> None:
    """Print everything that is said of an answer, the next steps last."""
    print_page(page_of(advice, plan_path=plan_path), console, words=words)


def _print_labelled(name: str, items: Sequence[Item], console: Console, words: Words) -> None:
    bullet = "- " if len(items) > 1 else ""
    for place, item in enumerate(items):
        label = f"{'' if place else name:<{LABEL}}"
        _put(console, words(item.text), STYLES[item.tone], lead=f"{label}{bullet}")


def _print_commands(commands: Iterable[str], console: Console, lead: str) -> None:
    for command in commands:
        console.print(rich_text(f"{lead}{command}", console, "bold"), soft_wrap=True)


def print_page(page: Page, console: Console, *, words: Words = str) -> None:
    """Print the answer and every section.

    Args:
        words: What a text is for those who read it here; default: as it is.
    """
    _put(console, words(page.first.answer), "bold")
    for section in page.sections:
        _print_title(console, section.title)
        for block in section.blocks:
            _print_block(block, console, words)


def print_candidate(
    candidate: Candidate,
    console: Console,
    *,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Print a candidate's reasons and numbers, and what the guide says of its `methods`."""
    _print_title(console, f"{candidate.composition}: {candidate.verdict_words}")
    items = reason_items(candidate.because)
    if candidate.estimate.memory is not None:
        items.append(Item(text=f"Memory: {memory_words(candidate)}, estimated"))
    guide = {canonical(method_id): method for method_id, method in (methods or {}).items()}
    for name in named_methods(candidate.composition):
        said = guide.get(name, {})
        sides = (("for it", said.get("pros")), ("against it", said.get("cons")))
        told = "; ".join(f"{label}: {answer_words(side)}" for label, side in sides if side)
        detail = f"the guide: {told}" if told else ""
        items.append(Item(text=f"{name}: {meaning_of(name)}", detail=detail))
    _print_block(Items(items=tuple(items)), console)
    console.print()


def _print_title(console: Console, title: str) -> None:
    console.print()
    console.print(rich_text(title, console, "bold underline"))


def _print_block(block: Block, console: Console, words: Words = str) -> None:
    if isinstance(block, Paragraph):
        _put(console, words(block.text), STYLES[block.tone], lead="  ")
    elif isinstance(block, PageTable):
        _print_table(block, console)
    else:
        for item in block.items:
            lead = "  ! " if item.tone == "warning" else "  - "
            _put(console, words(item.text), STYLES[item.tone], lead=lead)
            if item.detail:
                _put(console, words(item.detail), "dim", lead="    ")
            _print_commands(item.commands, console, "      ")


def _put(console: Console, text: str, style: str = "", *, lead: str = "") -> None:
    lines = rich_text(text, console, style).wrap(console, max(8, console.width - len(lead)))
    for place, line in enumerate(lines):
        line.rstrip()
        start = " " * len(lead) if place else lead
        console.print(start, line, sep="", markup=False, highlight=False, soft_wrap=True)


def _print_table(block: PageTable, console: Console) -> None:
    if console.width < WIDE_TABLE:  # the last column would be too narrow: one paragraph a row
        for place, (name, *others, last) in enumerate(block.rows):
            beside = zip(block.columns[1:], others, strict=False)
            said = ", ".join(f"{column}: {cell}" for column, cell in beside)
            lead = "  > " if place in block.chosen else "  - "
            _put(console, f"{name} ({said}): {last}", lead=lead)
        return
    grid = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False,
        header_style="bold",
    )  # fmt: skip
    grid.add_column("", width=1, no_wrap=True)
    for column in block.columns:
        # The widest fixed cell is five stars; every other column folds, since an ellipsis would
        # lose text.
        fixed = column in block.fixed
        least = 5 if fixed else 8
        grid.add_column(rich_text(column, console), no_wrap=fixed, min_width=least, overflow="fold")
    for place, row in enumerate(block.rows):
        mark, style = (">", "bold") if place in block.chosen else (" ", None)
        grid.add_row(mark, *(rich_text(cell, console) for cell in row), style=style)
    console.print(grid)


def rich_text(text: str, console: Console, style: str = "") -> Text:
    """Text without markup, so that brackets in names stay what they are."""
    return Text(plain(text, console), style=style, overflow="fold")


def plain(text: str, console: Console) -> str:
    """The text in signs that the console can encode, and none that move its cursor."""
    encoding = console.encoding or "utf-8"
    if not encoding.lower().replace("-", "").startswith("utf"):
        text = text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return shown(text.replace("\t", "    "))
