"""Laws of the advice, over random situations (sanity.py)."""

import pytest

from tests.advice.sanity import violations
from tests.conftest import scaled

BLOCKS = 4  # so that several workers share them


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_situation_breaks_a_law(block):
    """More is never worse, what is assumed may be said, flips come true, limits are kept."""
    number = scaled(500) // BLOCKS
    found = [
        (seed, *broken)
        for seed in range(block * number, (block + 1) * number)
        for broken in violations(seed)
    ]
    assert not found


@pytest.mark.long
@pytest.mark.parametrize("block", range(40))
def test_no_situation_of_twenty_thousand_breaks_a_law(block):
    """The same over situations that no shorter test draws."""
    found = [
        (seed, *broken)
        for seed in range(100_000 + block * 500, 100_000 + (block + 1) * 500)
        for broken in violations(seed)
    ]
    assert not found
