"""What is looked for in the rows of data: one module each, found by listing this folder.

Each module has a class of RowCheck. It sees every row once, and keeps no more than counts, hashes
and a few rows of it, so that a very large file costs no more memory than a small one.
"""

from __future__ import annotations

import pkgutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Struct, field

from advisor.data.example import Example
from advisor.data.examples import SHOWN_ROWS, Tally
from advisor.data.recognition.recognise import DataSet
from advisor.ground.types import DataFinding

T = TypeVar("T")
SEVERITIES = ("error", "warning", "note")


class Subject(Struct, kw_only=True):
    """The data that is checked."""

    kind: str
    format: str = ""
    # look for rows of similar wording, too: about 10 microseconds a row
    thorough: bool = False
    evaluation: DataSet | None = None  # rows that must not stand in the data
    seq_len: int | None = None
    exact: bool = False  # the tokens of every row are counted
    rows: int = 0  # seen so far


class SeenRow(Struct):
    """One row as the checks see it."""

    example: Example
    text: str  # all of it
    plain: bytes  # the text normalised
    request_tokens: int
    tokens: int

    @property
    def number(self) -> int:
        return self.example.row


class RowCheck:
    """One thing that is looked for."""

    place: ClassVar[int]  # of its findings among those of the others
    # id of a finding -> how bad it is and what is said of {rows} or of a {count}, for findings
    # that need no more than a tally
    says: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, about: Subject) -> None:
        self.about = about
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)  # by the id of the finding
        self.counts: Counter[str] = Counter()  # of what is no finding

    def see(self, row: SeenRow) -> None:
        """Note what the row shows."""

    def findings(self) -> Iterator[DataFinding]:
        """What to say, after the last row."""
        for name, (severity, text) in self.says.items():
            tally = self.tallies[name]
            said = text.format(rows=tally.in_words, count=f"{tally.count:,}")
            yield from findings_of(tally, name, severity, said)

    def measures(self) -> dict[str, Any]:
        """What was counted and is no finding, as JSON types."""
        return {}


def checks(about: Subject) -> list[RowCheck]:
    """Every check of this folder, in the order of their findings."""
    modules = [import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)]
    classes: list[type[RowCheck]] = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "see")
    ]
    return [one(about) for one in sorted(classes, key=lambda one: one.place)]


def finding(
    id: str, severity: str, text: str, seen: int | Tally = 0, blocks: tuple[str, ...] = ()
) -> DataFinding:
    """A finding about so many rows."""
    assert severity in SEVERITIES
    tally = Tally(seen) if isinstance(seen, int) else seen
    return DataFinding(
        id=id,
        severity=severity,  # type: ignore[arg-type]
        text=text,
        count=tally.count,
        rows=tuple(tally.rows[:SHOWN_ROWS]),
        blocks=blocks,
    )


def findings_of(
    tally: Tally, id: str, severity: str, text: str, blocks: tuple[str, ...] = ()
) -> Iterator[DataFinding]:
    """The finding with its rows named behind the text; none if no row shows it."""
    if tally.count:
        yield finding(id, severity, f"{text} ({tally.rows_in_words})", tally, blocks)


def worst_first(findings: Iterable[DataFinding]) -> tuple[DataFinding, ...]:
    """The findings in the order of their severity."""
    return tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity)))


class RandomSample(Struct, Generic[T]):
    """A random sample of fixed size: every row has the same chance, the same rows every time."""

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
