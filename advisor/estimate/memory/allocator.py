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


def _numbers(text: str) -> list[list[list[float]]]:
    return [
        [[int(number) / 100 for number in cell.split()] for cell in line.split("|")]
        for line in text.strip().splitlines()
    ]


# Written by `python -m tools.cache_table`, which says what the numbers mean.
# simulated shares
LOSS_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
GRADIENT_RATIOS = (0.0, 0.1, 0.3, 1.0, 3.0)
# By expandable segments and checkpointing, in hundredths: a line for each ratio of
# gradients, a column for each share of the loss: kept, per_record, lost, lost_ragged.
ROWS = {
    (False, True): _numbers("""
22 12 18 18 | 22 13 18 20 | 36 19 30 28 | 34 60 5 16 | 17 88 2 10
25 16 18 48 | 29 10 23 43 | 24 43 20 34 | 16 69 12 26 | 13 88 9 8
29 9 20 38 | 35 5 24 33 | 23 25 14 21 | 13 46 8 16 | 24 59 20 6
39 3 38 38 | 38 2 43 34 | 41 13 29 27 | 39 22 13 27 | 37 35 22 7
48 5 41 58 | 55 4 42 59 | 64 5 39 50 | 42 8 28 20 | 26 9 65 42
"""),
    (False, False): _numbers("""
6 14 6 5 | 7 23 7 9 | 9 48 9 7 | 11 73 11 6 | 12 94 12 11
8 15 9 22 | 7 16 5 16 | 14 41 16 12 | 13 67 18 11 | 11 89 6 16
22 3 20 18 | 11 6 12 15 | 10 33 8 11 | 24 57 16 12 | 65 62 53 51
43 0 20 12 | 21 4 11 4 | 21 7 12 14 | 39 28 24 17 | 65 49 50 48
23 5 8 9 | 27 5 23 4 | 35 3 12 55 | 73 0 61 62 | 63 14 21 128
"""),
    (True, True): _numbers("""
14 0 7 4 | 14 0 9 7 | 14 0 7 5 | 12 0 1 1 | 13 0 1 1
6 1 1 1 | 6 0 2 1 | 6 0 2 1 | 12 0 1 1 | 14 0 1 1
5 0 2 1 | 7 0 3 2 | 7 0 3 3 | 11 0 2 2 | 24 1 2 1
6 1 2 2 | 8 0 6 6 | 6 0 5 4 | 12 0 3 4 | 15 1 2 2
12 0 1 1 | 11 0 1 1 | 12 0 1 3 | 18 1 1 2 | 17 0 1 1
"""),
    (True, False): _numbers("""
2 0 2 2 | 4 0 1 1 | 7 0 1 1 | 10 0 1 1 | 12 0 1 1
3 0 3 4 | 5 0 3 3 | 8 0 2 2 | 10 0 1 2 | 16 0 1 1
4 0 3 3 | 7 0 4 4 | 8 0 2 3 | 12 1 1 1 | 10 3 1 1
9 0 1 1 | 5 1 1 1 | 9 0 1 1 | 11 0 1 1 | 39 0 1 1
12 5 1 1 | 13 5 1 1 | 19 4 1 1 | 40 1 1 1 | 114 0 1 1
"""),
}
# end of simulated shares
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
