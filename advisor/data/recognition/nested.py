"""Columns inside columns: {"ticket": {"text": ...}} has the column ticket.text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from advisor.data.conversation import turn_keys

DEPTH = 4  # objects inside objects that are looked into


def reach(row: Mapping[str, Any], path: str) -> Any:
    """The cell of a column, where its name is a path; None where the row does not have it."""
    if path in row:
        return row[path]
    name, dot, rest = path.partition(".")
    while dot:
        inner = row.get(name)
        if isinstance(inner, Mapping):
            return reach(inner, rest)
        more, dot, rest = rest.partition(".")
        name = f"{name}.{more}"
    return None


def with_paths(row: Mapping[str, Any], paths: Iterable[str]) -> Mapping[str, Any]:
    """The row with the cells of nested columns beside its own."""
    found = {path: reach(row, path) for path in paths if path not in row}
    return {**row, **found} if found else row


def with_leaves(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every nested column beside its own."""
    return {**row, **dict(_leaves(row, "", DEPTH))}


def _leaves(row: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        path = f"{prefix}{name}"
        if isinstance(cell, Mapping) and depth and turn_keys(cell) is None:
            yield from _leaves(cell, f"{path}.", depth - 1)
        elif prefix:
            yield path, cell
