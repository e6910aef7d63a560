"""What an answer gives up so that something fits, step by step, before it is a smaller model; and
the part of the data that a limit on money or time is enough for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.advice.types import Chosen, Fitted, PartOfData, StageSettings
from advisor.estimate.types import Estimate
from advisor.ground.units import about_usd, format_duration, format_usd
from advisor.plan.model import Stage
from advisor.ruleset.phrases import inside_sentence

# What rules may set for each amount of memory (fact `memory_left`), the usual settings first.
MEMORY_LEFT = ("enough", "little", "least")
# Of a limit, what is planned with: hours are estimates, and a run that ends early has no result.
PLANNED = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Concessions:
    """What is given up so that something fits, if nothing does otherwise."""

    least_module: bool = False  # the smallest modules
    offload: bool = False  # what is sharded lies in the computer's memory, which is slower
    shorter: int = 0  # steps by which rows are shorter
    may_not_fit: bool = False  # what is too big by less than the estimate may be wrong is tried
    # Which schemes that break a limit on money or time may read a part of the data: none, modules,
    # all.
    part: str = ""


NO_CONCESSIONS = Concessions()
# Memory first gives way in what changes the result least: docs/architecture.md, "Nothing fits".
LADDER = (
    NO_CONCESSIONS,
    Concessions(least_module=True),
    Concessions(least_module=True, offload=True),
    Concessions(least_module=True, offload=True, shorter=1),
    Concessions(least_module=True, offload=True, shorter=2),
    Concessions(least_module=True, offload=True, shorter=2, may_not_fit=True),
)


def on_part_of_data(found: Fitted, facts: Mapping[str, Any]) -> Fitted:
    """The stages with as many optimizer steps as the limits are enough for (plan key `max_steps`);
    unchanged if that is not known, or not a step of each. Rows are drawn at random.
    """
    (stages, cost), (share, limit, whole) = found, _tightest_limit(found.cost, facts)
    if share >= 1 or any(stage.steps is None or stage.duration_s is None for stage in stages):
        return found
    steps = [_round_down(share * PLANNED * (stage.steps or 0)) for stage in stages]
    if not all(steps):
        return found
    ended, duration_s = [], 0.0
    for stage, most in zip(stages, steps, strict=True):
        duration_s += most / (stage.steps or 1) * (stage.duration_s or 0.0)
        ended.append(_ended_stage(stage, most, (limit, whole), facts.get("data_rows")))
    of_time = duration_s / (cost.duration_s or duration_s)
    times = None if cost.times is None else cost.times.with_training(duration_s)
    usd = None if cost.cost_usd is None else of_time * cost.cost_usd
    return Fitted(tuple(ended), replace(cost, duration_s=duration_s, times=times, cost_usd=usd))


def _tightest_limit(cost: Estimate, facts: Mapping[str, Any]) -> tuple[float, str, str]:
    """(the share that the tightest limit is enough for, the limit, the whole in words)."""
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    found = [(1.0, "", "")]
    if usd is not None and cost.cost_usd:
        found.append((usd / cost.cost_usd, format_usd(float(usd)), about_usd(cost.cost_usd)))
    if hours is not None and cost.duration_s:
        limit_s = 3600 * float(hours)
        about = f"about {format_duration(cost.duration_s)}"
        found.append((limit_s / cost.duration_s, format_duration(limit_s), about))
    return min(found)


def _ended_stage(
    stage: StageSettings, most: int, words: tuple[str, str], rows: float | None
) -> StageSettings:
    """The stage that ends after so many steps, with why."""
    limit, whole = words
    of_all = most / (stage.steps or 1)
    epochs, held = stage.settings.get("epochs"), stage.settings.get("holdout")
    passes = of_all * (Stage.epochs if epochs is None else float(epochs.value))
    read, text = None, f"about {of_all:.1%} of your data"
    if passes >= 1:
        text = f"{passes:.2g} passes over your data instead of {epochs.value if epochs else 1:g}"
    elif rows:
        trained = rows * (1 - float(Stage.holdout if held is None else held.value))
        read = max(1, _round_down(passes * trained))
        text = f"about {read:,} of your {int(rows):,} rows"
    because = f"{limit} is enough for about so many of {stage.steps:,} steps: {text}"
    settings = {**stage.settings, "max_steps": Chosen(value=most, because=because)}
    if epochs is not None:
        ended = f"max_steps ends it earlier; otherwise: {inside_sentence(epochs.because)}"
        settings["epochs"] = replace(epochs, because=ended)
    part = PartOfData(limit=limit, whole=whole, share=of_all, text=text, rows=read)
    return replace(stage, settings=settings, part=part)


def _round_down(number: float) -> int:
    """The number with two digits: no estimate knows more."""
    if number < 1:
        return 0
    digits = max(0, math.floor(math.log10(number)) - 1)
    return int(number // 10**digits * 10**digits)
