"""Training and held-out rows: rows that say or ask the same stay on one side, and the split depends
on content and seed alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Comparable(Protocol):
    """What the split reads of a row."""

    @property
    def number(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=Comparable)
FEWEST_GROUPS = 5  # below this no row is taken from training for a share that rounds to nothing


def split_rows(
    rows: Sequence[Item],
    *,
    share: float,
    seed: int,
    stratum: Callable[[Item], object] | None = None,
) -> tuple[list[Item], list[Item]]:
    """Training and held-out rows, each in the order of the file.

    Rows that share their question stay together if most questions differ. If most questions are the
    same (one prompt for all rows), only rows with the same text stay together.

    Args:
        share: The share of rows to hold out.
        seed: Another seed holds out other rows.
        stratum: Rows of one stratum (a class) are held out in their share, and at least one group
            of each is trained on.
    """
    groups = _groups(rows)
    strata: dict[object, list[str]] = defaultdict(list)
    for name, group in groups.items():
        strata[stratum(group[0]) if stratum is not None else None].append(name)
    chosen: set[str] = set()
    for names in strata.values():
        count = sum(len(groups[name]) for name in names)
        wanted = round(share * count)
        if share > 0 and wanted == 0 and len(names) >= FEWEST_GROUPS and stratum is None:
            wanted = 1
        taken, left = 0, len(names)
        for name in sorted(
            names, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest()
        ):
            if taken >= wanted:
                break
            if taken + len(groups[name]) <= wanted and left > 1:
                chosen.add(name)
                taken += len(groups[name])
                left -= 1
    train = [row for name, group in groups.items() if name not in chosen for row in group]
    held = [row for name in chosen for row in groups[name]]
    return _in_order(train, rows), _in_order(held, rows)


def _groups(rows: Sequence[Item]) -> dict[str, list[Item]]:
    """Rows that must stay together, under a name that does not depend on their order."""
    asked = {row.key for row in rows}
    by_question = len(asked) * 2 >= len(rows)
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for row in rows:
        same_text = top(f"text {row.text}")
        # Rows without a question have nothing in common but that.
        if by_question and row.key:
            one, other = sorted((same_text, top(f"question {row.key}")))
            above[other] = one
    groups: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        groups[top(f"text {row.text}")].append(row)
    return groups


def _in_order(chosen: list[Item], rows: Sequence[Item]) -> list[Item]:
    """By row number; pieces of one row, and the two answers of one pair, in their own order."""
    place = {id(row): index for index, row in enumerate(rows)}
    return sorted(chosen, key=lambda row: (row.number, place[id(row)]))
