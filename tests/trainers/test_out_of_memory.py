"""Memory that runs out: in which words, and what a stage does that is started again with a smaller
micro-batch. tests/launch/test_failures.py starts it again.
"""

import pytest
import torch

from advisor.record.stage import Adjusted, Adjustment
from tests.trainers.alignment import REWARD, SHORT
from tests.trainers.runs import break_at, losses, same, trained, weights
from trainers import sft
from trainers.job.files import write_json
from trainers.job.libraries import lack_of_memory

NO_ROOM = "CUDA out of memory. Tried to allocate 20.00 GiB"


def adjust(job, rows):
    """Leave what the launcher leaves before it starts the stage again."""
    job.output.mkdir(parents=True, exist_ok=True)
    whole = job.entry.stage.effective_batch_size
    change = Adjustment(micro_batch_size=rows, grad_accum=whole // rows)
    write_json(job.output / "adjusted.json", Adjusted(adjusted=(change,)).to_dict())


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        ("sft", {"dropout": 0.1}),
        ("sft", {"packing": True, "seq_len": 96}),
        ("dpo", {}),
        ("kto", {}),
        ("rm", {}),
        ("grpo", {**SHORT, "beta": 0.1}),
        pytest.param("orpo", {}, marks=pytest.mark.slow),
        pytest.param("rloo", SHORT, marks=pytest.mark.slow),
    ],
    ids=["sft", "packed", "dpo", "kto", "rm", "grpo", "orpo", "rloo"],
)
def test_a_stage_that_starts_again_trains_as_if_it_was_planned_so(
    align, make, tmp_path, capsys, objective, keys
):
    """With half the micro-batch and twice the accumulation: the same weights and losses. Answers that
    are drawn fewer at a time are other answers.
    """
    (tmp_path / "own.py").write_text(REWARD)
    keys = {**keys, "max_steps": 2, "warmup": 0.0, "job_judge": False}

    def build(size, name):
        sizes = {"micro_batch_size": size, "grad_accum": 16 // size, "job_run": tmp_path / name}
        given = {**keys, **sizes}
        return make(**given) if objective == "sft" else align(objective, **given)

    planned, again = build(4, "planned"), build(8, "again")
    trained(planned)
    adjust(again, 4)
    capsys.readouterr()
    result = trained(again)
    found, wanted = weights(again), weights(planned)
    assert found.keys() == wanted.keys()
    if objective in ("grpo", "rloo"):
        assert len(losses(again)) == len(losses(planned)) == 2
    else:
        assert same(found, wanted)
        assert losses(again) == losses(planned)
    said = "micro_batch_size is 4 instead of 8, with the same effective batch size"
    assert said in capsys.readouterr().err
    assert result["resolved"]["trl"]["per_device_train_batch_size"] == 4


@pytest.mark.parametrize("grouped", [False, True])
def test_it_resumes_from_the_checkpoint_of_the_larger_micro_batch(
    make, tmp_path, monkeypatch, capsys, grouped
):
    """With the rows that the steps to come had anyway, also where rows of similar length share a
    micro-batch: weights as of a run that had room, but for rounding.
    """
    keys = {"micro_batch_size": 8, "grad_accum": 1, "max_steps": 6, "save_steps": 2}
    whole, broken = (
        make(**keys, group_by_length=grouped, job_judge=False, job_run=tmp_path / name)
        for name in ("whole", "broken")
    )
    sft.train(whole)
    break_at(3, broken, monkeypatch)
    adjust(broken, 2)
    capsys.readouterr()
    sft.train(broken)
    assert "resuming after step 2" in capsys.readouterr().err
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(broken)[name], value, rtol=0, atol=1e-5)


def test_another_plan_begins_with_its_own_micro_batch(make, tmp_path, capsys):
    """What was left beside another effective batch size is of another plan."""
    job = make(micro_batch_size=8, grad_accum=1, max_steps=2, job_judge=False)
    adjust(make(micro_batch_size=8, grad_accum=4), 4)
    sft.train(job)
    assert "micro_batch_size is" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(NO_ROOM),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        RuntimeError("NCCL error: Cuda failure 2 'out of memory'"),
        RuntimeError("unable to mmap 538 bytes from file <model>: Cannot allocate memory (12)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
    ids=lambda error: str(error)[:24],
)
def test_memory_runs_out_in_many_words(error):
    """Of torch, its libraries and the system; other errors are none."""
    assert lack_of_memory(error)
    outer = RuntimeError("in a worker")
    outer.__cause__ = error
    assert "in a worker" not in lack_of_memory(outer)
    assert not lack_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not lack_of_memory(OSError(28, "No space left on device"))
