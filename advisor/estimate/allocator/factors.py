"""What PyTorch's allocator holds beyond what is allocated, by simulated runs, and how many times
the lengths of a run's micro-batches make it hold more. Arithmetic only.

Of the memory that comes and goes with a micro-batch (activations kept, and the larger of the loss
and one layer's backward pass) the allocator keeps a share beyond the peak, since a freed block's
place holds few tensors of other sizes. With rows padded to the longest of a micro-batch, each one
that is longer than all before it needs blocks of its own once more; whole logits most of all, each
of which is larger than every block there is. So the cache grows with the sum over such records.
Segments that expand grow by the difference alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import log, sqrt
from typing import NamedTuple

from advisor.estimate.allocator.table import GRADIENT_RATIOS, LOSS_SHARES, ROWS

SLICES = 400  # of the lengths, for the sum over records
EIGHT_IN_TEN = 1.28  # standard deviations to either side that hold eight in ten
STEPS = 20  # shares are looked up in steps of a twentieth
LEAST_RATIO = 0.03  # gradients below this share of what comes and goes count as none
LOG_RATIOS = [log(max(LEAST_RATIO, one)) for one in GRADIENT_RATIOS]


class CacheFactors(NamedTuple):
    """Shares of the memory that comes and goes."""

    kept: float  # held beyond the allocated peak, all micro-batches of one length
    per_record: float  # held more for each record of length, by its length over the longest
    lost: float  # of `kept`, what cannot be given back when memory is short
    lost_ragged: float  # the same where lengths differ


def cache_factors(
    *,
    expandable: bool,
    recomputed: float,
    loss_share: float,
    gradient_ratio: float,
    guessed: bool = False,
) -> CacheFactors:
    """The factors of a run, between the runs that were simulated.

    Args:
        expandable: `expandable_segments:True`.
        recomputed: The share of a layer that checkpointing computes again.
        loss_share: Of the memory that comes and goes, the loss's.
        gradient_ratio: Gradients over the memory that comes and goes.
        guessed: Whether segments expand is a guess: halfway between what both keep of one length,
            and the guessed one's for other lengths, which differ too much to be averaged.
    """
    place = round(STEPS * log(max(LEAST_RATIO, gradient_ratio)) / 4)
    share = round(loss_share * STEPS)
    found = _looked_up(expandable, recomputed, share, place)
    if not guessed:
        return found
    other = _looked_up(not expandable, recomputed, share, place)
    return CacheFactors(
        kept=(found.kept + other.kept) / 2,
        per_record=found.per_record,
        lost=(found.lost + other.lost) / 2,
        lost_ragged=(found.lost_ragged + other.lost_ragged) / 2,
    )


@lru_cache(maxsize=4096)
def _looked_up(expandable: bool, recomputed: float, share: int, ratio: int) -> CacheFactors:
    """By the steps of share and logarithm of the ratio, linear between the simulated runs."""
    column, right = _between(share / STEPS, LOSS_SHARES)
    line, lower = _between(4 * ratio / STEPS, LOG_RATIOS)
    corners = [
        (ROWS[expandable, again][line + down][column + along], weight * above * beside)
        for again, weight in ((True, recomputed), (False, 1 - recomputed))
        for down, above in ((0, 1 - lower), (1, lower))
        for along, beside in ((0, 1 - right), (1, right))
    ]
    return CacheFactors(
        *(sum(numbers[place] * weight for numbers, weight in corners) for place in range(4))
    )


def _between(value: float, points: Sequence[float]) -> tuple[int, float]:
    """The point at or below a value and the share of the way to the next; the ends beyond them."""
    value = min(max(value, points[0]), points[-1])
    place = min(bisect_right(points, value) - 1, len(points) - 2)
    return place, (value - points[place]) / (points[place + 1] - points[place])


class Records(NamedTuple):
    """The sum over micro-batches that are longer than all before, each by its length over the
    longest, without the last: how often blocks are made anew. Eight in ten draws lie between `low`
    and `high`.
    """

    mean: float
    low: float
    high: float

    def times(self, share: float) -> Records:
        """The same weighted by how far it holds."""
        return Records(self.mean * share, self.low * share, self.high * share)


NONE = Records(0.0, 0.0, 0.0)  # one length, or the longest first
# Where lengths differ and are not known: 1,000 micro-batches of one row, lengths lognormal
# (standard deviation of the logarithm 0.6 to 0.9) and 3 % of them above the longest. Cut to it they
# have 1.8 (0.4 to 3.2), left out 4.3 (2.0 to 6.7), by `records`: between both.
UNKNOWN = Records(3.0, 0.4, 6.7)


@lru_cache(maxsize=512)
def records(lengths: tuple[tuple[int, int], ...], *, seq_len: int, rows_at_once: int) -> Records:
    """The records of an epoch whose rows come in random order, cut at `seq_len`.

    Of n micro-batches whose longest rows are distributed as G, the expected number of records at a
    length where G rises by dG is dG (1 - G^n) / (1 - G), since the k-th is one with probability
    dG G^(k-1) there.

    Args:
        lengths: (upper edge in tokens, rows) of a histogram.
        rows_at_once: Rows of a micro-batch.
    """
    rows = sum(count for _, count in lengths)
    draws = rows // rows_at_once
    if draws < 2:
        return NONE
    longest = float(min(seq_len, lengths[-1][0]))
    mean = squares = below = 0.0
    low, parts = lengths[0][0] / 2, max(8, SLICES // len(lengths))

    def found(chance: float, share: float) -> None:
        nonlocal mean, squares
        mean += chance * share
        squares += chance * share**2

    for edge, count in lengths:
        high = min(float(edge), longest)
        if high <= low:
            break
        inside = count * (high - low) / (edge - low)
        before = (below / rows) ** rows_at_once
        for part in range(parts if count else 0):
            middle = ((below + inside * (part + 0.5) / parts) / rows) ** rows_at_once
            after = ((below + inside * (part + 1) / parts) / rows) ** rows_at_once
            chance = (after - before) * (1 - middle**draws) / (1 - middle)
            found(chance, (low + (high - low) * (part + 0.5) / parts) / longest)
            before = after
        below += inside
        low = high
    # Rows cut at the longest are one length: the first of them is a record.
    found(1 - ((below / rows) ** rows_at_once) ** draws, 1.0)
    spread = EIGHT_IN_TEN * sqrt(max(0.0, squares - 1))
    mean = max(0.0, mean - 1)
    return Records(mean, max(0.0, mean - spread), mean + spread)
