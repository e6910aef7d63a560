"""Which card to rent, where a limit was stated and no card: the cheapest that keep the limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.flips import one_card
from advisor.ground.types import GpuSpec
from advisor.methods.composition import Composition

SHOWN = 3
COUNTS = (1, 2, 4, 8)  # of one machine


class Rent(Struct, frozen=True, kw_only=True):
    """One way to rent: so many of a card, and what training all rows on them takes and costs."""

    card: GpuSpec
    count: int
    seconds: float  # the whole time, as everywhere
    low_s: float
    high_s: float
    usd: float  # for that time
    need_bytes: int  # of each card
    download_s: float  # of the model, once: not part of the time
    limit_usd: float | None
    limit_s: float | None

    @property
    def within(self) -> dict[str, bool]:
        """Whether it is expected to keep each limit."""
        return {
            "usd": self.limit_usd is None or self.usd <= self.limit_usd,
            "hours": self.limit_s is None or self.seconds <= self.limit_s,
        }

    @property
    def keeps_all(self) -> bool:
        return all(self.within.values())

    @property
    def surely(self) -> bool:
        """Whether it keeps the limits at the upper end of its time, too."""
        slower = self.high_s / self.seconds
        return replace(self, seconds=self.high_s, usd=self.usd * slower).keeps_all

    @property
    def excess(self) -> float:
        """The largest of what it needs, as a share of its limit."""
        shares = ((self.usd, self.limit_usd), (self.seconds, self.limit_s))
        return max((needed / limit for needed, limit in shares if limit), default=0.0)


def rentable(case: Case, composition: Composition) -> tuple[Rent, ...] | None:
    """At most three ways to rent for this composition, the cheapest first; None where a card was
    stated, is here, or nothing limits dollars or hours.

    Of each card it is the smallest count that keeps the limits. If none does, those that are
    nearest to them.
    """
    if not case.situation.rentals or not composition.chain:
        return None
    found = [_until_enough(_ways(case, composition, card)) for card in case.situation.rentals]
    # A time has a band: what keeps the limits at its upper end goes before what only may.
    kept: list[Rent] = []
    for is_enough in (attrgetter("surely"), attrgetter("keeps_all")):
        first = [next(filter(is_enough, ways), None) for ways in found]
        kept = sorted((way for way in first if way is not None), key=lambda way: way.usd)
        if len(kept) >= SHOWN:
            break
    if kept:
        return tuple(kept[:SHOWN])
    nearest = [min(ways, key=lambda way: way.excess) for ways in found if ways]
    return tuple(sorted(nearest, key=lambda way: way.excess)[:SHOWN])


def rents(
    case: Case, composition: Composition, others: Iterable[Composition]
) -> tuple[tuple[Rent, ...] | None, tuple[Composition, Rent] | None]:
    """Where to rent for a composition; and where none of it keeps the limits, the first of the
    others that is the same training with another scheme and does, with its card.
    """
    ways = rentable(case, composition)
    if not ways or any(way.keeps_all for way in ways):
        return ways, None
    bare = {"update": None, "quantization": None}
    alike = (one for one in others if replace(one, **bare) == replace(composition, **bare))
    found = ((other, rentable(case, other) or ()) for other in alike)
    return ways, next(((other, few[0]) for other, few in found if few and few[0].keeps_all), None)


def _until_enough(ways: Iterator[Rent]) -> list[Rent]:
    found = []
    for way in ways:
        found.append(way)
        if way.surely:
            break
    return found


def _ways(case: Case, composition: Composition, card: GpuSpec) -> Iterator[Rent]:
    """So many of a card, as far as that fits and its time is known."""
    usd, hours = case.facts.get("budget_usd"), case.facts.get("budget_hours")
    for count in COUNTS:
        if count > (card.rented_most or count):
            break
        one = one_card(card)
        there = replace(case.situation, hardware=replace(one, gpus=one.gpus * count))
        cost = Case.build(there, case.ruleset).cost_of(composition).cost
        if cost.fits != "fits" or cost.memory is None or not (cost.duration_s and cost.cost_usd):
            continue
        times, seconds = cost.times, cost.duration_s
        whole_s = seconds if times is None else times.total_s
        yield Rent(
            card=card,
            count=count,
            seconds=whole_s,
            low_s=seconds if times is None else times.low_s,
            high_s=seconds if times is None else times.high_s,
            usd=cost.cost_usd * whole_s / seconds,
            need_bytes=cost.memory.need_bytes,
            download_s=0.0 if times is None else times.download_s,
            limit_usd=float(usd) if usd else None,
            limit_s=float(hours) * 3600 if hours else None,
        )
