"""Whether the run folder can be written, and its disk has room for results and checkpoints."""

from __future__ import annotations

import os

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.files import ELSEWHERE, free_bytes, nearest_place
from advisor.ground.units import format_gib
from advisor.launch.call import Call
from advisor.launch.expected import disk_need

PHASE = "machine"
SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write


def check(call: Call) -> Checked:
    """Why the run folder cannot be written, or has too little room."""
    run = call.run.folder
    place = nearest_place(run)
    if not place.is_dir():
        what = f"{place} is a file, so no folder can be created there"
        return _lacks(str(run), what, hint="choose another one with --output DIR")
    if not os.access(place, os.W_OK | os.X_OK):
        return _lacks(str(place), "no permission to write here", hint=ELSEWHERE)
    free, need = free_bytes(place), bytes_to_write(call)
    wanted = (need or 0) + SPARE_BYTES
    if free >= wanted:
        return Checked()
    parts = f"{format_gib(need)} for results and checkpoints and " if need else ""
    return _lacks(
        str(place),
        f"{format_gib(free)} free on the disk, the run needs about {format_gib(wanted)}",
        f"{parts}{format_gib(SPARE_BYTES)} to spare",
        "free some space, or choose another disk with --output DIR",
    )


def _lacks(where: str, what: str, allowed: str = "", hint: str = "") -> Checked:
    return Checked(lacking=[Fault(where=where, what=what, allowed=allowed, hint=hint)])


def bytes_to_write(call: Call) -> int | None:
    """Bytes that the run still writes, as far as they are known; None if nothing is known."""
    run = call.run
    known = []
    for entry in call.left:
        need = disk_need(run.plan, entry.stage, call.shape, run.model_folder)
        if need is not None:
            paths = (run.folder / "stages" / entry.name).rglob("*")
            there = sum(path.stat().st_size for path in paths if path.is_file())
            known.append(max(0, need - there))
    return sum(known) if known else None
