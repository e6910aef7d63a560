"""Whether the disks have room: that of the run folder for results and checkpoints, and that of the
model cache for what is downloaded. They may be one disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from advisor.ground.errors import Fault
from advisor.ground.files import ELSEWHERE, free_bytes, nearest_place
from advisor.ground.units import format_gib

SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write


def more_disk(need: int | None, folder: Path) -> int | None:
    """Bytes still to be written: a stage that is resumed has part of them on the disk already."""
    if need is None or not folder.is_dir():
        return need
    return max(0, need - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def place_faults(run: Path, need: int | None) -> Iterable[Fault]:
    """Why the run folder cannot be written, or has no room for so many bytes."""
    place = nearest_place(run)
    if not place.is_dir():
        yield Fault(
            where=str(run),
            what=f"{place} is a file, so no folder can be created there",
            hint="choose another one with --output DIR",
        )
        return
    if not os.access(place, os.W_OK | os.X_OK):
        yield Fault(where=str(place), what="no permission to write here", hint=ELSEWHERE)
        return
    free = free_bytes(place)
    wanted = (need or 0) + SPARE_BYTES
    if free < wanted:
        parts = (
            f"{format_gib(need)} for results and checkpoints and {format_gib(SPARE_BYTES)} to spare"
            if need
            else f"{format_gib(SPARE_BYTES)} to spare"
        )
        yield Fault(
            where=str(place),
            what=(f"{format_gib(free)} free on the disk, the run needs about {format_gib(wanted)}"),
            allowed=parts,
            hint="free some space, or choose another disk with --output DIR",
        )


def cache_faults(cache: Path, download: int, run: Path, need: int | None) -> Iterable[Fault]:
    """Why the model cache cannot take a download of so many bytes, beside what the run writes where
    both lie on one disk.
    """
    if not download:
        return
    place = nearest_place(cache)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Fault(
            where=str(place),
            what=f"no permission to write here, and the model cache is to be {cache}",
            hint="choose another place with HF_HOME=DIR",
        )
        return
    is_same_disk = place.stat().st_dev == nearest_place(run).stat().st_dev
    beside = (need or 0) if is_same_disk else 0
    free, wanted = free_bytes(place), download + beside + SPARE_BYTES
    if free < wanted:
        parts = [f"{format_gib(download)} to download"]
        parts += [f"{format_gib(beside)} for results and checkpoints"] if beside else []
        yield Fault(
            where=str(cache),
            what=(
                f"{format_gib(free)} free on the disk of the model cache, about"
                f" {format_gib(wanted)} needed"
            ),
            allowed=", ".join([*parts, f"{format_gib(SPARE_BYTES)} to spare"]),
            hint="free some space, or put the cache on another disk with HF_HOME=DIR",
        )
