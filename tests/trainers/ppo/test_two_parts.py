"""A PPO stage in two parts, and the held-out prompts that several processes share."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from advisor.record.files import trained_record
from tests.trainers.ppo.modules import metrics
from trainers.job.job import JUDGE, TRAIN
from trainers.ppo import heldout, train
from trainers.ppo.objective import PPO
from trainers.say.progress import Parts
from trainers.stage.build import build_stage
from trainers.stage.load import load_stage


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

    def measure(self, prompts, *, whole=True):
        measured.extend([self.job.part] * whole)
        return original(self, prompts, whole=whole)

    monkeypatch.setattr(heldout.HeldOutEvaluator, "_measure", measure)
    two = make(job_run=tmp_path / "two", **keys)
    train(replace(two, part=TRAIN))
    assert not measured
    assert trained_record(two.output).is_file()
    train(replace(two, part=JUDGE))
    assert measured == [JUDGE, JUDGE]
    assert result(two) == result(one)
    assert not trained_record(two.output).exists()

    def wins(job):
        lines = metrics(job.run)
        return [(line["holdout_wins"], line["holdout_losses"]) for line in lines[:-1]]

    assert len(wins(one)) == 2
    assert wins(two) == wins(one)


def test_processes_share_the_prompts_that_are_answered_on_the_way(make, monkeypatch):
    """Each process answers its own prompts before training and during it, and counts with the
    others: an unchanged policy neither wins nor loses.
    """
    job = replace(make(holdout=0.2), part=TRAIN)
    with Parts("ppo", shown=False) as parts:
        built = build_stage(load_stage(job, PPO(), parts), processes=1)
    asked, evaluator = [], built.trainer.evaluator
    original = built.trainer.generate

    def generate(prompts, *others):
        asked.append([row.number for row in prompts])
        return original(prompts, *others)

    monkeypatch.setattr(built.trainer, "generate", generate)
    monkeypatch.setattr(heldout, "process_count", lambda: 5)
    for rank in range(5):
        monkeypatch.setattr(heldout, "process_rank", lambda rank=rank: rank)
        evaluator.begin()
        assert evaluator.evaluate_midway() == {"holdout_wins": 0, "holdout_losses": 0}
        assert asked[-1] == asked[-2] == [row.number for row in evaluator.prompts[rank::5]]
    monkeypatch.setattr(heldout, "sum_over_processes", lambda table: [[7.0, 2.0]])
    assert evaluator.evaluate_midway() == {"holdout_wins": 7, "holdout_losses": 2}
