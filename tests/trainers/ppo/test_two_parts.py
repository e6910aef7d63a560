"""A PPO stage in two parts, and the held-out prompts that several processes share."""

from dataclasses import replace
from itertools import chain

import pytest

pytest.importorskip("torch")

from advisor.record.files import trained_record
from tests.trainers.ppo.modules import metrics
from tests.trainers.test_two_parts import without_clock
from trainers.evaluation.pairs import RewardEvaluator
from trainers.job.job import JUDGE, TRAIN
from trainers.ppo import loop, objective, train
from trainers.ppo.objective import PPO
from trainers.say.progress import Parts
from trainers.stage.load import build_stage, load_stage


def test_two_parts_come_to_the_result_of_one_process(make, tmp_path, monkeypatch):
    """The training answers held-out prompts on its way as one process does, and evaluates neither
    the policy before it nor the trained one; the judging comes to the same numbers.
    """
    keys = {"max_steps": 3, "holdout": 0.2}
    one = make(job_run=tmp_path / "one", **keys)
    train(one)
    measured = []
    original = RewardEvaluator._measure

    def measure(self, **keys):
        measured.append(self.job.part)
        return original(self, **keys)

    monkeypatch.setattr(RewardEvaluator, "_measure", measure)
    two = make(job_run=tmp_path / "two", **keys)
    train(replace(two, part=TRAIN))
    assert not measured
    assert trained_record(two.output).is_file()
    train(replace(two, part=JUDGE))
    assert measured == [JUDGE, JUDGE]
    assert without_clock(two) == without_clock(one)
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
        loaded = load_stage(job, PPO(), parts)
    monkeypatch.setattr(objective, "process_count", lambda: 5)
    shares = []
    for rank in range(5):
        monkeypatch.setattr(objective, "process_rank", lambda rank=rank: rank)
        ppo = build_stage(loaded, processes=1).trainer
        shares.append([row.number for row in ppo.held_out])
        ppo.scores_before = ppo.held_out_scores()
        assert ppo.look() == {"holdout_wins": 0, "holdout_losses": 0}
    assert sorted(chain(*shares)) == [row.number for row in loaded.data.holdout]
    assert len(shares[0]) == 3
    monkeypatch.setattr(loop, "over_processes", lambda *_: [7.0, 2.0])
    assert ppo.look() == {"holdout_wins": 7, "holdout_losses": 2}
