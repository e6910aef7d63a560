"""How much of a batch is padding, and how many rows a packed sequence holds, from the histogram of
the rows' lengths. Arithmetic only.

Lengths are taken as even between the edges of the histogram and the percentiles. 999 rows of
LLaMA-Factory's `alpaca_en_demo.json` in micro-batches of 4, 8 and 16: 49, 58 and 63 % of a batch of
rows at random is padding by this, and 48, 57 and 62 % were counted; of grouped rows 4, 7 and 12 %,
and 3, 7 and 13 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache

from advisor.ground.types import TokenStats
from advisor.methods import objective
from advisor.methods.stage import Stage

# As trainers/rows/batches.py: rows are sorted within pools of so many optimizer steps.
POOL_STEPS, FEWEST_POOLS, FEWEST_STEPS = 50, 4, 8
SLICES = 200  # of the lengths, for the mean of the longest of several rows
# Around a row with one question: 33 where the template of SmolLM2 adds a system prompt, 4 for long
# rows, whose words are longer than assumed.
TEMPLATE_TOKENS = 24
SHORT, FULL = 16, 0.98  # of so many rows a sequence, so much of it is filled
SAMPLE = 600  # rows that are laid into sequences to see how many one holds
# What the longest row may be longer than the longest of a sample, or than its characters say: as in
# the choice of a sequence length (advice/search/rows.py).
LONGEST_MARGIN = 1.25


def padded_tokens(
    tokens: TokenStats, *, seq_len: int, micro: int, per_step: int, rows: int, grouped: bool
) -> float | None:
    """Tokens of one sequence of a micro-batch, on average, padded to the longest beside it; None
    where no histogram is known.

    Args:
        micro: Rows of a micro-batch.
        per_step: Rows of an optimizer step.
        rows: Rows of an epoch.
        grouped: Rows of similar length share a micro-batch.
    """
    if not tokens.histogram:
        return None
    random = _mean_of_longest(_bins(tokens, seq_len), micro)
    if not grouped or micro == 1:
        return random
    # A sorted pool in groups of `micro`: the padding of all groups together is at most one group
    # as long as from the shortest row to the longest, and half of it where lengths are even.
    steps = max(FEWEST_STEPS, min(POOL_STEPS, rows // (FEWEST_POOLS * per_step)))
    pool = max(1, min(rows, steps * per_step))
    bins = _bins(tokens, seq_len)
    spread = bins[-1][1] - bins[0][0]
    return min(random, _mean_of_longest(bins, 1) + spread * micro / (2 * pool))


@lru_cache(maxsize=256)
def row_tokens(
    lengths: tuple[tuple[int, int], ...], seq_len: int, micro: int
) -> tuple[float, float]:
    """(tokens of a row on average, of a row of a micro-batch padded to the longest beside it) of a
    run spec's histogram, ascending, cut at seq_len; lengths are even within a bin.
    """
    low, bins = 0.0, []
    for edge, rows in lengths:
        if rows and low < seq_len:
            bins.append((low, float(min(edge, seq_len)), float(rows)))
        elif rows:
            bins.append((seq_len - 1.0, float(seq_len), float(rows)))
        low = float(edge)
    found = tuple(bins) or ((seq_len - 1.0, float(seq_len), 1.0),)
    return _mean_of_longest(found, 1), _mean_of_longest(found, micro)


def row_lengths(
    tokens: TokenStats, *, seq_len: int, share: float = 1.0
) -> tuple[tuple[int, int], ...]:
    """(longest of the bin in tokens, rows in it), as a Run takes them; empty where no histogram
    is known. Longer rows count as `seq_len`.

    The longest row of a sample, or one whose tokens were counted from characters, may be longer
    than it seems: it gets a margin. What characters lack of a chat template is added to every row.

    Args:
        share: Of the rows that are read; each bin keeps a row at least.
    """
    if not tokens.histogram:
        return ()
    is_counted = "approximation" not in tokens.counted_by
    around = 0 if is_counted else TEMPLATE_TOKENS
    is_whole = is_counted and tokens.sampled_rows is None
    longest = max(1, tokens.longest)
    longest = longest if is_whole else math.ceil(longest * LONGEST_MARGIN) + around
    measured = sum(count for _, count in tokens.histogram)
    rows = tokens.total / tokens.mean if tokens.mean else measured
    found: dict[int, int] = {}
    for place, (edge, count) in enumerate(tokens.histogram, 1):
        is_last = place == len(tokens.histogram)
        length = min(seq_len, longest if is_last else min(edge + around, longest))
        found[length] = found.get(length, 0) + max(1, round(count * share * rows / measured))
    return tuple(sorted(found.items()))


def rows_in_sequence(tokens: TokenStats, seq_len: int) -> float | None:
    """How many rows one packed sequence holds, on average; None where no histogram is known.

    Lengths that were approximated from characters lack what a chat template writes around a row.
    """
    if not tokens.histogram:
        return None
    around = TEMPLATE_TOKENS if "approximation" in tokens.counted_by else 0
    bins = tuple(
        (min(low + around, seq_len - 1.0), min(high + around, float(seq_len)), size)
        for low, high, size in _bins(tokens, seq_len)
    )
    return _packed(bins, seq_len)


def _bins(tokens: TokenStats, seq_len: int) -> tuple[tuple[float, float, float], ...]:
    """(from, to, rows) of stretches of length with known numbers of rows, cut at seq_len: between
    the edges of the histogram and the percentiles.
    """
    rows = sum(count for _, count in tokens.histogram)
    upto, points = 0, {tokens.histogram[0][0] // 2: 0.0}
    for edge, count in tokens.histogram:
        upto += count
        points[min(edge, tokens.longest)] = float(upto)
    for share, length in (
        (0.5, tokens.p50), (0.9, tokens.p90), (0.95, tokens.p95), (0.99, tokens.p99),
    ):  # fmt: skip
        points.setdefault(length, share * rows)
    found, low, below = [], 0.0, 0.0
    for length, upto_there in sorted(points.items()):
        size = upto_there - below
        if size > 0 and low < seq_len:
            found.append((low, float(min(max(length, low + 1), seq_len)), size))
        low, below = float(length), max(below, upto_there)
    # Nothing was found where every row is longer than seq_len.
    return tuple(found) or ((seq_len - 1.0, float(seq_len), float(rows)),)


@lru_cache(maxsize=256)
def _mean_of_longest(bins: tuple[tuple[float, float, float], ...], count: int) -> float:
    """The mean length of the longest of so many rows drawn at random: the integral of one minus the
    share of rows that are no longer, to the power of `count`.
    """
    rows = sum(size for _, _, size in bins)
    total, below = bins[0][0], 0.0
    end = bins[0][0]
    for low, high, size in bins:
        total += (low - end) * (1 - (below / rows) ** count)
        step = (high - low) / SLICES
        total += sum(
            step * (1 - ((below + size * (part + 0.5) / SLICES) / rows) ** count)
            for part in range(SLICES)
        )
        below, end = below + size, high
    return total


@lru_cache(maxsize=256)
def _packed(bins: tuple[tuple[float, float, float], ...], seq_len: int) -> float:
    """Rows of a sequence if a sample of them is laid into sequences, best fit, longest first."""
    lengths = _sample(bins)
    rooms: list[int] = []
    sequences = 0
    for length in lengths:
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms.pop(place)
        else:
            room, sequences = seq_len, sequences + 1
        insort(rooms, room - length)
    by_tokens = seq_len * len(lengths) / sum(lengths)
    # Of few sequences the last, which is not full, counts too much; many short rows leave no gaps.
    return FULL * by_tokens if by_tokens > SHORT else len(lengths) / sequences


def _sample(bins: Sequence[tuple[float, float, float]]) -> list[int]:
    """SAMPLE lengths, spread as the histogram has them, longest first."""
    rows = sum(size for _, _, size in bins)
    found: list[int] = []
    below = 0.0
    for low, high, size in bins:
        first, last = round(SAMPLE * below / rows), round(SAMPLE * (below + size) / rows)
        found += [
            max(1, round(low + (high - low) * (part + 0.5) / (last - first)))
            for part in range(last - first)
        ]
        below += size
    return sorted(found, reverse=True)


# Measured: a bundled general prompt with the answer of SmolLM2-135M-Instruct, and the share of its
# answers that end within 128 tokens (53 rows of 91 tokens, from 74 answers).
REPLAY_TOKENS, REPLAY_KEPT = 90, 0.7


def with_replay(stage: Stage, tokens: float, rows: float, *, passes: float) -> tuple[float, float]:
    """(tokens, rows) of all passes, with the general rows that `replay` mixes in; those of a file
    are taken to be as long as the stage's own.
    """
    source, key = stage.options.get("replay"), "replay_share"
    if not source or not rows:
        return tokens, rows
    share = float(stage.options.get(key) or objective(stage.objective).keys[key].default)
    added, each = tokens * share / (1 - share), tokens / rows
    if isinstance(source, dict):
        added, each = min(added, passes * source["rows"] * REPLAY_TOKENS), REPLAY_TOKENS
    return tokens + added, rows + added / each


def tokens_read(tokens: TokenStats, stage: Stage) -> tuple[float, float]:
    """(tokens of a row that is read, share of the rows that are read).

    An answer that a stage writes itself counts as `response_tokens`, its longest.

    Lengths come from the histogram, taken as even within each bin; a pair counts both sequences
    where its stage runs both. Packed rows and documents are parted, not cut.
    """
    what, seq_len = objective(stage.objective), stage.seq_len
    sequences, answer = what.sequences_per_row, stage.options.get("response_tokens")
    if what.generates and answer and tokens.request_mean is not None:
        return min(tokens.request_mean + answer, float(seq_len)), 1.0
    if not tokens.histogram:
        return min(tokens.mean, float(sequences * seq_len)), 1.0
    rows = kept_rows = kept_tokens = all_tokens = 0.0
    for longest, count in tokens.histogram:
        low, high = (
            longest // 2,
            min(longest, tokens.longest),
        )  # each bin ends at twice the one before it
        rows += count
        all_tokens += count * (low + high) / 2
        inside = (
            1.0
            if stage.packing or what.splits_documents or seq_len >= high
            else max(0.0, (seq_len - low) / max(1, high - low))
        )
        kept_rows += count * inside
        kept_tokens += count * inside * (low + (high if inside == 1.0 else max(low, seq_len))) / 2
        if stage.truncation == "truncate":
            kept_rows += count * (1 - inside)
            kept_tokens += count * (1 - inside) * seq_len
    if not kept_rows:  # no row is short enough: the stage will say so
        return min(tokens.mean, float(sequences * seq_len)), 1.0
    # The histogram holds the longer sequence of a pair; `mean` counts both.
    whole = tokens.mean if sequences > 1 else min(tokens.mean, all_tokens / rows)
    return whole * (kept_tokens / kept_rows) / (all_tokens / rows), kept_rows / rows
