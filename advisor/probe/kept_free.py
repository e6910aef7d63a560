"""How much memory advice leaves free: of a GPU for a display, of RAM for the system."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from advisor.ground.types import Gpu
from advisor.ground.units import GIB, format_gib
from advisor.probe.gpu_files import cuda_facts


def keep_free(gpu: Gpu, *, has_display: bool = False, has_battery: bool = False) -> Gpu:
    """The GPU with the memory that advice leaves free, and why.

    Args:
        gpu: The GPU, by its own name.
        has_display: It drives a display now.
        has_battery: The machine has a battery: a laptop.
    """
    rule = cuda_facts()["kept_free"]
    words = "|".join(re.escape(word) for word in rule["laptop_words"])
    if has_display:
        reason = "it drives a display"
    elif has_battery or re.search(rf"\b({words})\b", gpu.name, re.IGNORECASE):
        reason = "it is a laptop's, which may drive the display"
    else:
        return gpu
    return replace(gpu, kept_free_bytes=int(rule["gib"] * GIB), kept_free_because=reason)


def kept_of_ram(total_bytes: int | None) -> int:
    """What advice leaves of the machine's own memory to the system and to other programs."""
    rule = cuda_facts()["kept_free"]
    least = rule["ram_gib"] * GIB
    return 0 if total_bytes is None else int(max(least, rule["ram_share"] * total_bytes))


def keep_ram_free(gpu: Gpu) -> Gpu:
    """A GPU that shares the machine's memory, with what advice leaves free of it, and why."""
    return replace(
        gpu,
        kept_free_bytes=kept_of_ram(gpu.memory_total_bytes),
        kept_free_because="the system and other programs run in the same memory",
    )


def keep_for_macos(gpu: Gpu) -> Gpu:
    """An Apple GPU with the part of the computer's memory that macOS does not give it."""
    rule, total = cuda_facts()["kept_free"], gpu.memory_total_bytes
    if total is None:
        return gpu
    small = total <= rule["macos_small_gib"] * GIB
    share = rule["macos_small_share" if small else "macos_share"]
    return replace(
        gpu,
        kept_free_bytes=int(share * total),
        kept_free_because="macOS lets the GPU have only a part of the memory",
    )


def kept_free_note(gpu: Gpu) -> str:
    """'RTX 4090: advice leaves 1.00 GiB of its memory free, because it drives a display'."""
    return (
        f"{gpu.name}: advice leaves {format_gib(gpu.kept_free_bytes)} of its memory free, because"
        f" {gpu.kept_free_because}"
    )


def has_battery(root: Path = Path("/")) -> bool:
    """Whether the machine runs on a battery of its own (Linux names it BAT0, BAT1, ...)."""
    return any((root / "sys/class/power_supply").glob("BAT*"))
