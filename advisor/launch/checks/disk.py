"""Whether the run folder can be written and its disk has room for results and checkpoints, and
whether the models of the hub can be downloaded.
"""

from __future__ import annotations

import errno
import os

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.files import ELSEWHERE, cannot_write, free_bytes, nearest_place
from advisor.ground.units import format_gib
from advisor.launch.call import Call
from advisor.launch.hub import ask_hub, cache_line, model_needs
from advisor.model_files.hub_cache import hub_cache

PHASE = "model"
SPARE_BYTES = 256 * 2**20  # metrics, tokenizer, report, and what other programs write


def check(call: Call) -> Checked:
    """What is downloaded and where to, in words, and why it cannot be. Asks the hub.

    Raises InputError and MachineNotReady as the hub answers.
    """
    run = call.run
    if lacking := _folder_faults(call):
        return Checked(lacking=lacking)
    models = [ask_hub(need) for need in model_needs(run, call.left, call.shape)]
    need = call.bytes_to_write
    lines = [one.line() for one in models]
    if line := cache_line(models):
        lines.append(line)
    if need:
        free = format_gib(free_bytes(run.folder))
        lines.append(f"disk: up to {format_gib(need)} for results and checkpoints, {free} free")
    download = sum(one.download_bytes or 0 for one in models)
    return Checked(
        lacking=_cache_faults(call, download, need or 0) if download else (), needs=lines
    )


def _cache_faults(call: Call, download: int, need: int) -> list[Fault]:
    cache = hub_cache()
    place = nearest_place(cache)
    if not os.access(place, os.W_OK | os.X_OK):
        what = f"no permission to write here, and the model cache is to be {cache}"
        return [Fault(where=str(place), what=what, hint="choose another place with HF_HOME=DIR")]
    is_same_disk = place.stat().st_dev == nearest_place(call.run.folder).stat().st_dev
    beside = need if is_same_disk else 0
    free, wanted = free_bytes(place), download + beside + SPARE_BYTES
    if free >= wanted:
        return []
    parts = [f"{format_gib(download)} to download"]
    parts += [f"{format_gib(beside)} for results and checkpoints"] if beside else []
    return [
        Fault(
            where=str(cache),
            what=f"{format_gib(free)} free on the disk of the model cache, about"
            f" {format_gib(wanted)} needed",
            allowed=", ".join([*parts, f"{format_gib(SPARE_BYTES)} to spare"]),
            hint="free some space, or put the cache on another disk with HF_HOME=DIR",
        )
    ]


def _folder_faults(call: Call) -> list[Fault]:
    place = nearest_place(call.run.folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "no permission to write here" if place.is_dir() else "a file, and no folder"
        if hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY:
            return list(cannot_write(place, OSError(errno.EROFS, ""), way_out=ELSEWHERE).faults)
        return [Fault(where=str(place), what=why, hint=ELSEWHERE)]
    free, need = free_bytes(place), call.bytes_to_write
    wanted = (need or 0) + SPARE_BYTES
    if free >= wanted:
        return []
    parts = f"{format_gib(need)} for results and checkpoints and " if need else ""
    fault = Fault(
        where=str(place),
        what=f"{format_gib(free)} free on the disk, the run needs about {format_gib(wanted)}",
        allowed=f"{parts}{format_gib(SPARE_BYTES)} to spare",
        hint="free some space, or choose another disk with --output DIR",
    )
    return [fault]
