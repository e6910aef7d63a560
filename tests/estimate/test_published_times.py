"""Estimates of speed against what other people measured (tests/data_cases/throughput.yaml)."""

from __future__ import annotations

import statistics

import pytest
from msgspec.structs import replace

from advisor.estimate.time import time_estimate
from advisor.estimate.trainers import trainer_of
from tools.generate.accuracy_time import (
    by,
    left_out,
    median_factor,
    over_sources,
    scored,
    source_of,
    within,
)


@pytest.fixture(scope="module")
def cases():
    found = scored()
    assert len(found) == 79
    return found


def test_the_median_speed_is_within_15_percent(cases):
    """Of all runs, and of those of every source within a factor of 1.7."""
    assert median_factor(cases) < 1.15
    assert within(cases, 1.5) > 0.9
    assert within(cases, 2.0) > 0.97
    assert over_sources(cases) < 1.25
    assert max(median_factor(group) for group in by(cases, source_of).values()) < 1.7


def test_a_source_nobody_fitted_is_as_near(cases):
    """The two fitted rates without the source that is asked about."""
    out = left_out()
    assert len(out) == len(cases)
    assert over_sources(out) < 1.25
    assert within(out, 2.0) > 0.95


def test_nine_in_ten_measured_steps_lie_inside_the_band():
    """With the source left out; and the band says something: less than a factor of 2.3 wide."""
    out = left_out()
    assert 0.88 <= statistics.mean(one.is_inside for one in out) <= 0.98
    assert statistics.median(one.high / one.low for one in out) < 2.3


def test_no_source_is_needed_to_be_named(cases):
    """Without the name of its framework a run's speed is estimated as well."""
    factors = []
    for one in cases:
        run = one.run
        unknown = replace(run.run, trainer=trainer_of("unknown trainer", {}, None))
        found = time_estimate(unknown, run.machine)
        ratio = found.tokens_per_s_per_gpu / run.facts["tokens_per_s_per_gpu"]
        factors.append(max(ratio, 1 / ratio))
    assert statistics.median(factors) < 1.15
