"""What a proof says, as values, and the few words that its parts share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from advisor.ruleset.model import Rule, Ruleset, Table
from advisor.ruleset.space import Region

SHOWN_BOXES = (
    5  # holes, ties and contradictions made general, for each table; the others are named only
)
MAX_CULPRITS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Hole:
    """Situations in which a table recommends nothing: no rule fires, or every outcome that one
    names is forbidden.
    """

    box: Region
    forbidding: tuple[Rule, ...]  # of one situation: what forbids there, the latest layer first
    by_policy: bool = (
        False  # something may fit, but rules that do not look at the estimates forbid every outcome
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clash:
    """Two rules of one layer (and tier) that fire together and say different things."""

    first: Rule
    second: Rule
    box: Region | None  # None: not made general, there were many
    key: str = ""  # of a setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """A rule without effect, and the rules that take it."""

    rule: Rule
    culprits: tuple[Rule, ...]
    key: str = ""  # of a setting that never takes effect


@dataclass(kw_only=True)
class TableProof:
    """What was proved of one table. Empty lists: nothing wrong."""

    table: Table
    rules: int
    cells: int = 0  # situations that differ for some rule
    sets: int = 0  # distinct sets of firing rules that stand for them
    holes: list[Hole] = field(default_factory=list)
    conflicts: list[Clash] = field(default_factory=list)
    contradictions: list[Clash] = field(default_factory=list)
    unreachable: list[Rule] = field(default_factory=list)
    never_wins: list[Idle] = field(default_factory=list)
    redundant: list[Idle] = field(default_factory=list)
    never_concluded: list[Any] = field(default_factory=list)
    unused_inputs: list[str] = field(default_factory=list)


def layer_of(ruleset: Ruleset, rule: Rule) -> int:
    return ("base", *ruleset.layers).index(rule.layer)


def same_value(one: Any, other: Any) -> bool:
    """Equal as a setting: true and 1 are two values."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def outcomes_of(rule: Rule, said: str) -> tuple[Any, ...]:
    """What a rule recommends or forbids."""
    named = rule.then[said]
    return tuple(named) if isinstance(named, list) else (named,)


def mask(bits: Iterable[int]) -> int:
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
