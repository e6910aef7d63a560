"""What is looked for in the rows of data: one module each, found by listing this folder.

Each module has a class `Seen`. It sees every row once, and keeps no more than counts, hashes and a
few rows of it, so that a very large file costs no more memory than a small one.
"""

from __future__ import annotations

import pkgutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

from advisor.data.example import Example
from advisor.data.examples import rows_words
from advisor.ground.types import Finding

T = TypeVar("T")
SHOWN_ROWS = 20
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What is known of the data before the first row."""

    kind: str
    format: str = ""
    # look for rows that are nearly the same and for personal numbers, too: about 10 microseconds a
    # row
    thorough: bool = False
    evaluation: Any = None  # rows that must not stand in the data: a file, and a column for a role
    seq_len: int | None = None
    exact: bool = False  # the tokens of every row are counted


@dataclass(slots=True)
class Row:
    """One row as the checks see it."""

    example: Example
    text: str  # all of it
    plain: bytes  # the text normalised; empty unless the check is thorough
    request_tokens: int
    tokens: int

    @property
    def number(self) -> int:
        return self.example.row


class Check:
    """One thing that is looked for."""

    place: ClassVar[int]  # of its findings among those of the others
    # id of a finding -> how bad it is and what is said of {rows} or of a {count}, for findings
    # that need no more than a tally
    says: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, about: About) -> None:
        self.about = about
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)  # by the id of the finding
        self.counts: Counter[str] = Counter()  # of what is no finding

    def see(self, row: Row) -> None:
        """Note what the row shows."""

    def findings(self, rows: int) -> list[Finding]:
        """What to say, after so many rows."""
        found: list[Finding] = []
        for name, (severity, text) in self.says.items():
            tally = self.tallies[name]
            said = text.format(rows=tally.in_words, count=f"{tally.count:,}")
            found += tally.findings(name, severity, said)
        return found

    def measures(self) -> dict[str, Any]:
        """What was counted and is no finding, as JSON types."""
        return {}


def checks(about: About) -> list[Check]:
    """Every check of this folder, in the order of their findings."""
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    classes: list[type[Check]] = [import_module(name).Seen for name in names]
    return [one(about) for one in sorted(classes, key=lambda one: one.place)]


def finding(
    id: str,
    severity: str,
    text: str,
    count: int = 0,
    rows: list[int] | None = None,
    blocks: tuple[str, ...] = (),
) -> Finding:
    """A finding; its rows are the first ones of those given."""
    assert severity in SEVERITIES
    shown = tuple(rows or ())[:SHOWN_ROWS]
    return Finding(id=id, severity=severity, text=text, count=count, rows=shown, blocks=blocks)  # type: ignore[arg-type]


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings in the order of their severity."""
    return tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity)))


@dataclass(slots=True)
class Tally:
    """How many rows show something, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)

    @property
    def in_words(self) -> str:
        """'3 rows'."""
        return f"{self.count:,} row{'' if self.count == 1 else 's'}"

    def findings(
        self, id: str, severity: str, text: str, blocks: tuple[str, ...] = ()
    ) -> list[Finding]:
        """The finding, with its rows named behind the text; none where no row shows it."""
        if not self.count:
            return []
        shown = f"{text} ({rows_words(self.rows, self.count)})"
        return [finding(id, severity, shown, self.count, self.rows, blocks)]


@dataclass(slots=True)
class Sample(Generic[T]):
    """A random sample of flat size: every row has the same chance to be in it, the same rows every
    time.
    """

    size: int
    state: int = 1
    seen: int = 0
    kept: list[T] = field(default_factory=list)

    def offer(self, take: Callable[[], T]) -> None:
        """Count a row, and take what stands for it into the sample or not."""
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(take())
            return
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        place = (self.state >> 24) % self.seen
        if place < self.size:
            self.kept[place] = take()
