"""What a composition costs under another engine, where the bundled trainers cannot train it."""

from __future__ import annotations

from collections.abc import Callable

from advisor.advice.search.strategies import is_better
from advisor.advice.types import OFFLOADED, SHARDED, Fitted, Strategy
from advisor.methods.composition import Composition
from advisor.methods.engines import Engine, engines_for, strategies_of
from advisor.situation.types import Situation


def fitted_elsewhere(
    composition: Composition,
    situation: Situation,
    fit_under: Callable[[Strategy, Engine], Fitted],
    ours: Fitted | None,
    *,
    offload: bool,
) -> Fitted | None:
    """Under the first engine of the table that holds it, else what needs least.

    Args:
        ours: What the bundled trainers make of it; None: they are not taken on this device.
    """
    hardware, best = situation.hardware, ours
    found = engines_for(
        situation.model, hardware, chain=composition.chain,
        update=str(composition.update), quantization=composition.quantization,
    )  # fmt: skip
    for engine in found:
        ways = [Strategy(name) for name in strategies_of(engine, hardware)]
        if offload and SHARDED in ways:
            ways.append(OFFLOADED)
        for way in ways:
            there = fit_under(way, engine)
            if best is None or is_better(there.cost, best.cost):
                best = there
        if best is not None and best.cost.is_likely:
            break
    return best
