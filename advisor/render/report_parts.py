"""Pieces of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.render.blocks import Item, Items, Row, Table
from advisor.render.html import block
from advisor.render.markup import text


def section(title: str, *parts: str) -> list[str]:
    """A section of the page; nothing where all its parts are empty."""
    kept = [part for part in parts if part]
    return ["<section>", f"<h2>{text(title)}</h2>", *kept, "</section>"] if kept else []


def items(lines: Iterable[str | Item]) -> str:
    """A list; \'\' without lines."""
    shown = tuple(line if isinstance(line, Item) else Item(text=line) for line in lines)
    return block(Items(items=shown)) if shown else ""


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; \'\' without rows."""
    listed = tuple(Row(cells=tuple(row)) for row in rows)
    return (
        block(Table(columns=tuple(columns), rows=listed, fixed=(False,) * len(columns)))
        if listed
        else ""
    )


def number(value: float | None) -> str:
    """Four significant digits; '' where it is not known."""
    return "" if value is None else f"{value:.4g}"


def interval_words(found: Sequence[float | None] | None) -> str:
    """'-2.2 to -1.8'; '' where it is not known."""
    low, high = found if found is not None and len(found) == 2 else (None, None)
    return f"{low:+.3g} to {high:+.3g}" if low is not None and high is not None else ""
