"""Sizes, durations and money as people read them, from bytes, seconds and US dollars."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

KIB = 2**10
MIB = 2**20
GIB = 2**30

WORTH_NAMING = 0.01  # of a whole time, a part that not every run has


def gib(size_bytes: float) -> float:
    """Bytes as GiB (2**30)."""
    return size_bytes / GIB


def format_gib(size_bytes: float) -> str:
    """Bytes as text with three significant figures: '14.2 GiB', '0.47 GiB', '138 GiB'."""
    value = gib(size_bytes)
    if value >= 0.01 or size_bytes == 0:
        return f"{value:,.{_decimals(value)}f} GiB"
    return f"{size_bytes / MIB:.1f} MiB"


def shown_bytes(size_bytes: float) -> float:
    """The bytes that `format_gib` shows: what must be added up where a sum is shown beside it."""
    value = gib(size_bytes)
    return round(value, _decimals(value)) * GIB


def _decimals(size_gib: float) -> int:
    return 0 if size_gib >= 100 else 1 if size_gib >= 1 else 2


def format_duration(duration_s: float) -> str:
    """Seconds as the two largest units that matter: '45 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if duration_s < 1:
        return "under 1 s"
    if duration_s < 90:
        return f"{duration_s:.0f} s"
    minutes = round(duration_s / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_usd(amount_usd: float) -> str:
    """Dollars as text: '$0.60', '$14', '$1,240'. Below a cent says so instead of printing $0.00."""
    if 0 < amount_usd < 0.01:
        return "under $0.01"
    return f"${amount_usd:.2f}" if amount_usd < 10 else f"${amount_usd:,.0f}"


def about_usd(amount_usd: float) -> str:
    """Estimated dollars in a sentence: 'about $0.60', 'under $0.01'."""
    text = format_usd(amount_usd)
    return text if text.startswith("under") else f"about {text}"


def format_count(count: float) -> str:
    """A count as people write it for parameters and tokens: '135M', '8.19B', '1,204'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= 0.9995 * size:  # 999.9 of a unit are one of the next
            return f"{count / size:.3g}{letter}"
    return f"{count:,.0f}"


TIME_PARTS = {  # of a whole time, in the order of a run
    "load_s": "load",
    "prepare_s": "preparing rows",
    "before_s": "measuring before",
    "train_s": "training",
    "evaluate_s": "held-out loss",
    "save_s": "checkpoints",
    "after_s": "after",
}
IN_EVERY_RUN = ("load_s", "before_s", "train_s", "after_s")


def format_whole_time(times: Mapping[str, float]) -> str:
    """An expected time by its parts: 'about 2 h 10 min in all (load 1 min, ...)'."""
    whole_s = sum(times.get(part, 0.0) for part in TIME_PARTS)
    return f"about {format_duration(whole_s)} in all ({format_parts(times)})"


def format_parts(times: Mapping[str, float]) -> str:
    """The parts, short ones left out unless every run has them: 'load 1 min, training 2 h'."""
    parts = {part: times.get(part, 0.0) for part in TIME_PARTS}
    least_s = max(1.0, WORTH_NAMING * sum(parts.values()))
    return ", ".join(
        f"{TIME_PARTS[part]} {format_duration(seconds)}"
        for part, seconds in parts.items()
        if part in IN_EVERY_RUN or seconds >= least_s
    )


def is_finite(number: float) -> bool:
    """Whether one can compute with it: no infinity, no NaN, no integer beyond a float's range."""
    try:
        return isfinite(number)
    except OverflowError:
        return False
