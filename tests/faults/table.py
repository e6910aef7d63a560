"""The table of a run of faults: each row one fault, and the summary that docs/reliability.md shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault, or many of one kind, and what came of it."""

    fault: str  # SIGKILL of both, torn checkpoint, fuzzed plan
    objective: str  # the trained plan, or what was fuzzed
    moment: str  # when it struck
    survived: bool
    lost_steps: int | None = None  # optimizer steps that had to be trained again; None: no training
    seconds: float = 0.0
    count: int = 1
    note: str = ""


@dataclass
class Line:
    """Rows of one kind, counted."""

    tried: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.tried += row.count
        self.survived += row.count if row.survived else 0
        if row.lost_steps is not None:
            self.lost.append(row.lost_steps)

    def cells(self) -> list[str]:
        lost = (
            f"{max(self.lost)} at most, {sum(self.lost) / len(self.lost):.1f} in the mean"
            if self.lost
            else ""
        )
        return [f"{self.tried:,}", f"{self.survived:,}", lost]


HEADER = ("fault", "where", "tried", "survived", "steps trained again")


def summary(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Lines of the table: each fault in each place, in the order in which they came, and the sum."""
    lines: dict[tuple[str, str], Line] = {}
    total = Line()
    for row in rows:
        lines.setdefault((row.fault, row.objective), Line()).add(row)
        total.add(row)
    told = [(fault, where, *line.cells()) for (fault, where), line in lines.items()]
    return [*told, ("all", "", *total.cells())]


def grouped(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The same, shorter: each fault with all its places in one line."""
    lines: dict[str, Line] = {}
    places: dict[str, list[str]] = {}
    total = Line()
    for row in rows:
        lines.setdefault(row.fault, Line()).add(row)
        if row.objective not in places.setdefault(row.fault, []):
            places[row.fault].append(row.objective)
        total.add(row)
    told = [(fault, ", ".join(places[fault]), *line.cells()) for fault, line in lines.items()]
    return [*told, ("all", "", *total.cells())]


def as_markdown(lines: Iterable[Sequence[str]]) -> str:
    """The table for docs/reliability.md."""
    rows = [HEADER, ("---",) * len(HEADER), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def as_text(lines: Iterable[Sequence[str]]) -> str:
    """The table for a terminal."""
    rows = [HEADER, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
