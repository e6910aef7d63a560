"""The keys of a batch that was tried, each with what is true of its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.advice.types import Chosen
from advisor.estimate.types import Fits
from advisor.ruleset.phrases import inside_sentence


def batch_values(trial: Mapping[str, Any]) -> dict[str, Any]:
    micro, cards = int(trial["micro"]), int(trial["cards"])
    return {
        "micro_batch_size": micro,
        "grad_accum": max(1, round(int(trial["effective"]) / (micro * cards))),
        "gradient_checkpointing": bool(trial["recompute"]),
    }


def batch_settings(
    trial: Mapping[str, Any],
    batch: Chosen,
    no_recompute: str,
    fits: Fits,
    *,
    most: int,
    packed: bool,
) -> dict[str, Chosen]:
    """Keys of the batch, each with what is true of the value that was chosen.

    Args:
        no_recompute: Why nothing may be recomputed, or an empty string.
        fits: What the estimate says of these settings.
        most: The most rows at once that were tried.
        packed: The batch counts sequences of several rows.
    """
    values = batch_values(trial)
    because = {
        "micro_batch_size": _micro_because(trial, values, fits, most),
        "grad_accum": (batch.because if packed else _accumulation_because(trial, values, batch)),
        "gradient_checkpointing": _recompute_because(trial, no_recompute, fits),
    }
    rules = {"grad_accum": batch.rule}
    return {
        key: Chosen(value=value, because=because[key], rule=rules.get(key))
        for key, value in values.items()
    }


def batch_of_task(batch: Chosen, micro: int, devices: int) -> dict[str, Chosen]:
    """The keys of the batch of one task, whose rows need not be as many as the stage's."""
    fewer = max(1, min(micro, int(batch.value) // devices))
    accum = max(1, round(int(batch.value) / (fewer * devices)))
    rows = fewer * accum * devices
    because = f"{rows} row{'' if rows == 1 else 's'} a step: {inside_sentence(batch.because)}"
    return {
        "micro_batch_size": Chosen(value=fewer, because=because),
        "grad_accum": Chosen(value=accum, because=because, rule=batch.rule),
    }


def _micro_because(
    trial: Mapping[str, Any], values: Mapping[str, Any], fits: Fits, most: int
) -> str:
    if fits == "unknown":
        return (
            "the smallest: what fits is not known"
            if trial["micro"] == 1
            else "a usual number: what fits is not known"
        )
    if fits == "too_big":
        return "the smallest: even this does not fit" if trial["micro"] == 1 else "does not fit"
    if values["grad_accum"] == 1:
        return "the whole batch at once"
    if trial["micro"] == most:
        return "as many rows as are tried at once"
    spare = " with room to spare" if fits == "fits" else ""
    return f"the largest that fits{spare}{'' if trial['recompute'] else ' without recomputing'}"


def _accumulation_because(
    trial: Mapping[str, Any], values: Mapping[str, Any], batch: Chosen
) -> str:
    micro, cards = int(trial["micro"]), int(trial["cards"])
    per_step = micro * int(values["grad_accum"]) * cards
    of_cards = f" on {cards} GPUs" if cards > 1 else ""
    rows = f"{per_step} row{'' if per_step == 1 else 's'} a step{of_cards}"
    if per_step != trial["effective"]:
        return f"{rows}: {trial['effective']} as nearly as it divides"
    return f"{rows}: {inside_sentence(batch.because)}"


def _recompute_because(trial: Mapping[str, Any], no_recompute: str, fits: Fits) -> str:
    if trial["recompute"]:
        unsure = "; what fits is not known" if fits == "unknown" else ""
        return f"recomputes activations to save memory, about a quarter slower{unsure}"
    if no_recompute:
        return no_recompute
    if fits == "unknown":
        return "faster; what fits is not known"
    return (
        "recomputing would not make it fit"
        if fits == "too_big"
        else "enough memory without recomputing"
    )
