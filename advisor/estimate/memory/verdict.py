"""Whether a run fits: the band around what it needs, held against the memory there is.

- `fits`: the upper end of the band is within the memory, and the need leaves a tenth of it free.
- `tight`: the upper end is within the memory, and the need leaves less. A band is as narrow as that
  where runs were measured.
- `may_fit`: the memory lies inside the band. A dry run finds out.
- `too_big`: even the lower end is above the memory.
"""

from __future__ import annotations

from advisor.estimate.types import Fits, MemoryEstimate

# Of the device's memory. No band knows it: other programs, or a batch longer than the sample's.
HEAD_ROOM = 0.10


def fits_in(need_bytes: int, limit_bytes: int | None, *, low_bytes: int, high_bytes: int) -> Fits:
    """The verdict on a need with its band; `unknown` where the memory is not known.

    Args:
        need_bytes: What must be there, blocks that the allocator gives back left out.
        low_bytes: The lower end of the band around the need.
        high_bytes: The upper end.
    """
    if limit_bytes is None:
        return "unknown"
    if low_bytes > limit_bytes:
        return "too_big"
    if high_bytes > limit_bytes:
        return "may_fit"
    return "fits" if need_bytes <= (1 - HEAD_ROOM) * limit_bytes else "tight"


def memory_fits(memory: MemoryEstimate, limit_bytes: int | None) -> Fits:
    """The verdict on an estimate of memory."""
    return fits_in(
        memory.need_bytes,
        limit_bytes,
        low_bytes=memory.need_low_bytes,
        high_bytes=memory.need_high_bytes,
    )
