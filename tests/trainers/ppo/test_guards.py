"""What is told, and what stops a run, given the numbers of its updates."""

import pytest

from trainers.rewards.watch import Watch, is_gamed

pytestmark = pytest.mark.light

FINE = {"kl": 0.1, "reward": 0.5, "reward_spread": 0.2, "entropy": 2.0, "response_tokens": 40.0}


def told(*changes, before=3):
    watch = Watch(kl_limit=1.0)
    watch.see_earlier({**FINE, "step": 1, **change} for change in (*[{}] * before, *changes))
    return {finding.name: finding for finding in watch.found}


def test_nothing_is_told_of_a_run_that_goes_well():
    """Numbers like those of the start raise nothing."""
    assert told({}, {}) == told() == {}


@pytest.mark.parametrize(
    ("changes", "name", "stops"),
    [
        ([{"kl": 1.2}], "kl", True),
        ([{"reward_spread": 0.0}] * 5, "constant-reward", True),
        ([{"entropy": 0.3}], "entropy", False),
        ([{"response_tokens": 5.0}], "short", True),
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

    def gamed(first, now, wins, losses):
        line = {"reward": now, "holdout_wins": wins, "holdout_losses": losses}
        return is_gamed(line, first)

    assert gamed(0.1, 0.5, wins=4, losses=12)
    assert not gamed(0.1, 0.5, wins=6, losses=10)
    assert not gamed(0.5, 0.4, wins=4, losses=12)
    assert not gamed(0.1, 0.5, wins=0, losses=4)
    assert list(told({"reward": 0.9, "holdout_wins": 1, "holdout_losses": 15})) == ["gamed"]
