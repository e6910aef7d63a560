"""Shorter rows, where nothing else makes a stage fit: how long, and what that leaves out."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.advice.search.settings import StageCase
from advisor.advice.types import Chosen

MULTIPLE = 64
SHORTEST = 256  # tokens: less holds few conversations, and no pieces of documents worth reading
# Of the rows, by step: what a stage may leave out (plan key `truncation`).
LEFT_OUT = (0.01, 0.05)
WHOLE_ROWS = 2.0  # times the mean: where lengths are not known, most rows are shorter


def shorter_rows(
    settings: Mapping[str, Chosen], case: StageCase, *, steps: int
) -> tuple[dict[str, Chosen], str]:
    """The settings with a shorter sequence, and what that leaves out in words; unchanged for no
    steps, and where the rows do not allow it.

    Args:
        steps: How far to go: 1 leaves out a hundredth of the rows, 2 a twentieth.
    """
    found, what, data = dict(settings), case.method, case.profile
    whole = int(found["seq_len"].value)
    if not steps or what.generates:
        return found, ""
    if what.splits_documents:
        length = max(SHORTEST, whole >> steps)
        because = "memory is short, and documents are split without loss"
        return _with_length(found, min(whole, length), because), ""
    if data is not None and data.tokens is not None:
        kept = data.tokens.p99 if steps == 1 else data.tokens.p95
        length = -(-kept // MULTIPLE) * MULTIPLE
        share = LEFT_OUT[steps - 1]
        count = f"at most {share:.0%} of the {data.rows:,} rows, about {share * data.rows:,.0f},"
    else:
        length = max(SHORTEST, whole >> steps)
        rows, tokens = (case.situation.answers.value(name) for name in ("data_rows", "data_tokens"))
        mean = tokens / rows / what.sequences_per_row if rows and tokens else 0.0
        if WHOLE_ROWS * mean > length:
            return found, ""
        count = "rows (nobody has measured how many)"
    if length >= whole:
        return found, ""
    because = f"memory is short: {count} that are longer are left out"
    found = _with_length(found, length, because)
    found["truncation"] = Chosen(value="drop", because="rows over seq_len are left out")
    left_out = f"{count} that are longer than the {length:,} tokens that fit are left out"
    return found, left_out


def _with_length(found: dict[str, Chosen], length: int, because: str) -> dict[str, Chosen]:
    if length < int(found["seq_len"].value):
        found["seq_len"] = Chosen(value=length, because=because)
    return found
