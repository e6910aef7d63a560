"""A limit on money or time that is not enough for all of the data: the part that it is enough for.

A stage then ends after so many optimizer steps (plan key `max_steps`). Rows are drawn at random, so
that a part of the steps reads a part of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.advice.types import Chosen, Part, StageSettings
from advisor.estimate.types import Estimate
from advisor.ground.units import about_usd, format_duration, format_usd
from advisor.plan.model import Stage
from advisor.ruleset.phrases import inside_sentence

# Of a limit, what is planned with: hours are estimates, and a run that ends early has no result.
PLANNED = 0.9


def part_of(
    stages: tuple[StageSettings, ...], cost: Estimate, facts: Mapping[str, Any]
) -> tuple[tuple[StageSettings, ...], Estimate]:
    """The stages and their cost with as many steps as the limits are enough for; unchanged if that
    is not known, or not a step of each.
    """
    share, limit, whole = _share(cost, facts)
    if share >= 1 or any(stage.steps is None or stage.duration_s is None for stage in stages):
        return stages, cost
    steps = [_round_down(share * PLANNED * (stage.steps or 0)) for stage in stages]
    if not all(steps):
        return stages, cost
    found, duration_s = [], 0.0
    for stage, most in zip(stages, steps, strict=True):
        of_all = most / (stage.steps or 1)
        duration_s += of_all * (stage.duration_s or 0.0)
        found.append(_ended(stage, most, of_all, limit, whole, facts.get("data_rows")))
    of_time = duration_s / (cost.duration_s or duration_s)
    times = None if cost.times is None else cost.times.with_training(duration_s)
    usd = None if cost.cost_usd is None else of_time * cost.cost_usd
    return tuple(found), replace(cost, duration_s=duration_s, times=times, cost_usd=usd)


def _share(cost: Estimate, facts: Mapping[str, Any]) -> tuple[float, str, str]:
    """(the share of the training that the tightest limit is enough for, that limit, what all of it
    takes), in words.
    """
    usd, hours = facts.get("budget_usd"), facts.get("budget_hours")
    found = [(1.0, "", "")]
    if usd is not None and cost.cost_usd:
        found.append((usd / cost.cost_usd, format_usd(float(usd)), about_usd(cost.cost_usd)))
    if hours is not None and cost.duration_s:
        limit_s = 3600 * float(hours)
        about = f"about {format_duration(cost.duration_s)}"
        found.append((limit_s / cost.duration_s, format_duration(limit_s), about))
    return min(found)


def _ended(
    stage: StageSettings, most: int, of_all: float, limit: str, whole: str, rows: float | None
) -> StageSettings:
    """The stage that ends after so many steps, with why."""
    epochs = stage.settings.get("epochs")
    passes = of_all * (Stage.epochs if epochs is None else float(epochs.value))
    read, text = None, f"about {of_all:.1%} of your data"
    if passes >= 1:
        text = f"{passes:.2g} passes over your data instead of {epochs.value if epochs else 1:g}"
    elif rows:
        held = stage.settings.get("holdout")
        trained = rows * (1 - float(Stage.holdout if held is None else held.value))
        read = max(1, _round_down(passes * trained))
        text = f"about {read:,} of your {int(rows):,} rows"
    because = f"{limit} is enough for about so many of {stage.steps:,} steps: {text}"
    settings = {**stage.settings, "max_steps": Chosen(value=most, because=because)}
    if epochs is not None:
        ended = f"max_steps ends it earlier; otherwise: {inside_sentence(epochs.because)}"
        settings["epochs"] = replace(epochs, because=ended)
    part = Part(limit=limit, whole=whole, share=of_all, text=text, rows=read)
    return replace(stage, settings=settings, part=part)


def _round_down(number: float) -> int:
    """The number with two digits: no estimate knows more."""
    if number < 1:
        return 0
    digits = max(0, math.floor(math.log10(number)) - 1)
    return int(number // 10**digits * 10**digits)
