"""Memory that runs out in training: the step is done again in smaller parts, with the same rows, loss
and weights as a run that began with them.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from advisor.ground.errors import OutOfMemory
from tests.conftest import ROOT
from tests.trainers.alignment import REWARD, SHORT
from tests.trainers.runs import break_at
from trainers import dpo, sft
from trainers.__main__ import explain_error
from trainers.job.files import read_json
from trainers.keep.held_out_curve import HeldOutCurve, Schedule
from trainers.step.out_of_memory import first_line, in_halves, is_out_of_memory

NO_ROOM = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Room:
    """A device with room for so many rows at a time, from a micro-batch on."""

    def __init__(self, rows, *, where="backward", since=1, sides=1):
        self.rows, self.where, self.since, self.sides = rows, where, since, sides
        self.failed = self.seen = 0

    @contextmanager
    def around(self, trainer, inputs):
        """Fail within, in the forward pass, or after most gradients of the backward pass."""
        self.seen += 1
        columns = ("completion_ids", "chosen_input_ids", "input_ids")
        rows = len(next(inputs[name] for name in columns if name in inputs)) // self.sides
        hooks = []
        if rows > self.rows and self.seen > self.since:
            first = next(p for p in trainer.model.parameters() if p.requires_grad)
            base = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Embedding))
            hooks.append(
                first.register_hook(self.fail)
                if self.where == "backward"
                else base.register_forward_pre_hook(self.fail)
            )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def fail(self, *_):
        self.failed += 1
        raise torch.OutOfMemoryError(NO_ROOM)


@pytest.fixture
def room(monkeypatch):
    """`room(rows, ...)`: from now on a trainer has room for so many rows at a time."""

    def limit(rows, **keys):
        found = Room(rows, **keys)
        plain = transformers.Trainer.training_step

        def step(self, model, inputs, count):
            with found.around(self, inputs):
                return plain(self, model, inputs, count)

        monkeypatch.setattr(transformers.Trainer, "training_step", step)
        return found

    return limit


def weights(job):
    return load_file(job.output / "adapter_model.safetensors")


def lines(job):
    return [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]


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
def test_a_step_that_does_not_fit_is_done_again_in_parts(
    align, make, tmp_path, room, capsys, objective, keys
):
    """The second micro-batch of the first step runs out of memory behind most of its gradients.
    Adapter and losses come out as those of a run that began with the smaller micro-batch.
    """
    (tmp_path / "own.py").write_text(REWARD)
    least = 4 if objective == "kto" else 2
    # The KL divergence that KTO estimates is zero in the first step.
    steps = 2 if objective == "kto" else 1
    keys = {**keys, "max_steps": steps, "warmup": 0.0, "job_judge": False}
    build = make if objective == "sft" else lambda **more: align(objective, **more)
    train = import_module(f"trainers.{objective}").train

    small = build(
        **{**keys, "micro_batch_size": least, "grad_accum": 16 // least}, job_run=tmp_path / "small"
    )
    train(small)
    device = room(least, sides=2 if objective in ("dpo", "rm") else 1)
    big = build(**{**keys, "micro_batch_size": 8, "grad_accum": 2}, job_run=tmp_path / "big")
    train(big)
    assert device.failed == (1 if objective == "kto" else 2)
    found, wanted = weights(big), weights(small)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7 if steps == 1 else 1e-6)
    losses = [[line["loss"] for line in lines(job)] for job in (big, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-7)
    kept = read_json(big.output / "adjusted.json")["adjusted"]
    assert kept[-1]["micro_batch_size"] == least
    assert kept[-1]["grad_accum"] == 16 // least
    assert kept[0]["at_step"] == 0
    assert f"for the plan: stages.{objective}.micro_batch_size=4" in capsys.readouterr().err


def test_the_last_step_of_an_epoch_keeps_the_weights_of_its_rows(align, tmp_path, room):
    """Six of fourteen rows run out of memory in the second micro-batch of a step. The plan weighs
    them more than the other eight (a mean of two means), and so do their parts.
    """
    keys = {"micro_batch_size": 8, "grad_accum": 2, "max_steps": 2, "warmup": 0.0}
    fits, short = (
        align("dpo", **keys, job_judge=False, job_run=tmp_path / name) for name in ("fits", "short")
    )
    dpo.train(fits)
    device = room(3, since=3, sides=2)
    dpo.train(short)
    assert device.failed == 2
    found, wanted = weights(short), weights(fits)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert lines(short)[1]["loss"] == pytest.approx(lines(fits)[1]["loss"], abs=1e-5)


def test_a_smaller_setting_stays_for_the_steps_to_come_and_for_a_resumed_run(
    make, tmp_path, room, monkeypatch, capsys
):
    """Only one step fails; a run that is stopped later resumes with the smaller setting, and ends
    with the weights of one that was not.
    """
    keys = {"micro_batch_size": 8, "grad_accum": 1, "max_steps": 4, "save_steps": 2}
    whole, broken = (
        make(**keys, job_judge=False, job_run=tmp_path / name) for name in ("whole", "broken")
    )
    device = room(2, where="forward")
    sft.train(whole)
    device.seen = 0
    break_at(3, broken, monkeypatch)
    failed = device.failed
    capsys.readouterr()
    sft.train(broken)
    assert device.failed == failed
    said = capsys.readouterr().err
    assert "resuming after step 2" in said
    assert "micro_batch_size is 2 instead of 8, with the same effective batch size" in said
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[name]), name


def test_an_optimizer_that_runs_out_is_not_repeated(make, monkeypatch):
    """Half of the weights may be changed: the trainer ends, and the launcher starts it again."""
    job = make(job_judge=False)

    def step(*_, **__):
        raise torch.OutOfMemoryError(NO_ROOM)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        sft.train(job)
    error = explain_error(caught.value, job)
    assert isinstance(error, OutOfMemory)
    assert "out of memory while training: CUDA out of memory" in error.text()
    assert not (job.output / "adjusted.json").exists()


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
    assert is_out_of_memory(error)
    outer = RuntimeError("in a worker")
    outer.__cause__ = error
    assert is_out_of_memory(outer)
    assert "in a worker" not in first_line(outer)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))


def test_what_is_only_looked_at_is_halved(capsys):
    """Evaluations go on with half of the rows at once, in their order, down to single ones."""
    seen = []

    def measure(rows):
        if len(rows) > 2:
            raise MemoryError
        seen.append(list(rows))
        return sum(rows)

    assert in_halves(list(range(7)), measure) == [1, 5, 9, 6]
    assert seen == [[0, 1], [2, 3], [4, 5], [6]]
    assert "7 rows are too many to look at at once, now 4" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        in_halves([1, 2], lambda rows: 1 // 0)


def test_the_held_out_loss_of_halves_is_that_of_the_whole():
    """A micro-batch that does not fit is put together again from half of its rows."""

    def loss(trainer, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError(NO_ROOM)
        return float(sum(rows)), float(len(rows))

    alone = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), args=None)
    curve = HeldOutCurve(
        alone,
        Schedule(1, 5, 0.01),
        [[1, 2, 3, 4], [5]],
        loss,
        steps=2,
        of_rows=5,
        folder=None,
        groups=[[1, 2, 3, 4], [5]],
        inputs=lambda trainer, rows: rows,
    )
    assert curve.measure(1) == 3.0


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import AutoConfig, LlamaForCausalLM
from advisor.plan.model import Plan, PlanData, Stage
from tests.conftest import save_tiny_model
from trainers import sft
from trainers.stage import training
from trainers.job.job import make_job
from trainers.say.parts import Parts

folder = Path(sys.argv[1])
save_tiny_model(folder / "model")
config = AutoConfig.from_pretrained(folder / "model")
config.intermediate_size = 8192  # three MLP activations of eight rows' tokens are 50 MB a layer
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained(folder / "model")
enter = training.enter

def limited(room):
    def enters(job, what):
        enter(job, what)
        held = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
        most = held * 1024 + room if what == "training" else -1
        resource.setrlimit(resource.RLIMIT_DATA, (most, -1))
    return enters

begin = Parts.begin

def begins(*args, **keys):  # the limit ends with the training: Python waits for a thread that cannot start
    resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
    begin(*args, **keys)

Parts.begin = begins
keys = dict(name="sft", objective="sft", update="lora", learning_rate=5e-4, max_steps=2)
plan = Plan(
    name="t",
    model=str(folder / "model"),
    data=PlanData(path=str(folder / "chats.jsonl")),
    stages=(Stage(**keys, warmup=0.0, micro_batch_size=8, seq_len=256),),
)
# The limited one first: what a run has freed, the next one finds.
for name, room in (("parts", 95 * 2**20), ("whole", 2**40)):
    training.enter = limited(room)
    sft.train(make_job(plan, stage="sft", run=folder / name, folder=folder, judge=False))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_real_limit_on_memory_is_kept(tmp_path):
    """The system refuses more than 95 MiB beside what the process held when training began: eight
    rows do not fit, two do, and the weights come out as without a limit but for rounding.
    """
    answer = "Thank you for writing, we will look at your order today. " * 4
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is parcel {number}?"},
                {"role": "assistant", "content": f"{number}: {answer}"},
            ]
        }
        for number in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "whole" / "stages" / "sft" / "adjusted.json").exists()
    kept = read_json(tmp_path / "parts" / "stages" / "sft" / "adjusted.json")["adjusted"]
    assert 1 <= kept[-1]["micro_batch_size"] < 8
    assert kept[0]["why"].startswith("DefaultCPUAllocator: can't allocate memory")
    found, wanted = (
        load_file(tmp_path / name / "stages" / "sft" / "adapter_model.safetensors")
        for name in ("parts", "whole")
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
