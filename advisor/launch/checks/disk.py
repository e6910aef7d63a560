"""Whether the run folder can be written, and its disk has room for results and checkpoints."""

from __future__ import annotations

import os

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.files import ELSEWHERE, free_bytes, nearest_place
from advisor.ground.units import format_gib
from advisor.launch.call import Call

PHASE = "machine"
SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write


def check(call: Call) -> Checked:
    """Why the run folder cannot be written, or has too little room."""
    place = nearest_place(call.run.folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "no permission to write here" if place.is_dir() else "a file, and no folder"
        return Checked(lacking=[Fault(where=str(place), what=why, hint=ELSEWHERE)])
    free, need = free_bytes(place), call.bytes_to_write
    wanted = (need or 0) + SPARE_BYTES
    if free >= wanted:
        return Checked()
    parts = f"{format_gib(need)} for results and checkpoints and " if need else ""
    fault = Fault(
        where=str(place),
        what=f"{format_gib(free)} free on the disk, the run needs about {format_gib(wanted)}",
        allowed=f"{parts}{format_gib(SPARE_BYTES)} to spare",
        hint="free some space, or choose another disk with --output DIR",
    )
    return Checked(lacking=[fault])
