"""How much of the data a stage reads, against the rows themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.data.lengths import HISTOGRAM_TOKENS, _histogram
from advisor.estimate.padding import tokens_read as read_by
from advisor.estimate.run import stage_of
from advisor.ground.types import TokenStats
from tests.conftest import examples


def stats(lengths: list[int], *, sides: int = 1) -> TokenStats:
    counts = sorted({length: lengths.count(length) for length in lengths}.items())
    total = sides * sum(lengths)
    return TokenStats(
        total=total, mean=total / len(lengths), p50=0, p90=0, p95=0, p99=0, longest=max(lengths),
        counted_by="test", histogram=_histogram(counts),
    )  # fmt: skip


def tokens_read(rows: TokenStats, **stage: object) -> tuple[float, float]:
    """Tokens of a row that is read, and the share of rows that are."""
    usual = {"objective": "sft", "seq_len": 512, "truncation": "drop", "packing": False}
    return read_by(rows, stage_of({"update": "lora", **usual, **stage}))


EVEN = stats([*range(1, 513)])  # as many rows of each length, as the histogram takes for granted
ALIKE, WRITTEN = stats([300] * 4), replace(stats([300] * 4, sides=2), request_mean=40.0)
CUT = (128.5 + 256) / 2


@pytest.mark.parametrize(
    ("rows", "stage", "tokens", "share"),
    [
        (EVEN, {"seq_len": 256}, 128.5, 0.5),  # longer rows are left out with their tokens
        (EVEN, {"seq_len": 256, "truncation": "truncate"}, CUT, 1.0),
        # What is parted is read whole.
        (stats([3000] * 4), {"objective": "cpt", "truncation": "stop"}, None, 1.0),
        (stats([3000] * 4), {"packing": True, "truncation": "stop"}, None, 1.0),
        # Where no row is short enough the longest that could be read stands.
        (ALIKE, {"seq_len": 100}, 100, 1.0),
        # A stage that writes its answers reads the request and its own longest answer.
        *((WRITTEN, {"objective": name, "truncation": "stop", "response_tokens": 64, "seq_len": most},
           read, 1.0) for name in ("ppo", "grpo", "rloo") for most, read in ((512, 104), (96, 96))),
    ],
)  # fmt: skip
def test_rows_are_read_as_the_stage_says(rows, stage, tokens, share) -> None:
    found = tokens_read(rows, **stage)
    assert found[1] == pytest.approx(share, rel=0.01)
    assert tokens is None or found[0] == pytest.approx(tokens, rel=0.01)


def test_both_sides_count_only_where_both_run() -> None:
    both, one = (
        tokens_read(stats([100] * 8, sides=2), objective=name)[0] for name in ("dpo", "sft")
    )
    assert both == pytest.approx(200)
    assert one == pytest.approx(both / 2, rel=0.2)  # from the histogram's bins
    assert tokens_read(WRITTEN, truncation="stop", response_tokens=64)[0] > 104


LENGTHS = st.integers(HISTOGRAM_TOKENS[0], 40_000)


@examples(2, deadline=200)
@given(
    st.lists(st.integers(1, 2 * HISTOGRAM_TOKENS[-1]), max_size=40),
    LENGTHS,
    LENGTHS,
    st.sampled_from(["drop", "truncate"]),
)
def test_a_longer_sequence_never_reads_fewer_rows(
    lengths: list[int], first: int, second: int, truncation: str
) -> None:
    rows = stats([8, *lengths])
    kept = [
        tokens_read(rows, seq_len=length, truncation=truncation)
        for length in sorted((first, second))
    ]
    assert kept[0][1] <= kept[1][1] + 1e-9
    assert all(0 < tokens <= rows.longest * 1.001 for tokens, _ in kept)
