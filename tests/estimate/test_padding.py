"""Rows laid end to end: how many tokens the largest micro-batch has."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.estimate.padding import largest_flat_batch
from tests.conftest import examples

EDGES = (16, 32, 64, 128, 256, 512, 1024)


def histogram(lengths):
    """As a profile makes it, the last bin ending at the longest row."""
    found = {}
    for length in lengths:
        edge = min(next(edge for edge in EDGES if length <= edge), max(lengths))
        found[edge] = found.get(edge, 0) + 1
    return tuple(sorted(found.items()))


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_largest_line_is_that_of_shuffled_rows(rows, seed):
    """Seldom below the median over shuffles of 1,000 rows with an exponential length, and at most
    30 % above it: a bin that few rows share counts as evenly filled.
    """
    draw = random.Random(seed)
    lengths = [min(1000, 5 + int(draw.expovariate(1 / 150))) for _ in range(1000)]
    seen = []
    for _ in range(15):
        draw.shuffle(lengths)
        seen.append(max(sum(lengths[at : at + rows]) for at in range(0, 1000, rows)))
    found = largest_flat_batch(histogram(lengths), 1024, rows)
    assert 0.95 < found / statistics.median(seen) < 1.3


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.integers(1, 16),
    st.integers(8, 2000),
)  # fmt: skip
@examples(1)
def test_a_line_lies_between_one_row_and_all_at_their_longest(lengths, rows, seq_len):
    """It holds the longest row at least, and no more than as many of them as there are rows."""
    found = largest_flat_batch(histogram(lengths), seq_len, rows)
    top = min(seq_len, max(lengths))
    assert top <= found <= rows * top
    assert found <= largest_flat_batch(histogram(lengths), seq_len, rows + 1)
