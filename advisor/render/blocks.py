"""The values a page is made of: paragraphs, lists and tables, which renderers print or mark up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One paragraph."""

    text: str
    tone: str = "plain"  # plain | strong | quiet | warning


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One entry of a list: the statement, and in a quieter voice where it comes from."""

    text: str
    detail: str = ""
    tone: str = "plain"
    commands: tuple[str, ...] = ()  # to paste: never wrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """A list of entries."""

    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table; `chosen` rows are part of the recommendation."""

    cells: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table. `fixed` columns keep their width, the others share what is left."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    fixed: tuple[bool, ...]


Block = Text | Items | Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


def listed(title: str, items: Iterable[Item]) -> Section:
    """A section that is one list; without blocks where there are no entries."""
    found = tuple(items)
    return Section(title=title, blocks=(Items(items=found),) if found else ())
