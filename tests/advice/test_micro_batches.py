"""Which micro-batch is chosen: nearly as fast as any that fits, with as little memory as that
takes.
"""

from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.search.micro_batches import HARDLY_FASTER, fastest_that_fits, trials_of
from advisor.advice.search.settings import MICRO_BATCHES
from advisor.estimate.memory.bands import HEAD_ROOM, memory_fits
from advisor.estimate.types import Estimate, MemoryEstimate
from advisor.ground.units import GIB

BAND = 0.12


def cost(need_gib, limit_gib):
    """An estimate with a band of 12 %."""
    need = round(need_gib * GIB)
    memory = MemoryEstimate(
        moments=(), low_bytes=need, high_bytes=need, need_bytes=need,
        need_low_bytes=round(need * (1 - BAND)), need_high_bytes=round(need * (1 + BAND)),
    )  # fmt: skip
    limit = round(limit_gib * GIB)
    return Estimate(fits=memory_fits(memory, limit), memory=memory, limit_bytes=limit)


@st.composite
def searches(draw):
    """Trials with what they need and how long a row takes: more rows need more, recomputing less;
    a larger micro-batch is seldom slower, recomputing never faster.
    """
    base, row, again = draw(st.floats(1, 60)), draw(st.floats(0.05, 10)), draw(st.floats(0.02, 1))
    launches, slower = draw(st.floats(0, 4)), draw(st.floats(1, 1.5))
    trials = trials_of(16, MICRO_BATCHES, recompute=True)
    need = {one: base + one.micro * row * (again if one.recompute else 1) for one in trials}
    pace = {one: (1 + launches / one.micro) * (slower if one.recompute else 1) for one in trials}
    return trials, need, pace, draw(st.sampled_from([8, 16, 24, 48, 80]))


def search(trials, need, pace, limit, *, trains_all=False):
    return fastest_that_fits(
        trials,
        cost_of=lambda one: cost(need[one], limit),
        pace_of=pace.__getitem__,
        on_cpu=True,  # no more than the head-room is left free
        trains_all=trains_all,
    )


@given(searches())
def test_what_is_chosen_is_nearly_as_fast_as_what_fits_and_needs_least(found):
    """Nothing that surely fits is 5 % faster; nothing that is as near to it needs less."""
    trials, need, pace, limit = found
    chosen = search(*found)
    least = min(need.values())
    if cost(least, limit).fits not in ("fits", "tight"):
        assert need[chosen.trial] == least
        return
    roomy = [
        one
        for one in trials
        if need[one] <= limit - chosen.spare_bytes / GIB and need[one] * (1 + BAND) <= limit
    ]
    assert chosen.trial in roomy or need[chosen.trial] == least
    fastest = min(pace[one] for one in roomy)
    assert pace[chosen.trial] <= HARDLY_FASTER * fastest * (1 + 1e-9)
    near = [one for one in roomy if pace[one] <= HARDLY_FASTER * fastest]
    assert need[chosen.trial] == min(need[one] for one in near)
    assert chosen.trial.micro * chosen.trial.grad_accum == 16
    assert chosen.spare_bytes <= round(HEAD_ROOM * limit * GIB)


@given(searches())
def test_no_trial_is_asked_about_twice(found):
    """No trial is estimated or timed twice: thousands of searches stand behind an answer."""
    trials, need, pace, limit = found
    costs, paces = [], []
    fastest_that_fits(
        trials,
        cost_of=lambda one: (costs.append(one), cost(need[one], limit))[1],
        pace_of=lambda one: (paces.append(one), pace[one])[1],
        on_cpu=True,
        trains_all=True,
    )
    assert len(costs) <= len(set(costs)) + 1  # the whole batch at once may be asked about again
    assert len(paces) == len(set(paces))


def test_recomputing_that_costs_nothing_is_taken():
    """Memory stays free; where it costs, one row is enough if more take as long for each."""
    trials = trials_of(16, MICRO_BATCHES, recompute=True)
    need = {one: 18 + one.micro * (0.7 if one.recompute else 6) for one in trials}
    found = search(trials, need, {one: 10 + 0.3 * one.recompute for one in trials}, 80)
    assert (found.trial.micro, found.trial.recompute) == (1, True)
    assert found.recompute_saves_memory_only
    bound = search(trials, need, {one: 1 + 0.3 * one.recompute for one in trials}, 80)
    assert (bound.trial.micro, bound.trial.recompute) == (1, False)


def test_the_whole_batch_at_once_may_need_least():
    """Full tuning with a single micro-batch keeps no gradients beside its activations."""
    trials = trials_of(4, MICRO_BATCHES[2:], recompute=True)
    need = {one: 20 + one.micro * 0.5 + (8 if one.grad_accum > 1 else 0) for one in trials}
    found = search(trials, need, dict.fromkeys(trials, 1.0), 24, trains_all=True)
    assert (found.trial.micro, found.trial.grad_accum) == (4, 1)
