"""Money for a duration."""

from __future__ import annotations

from advisor.ground.types import GpuSpec


def cost_estimate(
    duration_s: float | None, gpus: int, gpu: GpuSpec | None
) -> tuple[float | None, str]:
    """(US dollars, where the price is from).

    None where the duration or the card's price is not known.
    """
    if gpu is None or gpu.price_usd_per_h is None:
        return None, "no rental price is known for this GPU" if gpu is not None else ""
    note = (
        f"{gpu.name} at"
        f" ${gpu.price_usd_per_h:.2f}/h{f' ({gpu.price_note})' if gpu.price_note else ''}"
    )
    if duration_s is None:
        return None, note
    return duration_s / 3600 * max(1, gpus) * gpu.price_usd_per_h, note
