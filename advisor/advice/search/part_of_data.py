"""The part of the data that a limit on money or time is enough for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from advisor.advice.types import Chosen, Fitted, FittedStage, PartOfData
from advisor.estimate.types import Estimate
from advisor.ground.units import about_usd, format_duration, format_usd
from advisor.ruleset.phrases import inside_sentence

# Of a limit, what is planned with: hours are estimates, and a run that ends early has no result.
PLANNED = 0.9


def on_part_of_data(found: Fitted, facts: Mapping[str, Any]) -> Fitted:
    """The stages with as many optimizer steps as the limits are enough for (plan key `max_steps`);
    unchanged if that is not known, or not a step of each. Rows are drawn at random.
    """
    (stages, cost), (share, limit, whole) = found, _tightest_limit(found.cost, facts)
    if share >= 1 or any(None in (one.cost.steps, one.cost.duration_s) for one in stages):
        return found
    first = sum((one.cost.duration_s or 0.0) / (one.cost.steps or 1) for one in stages)
    spare = share * PLANNED * (whole_s := cost.duration_s or 0.0) - first
    if spare < 0:
        return found
    of_others = spare / (whole_s - first)  # of each stage's steps but the first
    steps = [_round_down(1 + of_others * ((stage.cost.steps or 1) - 1)) for stage in stages]
    ended, duration_s = [], 0.0
    for stage, most in zip(stages, steps, strict=True):
        duration_s += most / (stage.cost.steps or 1) * (stage.cost.duration_s or 0.0)
        ended.append(_ended_stage(stage, most, (limit, whole), facts.get("data_rows")))
    of_time = duration_s / whole_s
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
    fitted: FittedStage, most: int, words: tuple[str, str], rows: float | None
) -> FittedStage:
    limit, whole = words
    of_all = most / (fitted.cost.steps or 1)
    epochs = fitted.reasons.get("epochs")
    passes = of_all * fitted.stage.epochs
    read, text = None, f"about {of_all:.1%} of your data"
    if passes >= 1:
        text = f"{passes:.2g} passes over your data instead of {fitted.stage.epochs:g}"
    elif rows:
        read = max(1, _round_down(passes * rows * (1 - fitted.stage.holdout)))
        text = f"about {read:,} of your {int(rows):,} rows"
    because = f"{limit} is enough for about so many of {fitted.cost.steps:,} steps: {text}"
    reasons = {**fitted.reasons, "max_steps": Chosen(value=most, because=because)}
    if epochs is not None:
        ended = f"max_steps ends it earlier; otherwise: {inside_sentence(epochs.because)}"
        reasons["epochs"] = replace(epochs, because=ended)
    part = PartOfData(limit=limit, whole=whole, share=of_all, text=text, rows=read)
    stage = replace(fitted.stage, max_steps=most)
    return replace(fitted, stage=stage, reasons=reasons, part=part)


def _round_down(number: float) -> int:
    """The number with two digits: no estimate knows more."""
    if number < 1:
        return 0
    digits = max(0, math.floor(math.log10(number)) - 1)
    return int(number // 10**digits * 10**digits)
