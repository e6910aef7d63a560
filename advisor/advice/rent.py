"""Which card to rent, where a limit was stated and no card: the cheapest that keep the limits."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.flips import one_card
from advisor.advice.types import Rent
from advisor.ground.types import GpuSpec
from advisor.methods.composition import Composition

SHOWN = 3
COUNTS = (1, 2, 4, 8)  # of one machine


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
            limit_usd=float(usd) if usd else None,
            limit_s=float(hours) * 3600 if hours else None,
        )
