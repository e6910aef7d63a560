"""Lines of metrics and loader processes on a GPU, tried on the CPU with the GPU's settings."""

import pytest
import torch

from advisor.ground.errors import TrainingFailed
from tests.trainers.runs import break_at, losses, metrics, same, trained, weights
from trainers import sft
from trainers.job.files import read_json
from trainers.keep import progress
from trainers.step import settings

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_a_gpu_is_asked_for_a_line_every_few_steps():
    """On the CPU each step has a line; a run on a GPU has at least fifty, or each of its steps."""
    every = settings.log_every
    assert [every(CPU, steps) for steps in (3, 5000)] == [1, 1]
    assert [every(GPU, steps) for steps in (3, 60, 300, 600, 5000)] == [1, 1, 6, 10, 10]
    # A long run has a log of bounded size, whatever it runs on.
    assert [every(CPU, steps) for steps in (20_000, 1_000_000)] == [4, 200]
    assert [every(GPU, steps) for steps in (20_000, 1_000_000)] == [10, 200]


def test_a_gpu_gets_its_batches_from_other_processes(monkeypatch):
    """Two per process where there is a core for them; none on the CPU, and none that would have to
    be handed the rows by pickle.
    """
    monkeypatch.setattr(settings, "usable_cores", lambda: 16)
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "fork")
    assert (settings.loader_workers(GPU), settings.loader_workers(CPU)) == (2, 0)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert settings.loader_workers(GPU) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "forkserver")
    assert settings.loader_workers(GPU) == 0


def like_a_gpu(monkeypatch):
    """A line every third step and two loader processes, as a longer run on a GPU has them."""
    monkeypatch.setattr(settings, "log_every", lambda device, steps: 3)
    monkeypatch.setattr(settings, "loader_workers", lambda device: 2)


def test_lines_of_several_steps_are_their_means_and_resume_equal(make, monkeypatch, tmp_path):
    """The first step, each third, each saved and the last have a line; a line holds the mean of its
    steps, the first and the last of their step alone. The clock and the seconds of training go on
    over an interruption, and the parts of the attempt are its whole time. With loader processes,
    interrupted and resumed, the weights are bit for bit the same.
    """
    keys = {"max_steps": 6, "save_steps": 4, "dropout": 0.1, "job_judge": False}
    single = make(**keys, job_run=tmp_path / "single")
    monkeypatch.setattr(progress, "KEPT_LOGS", 2)
    sft.train(single)
    state = read_json(single.checkpoints / "checkpoint-6" / "trainer_state.json")
    assert len(state["log_history"]) <= 2, "metrics.jsonl has them all"
    like_a_gpu(monkeypatch)
    job = make(**keys, job_run=tmp_path / "interrupted")
    break_at(6, job, monkeypatch)
    found = trained(job)
    assert [line["step"] for line in metrics(job)] == [1, 3, 4, 5, 6]
    each = losses(single)
    assert losses(job) == pytest.approx([each[0], sum(each[1:3]) / 2, *each[3:]], abs=1e-6)
    assert (found["loss_first"], found["loss_last"]) == pytest.approx((each[0], each[5]), abs=1e-6)
    clock = [line["elapsed_s"] for line in metrics(job)]
    assert clock == sorted(clock)
    assert found["measured"]["train_s"] >= clock[-1]
    parts = [found["times"][part] for part in ("load_s", "before_s", "train_s", "after_s")]
    assert min(parts) > 0
    assert found["times"]["total_s"] == pytest.approx(sum(parts), abs=0.01)
    assert same(weights(single), weights(job))


def test_a_loss_that_is_not_finite_between_two_lines_is_noticed(make, monkeypatch):
    """It stops the run at the next line, which comes before the next checkpoint is written."""
    from trainers.stage import trl_trainer

    like_a_gpu(monkeypatch)
    calls = []

    class Broken(trl_trainer.SFT):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            calls.append(loss)
            return loss * float("nan") if len(calls) == 2 else loss

    monkeypatch.setattr(trl_trainer, "SFT", Broken)
    job = make(max_steps=6, save_steps=6, job_judge=False)
    with pytest.raises(TrainingFailed, match=r"the loss became nan in steps 2 to 3; nothing was"):
        sft.train(job)
    assert not list(job.checkpoints.glob("*"))
