"""What is told, and what stops a run, given the numbers of its updates."""

import pytest

from trainers.ppo.guards import findings, not_finite, reward_hacked

pytestmark = pytest.mark.light

FINE = {
    "kl": 0.1,
    "reward": 0.5,
    "reward_spread": 0.2,
    "ended": 0.9,
    "entropy": 2.0,
    "response_tokens": 40.0,
    "policy_loss": 0.0,
    "value_loss": 0.1,
    "grad_norm": 1.0,
}


def told(*changes, before=3):
    lines = [FINE] * before + [FINE | change for change in changes]
    return {finding.name: finding for finding in findings(lines, kl_limit=1.0, response_tokens=64)}


def test_nothing_is_told_of_a_run_that_goes_well():
    """Numbers like those of the start raise nothing."""
    assert told({}, {}) == {}
    assert findings([], kl_limit=1.0, response_tokens=64) == []


@pytest.mark.parametrize(
    ("changes", "name", "stops"),
    [
        ([{"kl": 1.2}], "kl", True),
        ([{"reward_spread": 0.0}] * 5, "constant-reward", True),
        ([{"ended": 0.0}] * 3, "never-ends", False),
        ([{"entropy": 0.3}], "entropy", False),
        ([{"response_tokens": 5.0}], "short", True),
        ([{"response_tokens": 130.0}], "long", False),
    ],
)
def test_each_trouble_has_its_name_and_says_what_to_change(changes, name, stops):
    """One finding, with a hint; those that cannot be lived with stop the run."""
    found = told(*changes)
    assert list(found) == [name]
    assert found[name].stops is stops
    assert found[name].hint


def test_a_rare_reward_is_not_a_constant_one():
    """Four updates without a difference are borne, and one answer that differs ends the count."""
    assert told(*[{"reward_spread": 0.0}] * 4) == {}
    assert told(*[{"reward_spread": 0.0}] * 4, {"reward_spread": 0.1}, {"reward_spread": 0.0}) == {}


def test_a_reward_is_gamed_where_it_rises_and_held_out_answers_lose():
    """16 prompts: 4 won and 12 lost is 2 standard errors below even; 6 and 10 is 1."""
    assert reward_hacked(0.1, 0.5, wins=4, losses=12) is not None
    assert reward_hacked(0.1, 0.5, wins=6, losses=10) is None
    assert reward_hacked(0.5, 0.4, wins=4, losses=12) is None
    assert reward_hacked(0.1, 0.5, wins=0, losses=4) is None


def test_what_is_no_number_is_named():
    """The first of the losses, the reward, the KL and the gradient that is not finite; under loss
    scaling a gradient may be infinite.
    """
    assert not_finite(FINE, scaled=False) is None
    assert not_finite(FINE | {"value_loss": float("nan")}, scaled=False) == "value loss became nan"
    assert not_finite(FINE | {"grad_norm": float("inf")}, scaled=False) == "grad norm became inf"
    assert not_finite(FINE | {"grad_norm": float("inf")}, scaled=True) is None
