"""How much of the data a stage really reads: rows over seq_len are left out or cut, of a pair some
stages read one side, and a stage that learns from answers of its own reads the request alone.
"""

from __future__ import annotations

from advisor.ground.types import TokenStats
from advisor.methods import objective
from advisor.methods.stage import Stage


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
