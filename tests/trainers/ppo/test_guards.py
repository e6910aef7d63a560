"""What is told, and what stops a run, given the numbers of its updates."""

import pytest

from trainers.rewards.watch import Watch, is_gamed

pytestmark = pytest.mark.light

FINE = {"kl": 0.1, "reward": 0.5, "reward_spread": 0.2, "entropy": 2.0, "response_tokens": 40.0}


def told(*changes, before=3):
    watch = Watch(kl_limit=1.0)
    watch.see_earlier({**FINE, "step": 1, **change} for change in (*[{}] * before, *changes))
    return {finding.name: finding for finding in watch.found}


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


SAME = [{"reward_spread": 0.0}] * 4


@pytest.mark.parametrize("lines", [[], [{}, {}], SAME, [*SAME, {"reward_spread": 0.1}, *SAME[:1]]])
def test_nothing_is_told_of_a_run_that_goes_well(lines):
    """Numbers like those of the start raise nothing. A rare reward is not a constant one: four
    updates without a difference are borne, and one answer that differs ends the count.
    """
    assert told(*lines) == {}


def test_a_reward_is_gamed_where_it_rises_and_held_out_answers_lose():
    """16 prompts: 4 won and 12 lost is 2 standard errors below even; 6 and 10 is 1."""
    for first, now, wins, losses, gamed in (
        (0.1, 0.5, 4, 12, True),
        (0.1, 0.5, 6, 10, False),
        (0.5, 0.4, 4, 12, False),
        (0.1, 0.5, 0, 4, False),
    ):
        line = {"reward": now, "holdout_wins": wins, "holdout_losses": losses}
        assert is_gamed(line, first) is gamed
    assert list(told({"reward": 0.9, "holdout_wins": 1, "holdout_losses": 15})) == ["gamed"]
