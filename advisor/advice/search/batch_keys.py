"""The keys of a batch that was tried, each with what is true of its value."""

from __future__ import annotations

from typing import Any

from advisor.advice.search.micro_batches import HARDLY_FASTER, Found, Trial
from advisor.advice.types import Chosen
from advisor.ground.units import format_gib
from advisor.ruleset.phrases import inside_sentence


def batch_values(trial: Trial) -> dict[str, Any]:
    """The plan keys of a trial."""
    return {
        "micro_batch_size": trial.micro,
        "grad_accum": trial.grad_accum,
        "gradient_checkpointing": trial.recompute,
    }


def batch_settings(
    found: Found, batch: Chosen, no_recompute: str, *, most: int, packed: bool
) -> dict[str, Chosen]:
    """Keys of the batch, each with what is true of the value that was chosen.

    Args:
        no_recompute: Why nothing may be recomputed, or an empty string.
        most: The most rows at once that were tried.
        packed: The batch counts sequences of several rows.
    """
    values = batch_values(found.trial)
    because = {
        "micro_batch_size": _micro_because(found, most),
        "grad_accum": batch.because if packed else _accumulation_because(found.trial, batch),
        "gradient_checkpointing": _recompute_because(found, no_recompute),
    }
    rules = {"grad_accum": batch.rule}
    return {
        key: Chosen(value=value, because=because[key], rule=rules.get(key))
        for key, value in values.items()
    }


def batch_of_task(batch: Chosen, micro: int, devices: int, *, smallest: int) -> dict[str, Chosen]:
    """The keys of the batch of one task, whose rows need not be as many as the stage's.

    Args:
        smallest: The smallest micro-batch that the methods of the stage accept.
    """
    fewer = max(smallest, min(micro, int(batch.value) // devices))
    accum = max(1, round(int(batch.value) / (fewer * devices)))
    rows = fewer * accum * devices
    because = f"{rows} row{'' if rows == 1 else 's'} a step: {inside_sentence(batch.because)}"
    return {
        "micro_batch_size": Chosen(value=fewer, because=because),
        "grad_accum": Chosen(value=accum, because=because, rule=batch.rule),
    }


def _micro_because(found: Found, most: int) -> str:
    trial, fits = found.trial, found.cost.fits
    if fits == "unknown":
        return (
            "the smallest: what fits is not known"
            if trial.micro == 1
            else "a usual number: what fits is not known"
        )
    if fits in ("may_fit", "too_big"):
        even = "may not fit" if fits == "may_fit" else "does not fit"
        return f"the smallest: even this {even}" if trial.micro == 1 else even
    if trial.grad_accum == 1:
        return "the whole batch at once"
    if found.is_largest:
        recomputing = "" if trial.recompute else " without recomputing"
        return f"the largest that leaves {format_gib(found.free_bytes)} free{recomputing}"
    if trial.micro == most:
        return "as many rows as are tried at once"
    return (
        "more rows at once would take memory and save less than"
        f" {HARDLY_FASTER - 1:.0%} of the time"
    )


def _accumulation_because(trial: Trial, batch: Chosen) -> str:
    per_step = trial.micro * trial.grad_accum * trial.cards
    of_cards = f" on {trial.cards} GPUs" if trial.cards > 1 else ""
    rows = f"{per_step} row{'' if per_step == 1 else 's'} a step{of_cards}"
    if per_step != trial.effective:
        return f"{rows}: {trial.effective} as nearly as it divides"
    return f"{rows}: {inside_sentence(batch.because)}"


def _recompute_because(found: Found, no_recompute: str) -> str:
    fits = found.cost.fits
    if found.recompute_saves_memory_only:
        return (
            f"recomputes activations to save memory, less than {HARDLY_FASTER - 1:.0%} slower here"
        )
    if found.trial.recompute:
        unsure = "; what fits is not known" if fits == "unknown" else ""
        return f"recomputes activations to save memory, about a quarter slower{unsure}"
    if no_recompute:
        return no_recompute
    if fits == "unknown":
        return "faster; what fits is not known"
    return (
        "recomputing would not make it fit"
        if fits in ("may_fit", "too_big")
        else "enough memory without recomputing"
    )
