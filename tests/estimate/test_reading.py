"""How much of the data a stage reads, against the rows themselves."""

from __future__ import annotations

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
        total=total,
        mean=total / len(lengths),
        p50=0,
        p90=0,
        p95=0,
        p99=0,
        longest=max(lengths),
        counted_by="test",
        histogram=_histogram(counts),
    )


def tokens_read(rows: TokenStats, **stage: object) -> tuple[float, float]:
    return read_by(rows, stage_of({"update": "lora", **stage}))


EVEN = [*range(1, 513)]  # as many rows of each length: what the histogram takes for granted is so


def test_rows_over_the_length_are_left_out_with_their_tokens() -> None:
    tokens, share = tokens_read(
        stats(EVEN), objective="sft", seq_len=256, truncation="drop", packing=False
    )
    assert (tokens, share) == (pytest.approx(128.5, rel=0.01), pytest.approx(0.5, rel=0.01))


def test_rows_that_are_cut_are_all_read() -> None:
    tokens, share = tokens_read(
        stats(EVEN), objective="sft", seq_len=256, truncation="truncate", packing=False
    )
    assert (tokens, share) == (pytest.approx((128.5 + 256) / 2, rel=0.01), 1.0)


def test_a_pair_counts_twice_where_both_sides_run() -> None:
    tokens = stats([100] * 8, sides=2)
    both, _ = tokens_read(tokens, objective="dpo", seq_len=512, truncation="drop", packing=False)
    one, _ = tokens_read(tokens, objective="sft", seq_len=512, truncation="drop", packing=False)
    assert both == pytest.approx(200)
    assert one == pytest.approx(both / 2, rel=0.2)  # from the histogram's bins


@pytest.mark.parametrize(("objective", "packing"), [("cpt", False), ("sft", True)])
def test_what_is_parted_is_read_whole(objective: str, packing: bool) -> None:
    assert (
        tokens_read(
            stats([3000] * 4), objective=objective, seq_len=512, truncation="stop", packing=packing
        )[1]
        == 1.0
    )


def test_where_no_row_is_short_enough_the_longest_that_could_be_read_stands() -> None:
    assert tokens_read(
        stats([300] * 4), objective="sft", seq_len=100, truncation="drop", packing=False
    ) == (100, 1.0)


@pytest.mark.parametrize("objective", ["ppo", "grpo", "rloo"])
def test_a_stage_that_writes_its_answers_reads_the_request_and_its_own_longest_answer(
    objective: str,
) -> None:
    rows = replace(stats([300] * 4, sides=2), request_mean=40.0)
    assert tokens_read(
        rows, objective=objective, seq_len=512, truncation="stop", packing=False, response_tokens=64
    ) == (104.0, 1.0)
    assert tokens_read(
        rows, objective=objective, seq_len=96, truncation="stop", packing=False, response_tokens=64
    ) == (96.0, 1.0)
    assert (
        tokens_read(
            rows, objective="sft", seq_len=512, truncation="stop", packing=False, response_tokens=64
        )[0]
        > 104
    )


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
        tokens_read(rows, objective="sft", seq_len=length, truncation=truncation, packing=False)
        for length in sorted((first, second))
    ]
    assert kept[0][1] <= kept[1][1] + 1e-9
    assert all(0 < tokens <= rows.longest * 1.001 for tokens, _ in kept)
