"""Whole stages on a pretended GPU: every tensor is where the plan says, from loading to the check of
the saved result, and a tensor left on the host is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise, product
from typing import Any

import pytest
from msgspec import structs

pytest.importorskip("torch")

import torch

from advisor.plan.model import Launch
from tests.trainers.alignment import keys_of, result_of
from tests.trainers.pretend_gpu import GPU, HOST, pretend_gpu
from tests.trainers.runs import break_at
from trainers.job.job import Job
from trainers.keep.progress import RunCallback
from trainers.start import loading
from trainers.step import settings

GPU_KEYS = {"weights_dtype": "bfloat16", "precision": "mixed"}


def on_gpu(job: Job) -> Job:
    return replace(job, plan=structs.replace(job.plan, launch=Launch(device="cuda")))


def train(job: Job) -> dict[str, Any]:
    """What the stage says of itself, trained on the pretended GPU."""
    with pretend_gpu():
        import_module(f"trainers.{job.stage.objective}").train(on_gpu(job))
    return result_of(job)


# --------------------------------------------------------------------------- the pretended GPU


def test_operations_over_both_devices_are_refused() -> None:
    """A host tensor with dimensions never meets one on the GPU, in either direction and in the
    backward pass; scalars do, and host indices into a GPU tensor, as on CUDA.
    """
    table = torch.arange(12.0).reshape(4, 3)
    with pretend_gpu():
        there = table.to("cuda")
        here = torch.ones(4, dtype=torch.long)
        assert (there.device, here.device, table.device) == (GPU, HOST, HOST)
        assert (there + torch.tensor(1.0)).device == GPU
        assert there[here].device == GPU
        assert there.cpu().device == HOST
        for wrong in (
            lambda: there + table,
            lambda: torch.nn.functional.embedding(here, there),
            lambda: torch.cat([there, table]),
            lambda: table[here.to(GPU)],
            lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="can't convert cuda"):
            there.numpy()


def test_gradients_and_states_are_on_the_gpu() -> None:
    """What the backward pass and an optimizer make is where the weight is."""
    with pretend_gpu():
        layer = torch.nn.Linear(3, 2).to("cuda")
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(torch.zeros(1, 3, device="cuda")).sum().backward()
        optimizer.step()
        assert all(one.device == GPU and one.grad.device == GPU for one in layer.parameters())
        states = [value for state in optimizer.state.values() for value in state.values()]
        assert len(states) == 6
        assert all(value.device == GPU for value in states)
    assert layer.weight.device == HOST
    assert not torch.cuda.is_available()


def test_a_model_left_on_the_host_is_found(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a model loaded and not moved, a stage would fail here as it would on a GPU.

    accelerate would still move it as training starts, so that is switched off, too.
    """
    original = loading.load_base

    def on_host(job: Job, device: Any, *args: Any, **rest: Any) -> Any:
        return original(job, HOST, *args, **rest)

    monkeypatch.setattr(loading, "load_base", on_host)
    monkeypatch.setattr("transformers.Trainer._move_model_to_device", lambda *_: None)
    monkeypatch.setattr("accelerate.Accelerator.prepare_model", lambda self, model, **_: model)
    with pytest.raises(RuntimeError, match="same device"):
        train(make(**GPU_KEYS, job_judge=False))


# --------------------------------------------------------------------------- whole stages


def test_sft_runs_whole_on_the_gpu(make: Callable[..., Job]) -> None:
    """Evaluation before, training, checkpoint, saving, reloading, evaluation after: all of it on
    the plan's device.
    """
    result = train(make(**GPU_KEYS, job_judge=True, holdout=0.1, job_max_steps=1))
    assert result["resolved"]["device"] == "cuda:0"
    assert result["resolved"]["autocast"] == "bfloat16"
    assert result["measured"]["counter"] == "allocated"
    assert result["evaluation"]["rows"] > 0
    assert any("loaded by" in check["text"] and check["ok"] for check in result["checks"])


SLOW = {("rm", "prefix"), ("grpo", "ia3"), ("ppo", "lora")}
WHOLE_RUNS = [
    pytest.param(*cell, marks=pytest.mark.slow if cell in SLOW else pytest.mark.long)
    for cell in product(
        ("dpo", "orpo", "kto", "rm", "grpo", "rloo", "ppo"),
        ("full", "lora", "adapter", "prefix", "ia3"),
    )
]


@pytest.mark.parametrize(("objective", "update"), WHOLE_RUNS)
def test_every_objective_runs_whole_on_the_gpu(
    align: Callable[..., Job], objective: str, update: str
) -> None:
    """Every objective under every update trains, is evaluated, saved and reloaded on the GPU."""
    result = train(align(objective, **keys_of(objective, update, **GPU_KEYS, max_steps=2)))
    assert result["resolved"]["device"] == "cuda:0"
    assert result["evaluation"] is not None


def test_a_run_resumes_on_the_gpu(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States read from a checkpoint go back to the GPU, and training goes on."""
    job = make(**GPU_KEYS, save_steps=1, job_judge=False)
    with pretend_gpu():
        break_at(2, on_gpu(job), monkeypatch)
    assert train(job)["steps"] == 3


def test_a_dry_run_forgives_a_step_that_the_scaler_skips(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scale of a float16 loss is a guess: gradients that overflow with it are no failure
    of a dry run, as they are none of a run.
    """
    original = torch.amp.GradScaler.__init__

    def too_large(self: Any, device: str = "cuda", *args: Any, **rest: Any) -> None:
        original(self, device, init_scale=2.0**100)

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", too_large)
    job = make(weights_dtype="float16", precision="mixed", job_dry_run=True)
    with pretend_gpu(capability=(7, 5)):
        import_module("trainers.sft").train(on_gpu(job))
    assert (job.output / "dry_run.json").is_file()


# --------------------------------------------------------------------------- waiting


def waits_of_a_step(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Where the host waited for the GPU, for each step between two that write a line."""
    monkeypatch.setattr(settings, "LOGGED_LINES", 1)
    ends: list[int] = []
    original = RunCallback.on_step_end
    with pretend_gpu() as calls:
        waits = calls.operations.waits

        def on_step_end(self: Any, *args: Any, **rest: Any) -> Any:
            found = original(self, *args, **rest)
            ends.append(len(waits))
            return found

        monkeypatch.setattr(RunCallback, "on_step_end", on_step_end)
        import_module(f"trainers.{job.stage.objective}").train(on_gpu(job))
    steps = [waits[begin:end] for begin, end in pairwise(ends)]
    return steps[1:-1]  # without the first line, which step 1 leaves, and the last


@pytest.mark.parametrize(
    ("keys", "looks"),
    [
        ({"packing": True}, 1),
        ({"grad_accum": 2}, 4),
        ({"update": "full", "optimizer": "muon"}, 2),
        ({"update": "full", "optimizer": "adamw_split", "precision": "pure"}, 2),
    ],
)
def test_nothing_holds_the_gpu_up(
    keys: dict[str, Any], looks: int, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lines of metrics the host never waits for the GPU: not for batches, counts, norms
    or optimizers. transformers alone does, to see which mask attention needs: twice for a padded
    micro-batch, once for a packed one.
    """
    job = make(**{**GPU_KEYS, "max_steps": 8, "save_steps": 100, "job_judge": False, **keys})
    steps = waits_of_a_step(job, monkeypatch)
    assert len(steps) == 5
    found = {wait for step in steps for wait in step}
    assert found == {"_local_scalar_dense in transformers.masking_utils"}
    assert max(map(len, steps)) == looks
