"""A PPO stage in two parts, and the held-out prompts that several processes share."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from advisor.record.files import trained_record
from tests.trainers.ppo.modules import metrics
from trainers.job.job import JUDGE, TRAIN
from trainers.ppo import heldout
from trainers.ppo.loaded import load_stage
from trainers.ppo.loop import train
from trainers.say.parts import Parts


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

    def wins(job):
        lines = metrics(job.run)
        return [(line["holdout_wins"], line["holdout_losses"]) for line in lines[:-1]]

    assert len(wins(one)) == 2
    assert wins(two) == wins(one)


def test_shared_prompts_get_the_answers_of_one_process(make, monkeypatch):
    """Each process generates answers to its own prompts, with the random numbers that one process
    draws for all of them: together they have its answers and its scores.
    """
    job = make(holdout=0.2)
    with Parts("ppo", shown=False) as parts:
        loaded = load_stage(job, parts)
    evaluator = heldout.HeldOutEvaluator(job, loaded.ppo, loaded.data.holdout, "")
    written, original = [], loaded.ppo.texts

    def texts(answers):
        written.append(original(answers))
        return written[-1]

    monkeypatch.setattr(loaded.ppo, "texts", texts)
    scores = evaluator._measure(evaluator.prompts, general=False).scores
    whole = written[-1]
    assert len(set(whole)) == len(whole) == 12
    tables = []

    def own_table(table):
        tables.append(table)
        return [[score, 1.0] for score, _ in table]

    monkeypatch.setattr(heldout, "sum_over_processes", own_table)
    for processes in (1, 2, 5):
        monkeypatch.setattr(heldout, "process_count", lambda count=processes: count)
        tables.clear()
        for rank in range(processes):
            monkeypatch.setattr(heldout, "process_rank", lambda rank=rank: rank)
            evaluator._shared(evaluator.prompts, len(whole))
            assert written[-1] == whole[rank::processes]
        sums = [sum(table[place][0] for table in tables) for place in range(len(whole))]
        assert sums == pytest.approx(scores)
