"""Laws of the advice, over random situations (sanity.py)."""

import random

import pytest

from advisor.advice.case import Case
from advisor.ruleset.load import load_rules
from tests.advice.sanity import random_known, situation_for, violations
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


@pytest.mark.parametrize("change", [{}, {"depth": "domain_knowledge"}, {"data_rows": 50}])
def test_a_what_if_ends_where_the_whole_decision_does(change):
    """It asks for fewer estimates, and comes to the same composition."""
    for seed in range(scaled(150)):
        situation = situation_for(random_known(random.Random(seed)))
        case = Case.build(situation, load_rules()).with_suggestion()
        asked, decided = (case.with_answers(change) for _ in range(2))
        assert str(asked.composition) == str(decided.decision.composition), seed


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
