"""A PPO stage in two parts, and the held-out prompts that several processes share."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from advisor.record.files import trained_record
from tests.trainers.ppo.modules import metrics
from trainers.job.job import JUDGE, TRAIN
from trainers.ppo import heldout
from trainers.ppo.loop import train


def result(job):
    """What result.json says, without the clock and the folder."""
    text = (job.output / "result.json").read_text().replace(str(job.run), "RUN")
    found = json.loads(text)
    for key in ("times", "duration_s", "measured"):
        found.pop(key)
    found.pop("launch", None)  # with the peak memory
    found["evaluation"].pop("seconds")
    found["files"].pop("tokenizer.json")  # generating leaves its padding in the tokenizer
    return found


def test_two_parts_come_to_the_result_of_one_process(make, tmp_path, monkeypatch):
    """The training answers held-out prompts on its way as one process does, and evaluates neither
    the policy before it nor the trained one; the judging comes to the same numbers.
    """
    keys = {"max_steps": 3, "holdout": 0.2}
    one = make(job_run=tmp_path / "one", **keys)
    train(one)
    measured = []
    original = heldout.HeldOutEvaluator._measure

    def measure(self, prompts, **options):
        measured.append(self.job.part)
        return original(self, prompts, **options)

    monkeypatch.setattr(heldout.HeldOutEvaluator, "_measure", measure)
    two = make(job_run=tmp_path / "two", **keys)
    train(replace(two, part=TRAIN))
    assert not measured
    assert trained_record(two.output).is_file()
    train(replace(two, part=JUDGE))
    assert measured == [JUDGE, JUDGE]
    assert result(two) == result(one)
    assert not trained_record(two.output).exists()

    for job in (one, two):
        assert len([line["holdout_wins"] for line in metrics(job.run)[:-1]]) == 2
