"""PPO, which has a loop of its own, logs to the plan's trackers too."""

import pytest

pytest.importorskip("torch")

from tests.trainers.test_trackers import as_written, events, expected, tracked
from trainers.ppo import train


def test_tensorboard_has_the_numbers_of_each_update(make):
    """Under the names of metrics.jsonl."""
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    job = make(micro_batch_size=4, grad_accum=1, holdout=0, job_judge=False)
    job = tracked(job, "tensorboard")
    train(job)
    found, _ = events(job, "ppo")
    assert found == as_written(expected(job))
    assert {"reward", "kl", "loss"} <= set(found)
    assert [step for step, _ in found["reward"]] == [1, 2]
