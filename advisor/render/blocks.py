"""The values a page is made of: paragraphs, lists and tables, which renderers print or mark up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct


class Paragraph(Struct, frozen=True, kw_only=True):
    """One paragraph."""

    text: str
    tone: str = "plain"  # plain | strong | quiet | warning; heading in a report


class Item(Struct, frozen=True, kw_only=True):
    """One entry of a list: the statement, and in a quieter voice where it comes from."""

    text: str
    detail: str = ""
    tone: str = "plain"
    commands: tuple[str, ...] = ()  # to paste: never wrapped


class Items(Struct, frozen=True, kw_only=True):
    """A list of entries."""

    items: tuple[Item, ...]


class PageTable(Struct, frozen=True, kw_only=True):
    """A table of a page."""

    columns: tuple[str, ...]
    rows: tuple[Sequence[str], ...]
    fixed: tuple[str, ...] = ()  # columns that keep their width; the others share what is left
    chosen: tuple[int, ...] = ()  # rows that are part of the recommendation


Block = Paragraph | Items | PageTable


class Section(Struct, frozen=True, kw_only=True):
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Any]  # each a Block; a report has lines to paste and charts besides


def listed(items: Iterable[str | Item]) -> tuple[Items, ...]:
    """A list as the blocks of a section; none without entries."""
    found = tuple(item if isinstance(item, Item) else Item(text=item) for item in items)
    return (Items(items=found),) if found else ()


def tabled(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[PageTable, ...]:
    """A table as the blocks of a section; none without rows."""
    found = tuple(rows)
    return (PageTable(columns=tuple(columns), rows=found),) if found else ()
