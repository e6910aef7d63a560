"""Memory that runs out in training: the step is done again in smaller parts, with the same rows, loss
and weights as a run that began with them.
"""

import json
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.trainers.alignment import REWARD, SHORT
from trainers.frame.files import read_json

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
    keys = {**keys, "max_steps": 1, "warmup": 0.0, "job_judge": False}
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
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)
    losses = [[line["loss"] for line in lines(job)] for job in (big, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-7)
    kept = read_json(big.output / "adjusted.json")["adjusted"]
    assert kept[-1]["micro_batch_size"] == least
    assert kept[-1]["grad_accum"] == 16 // least
    assert kept[0]["at_step"] == 0
    assert f"for the plan: stages.{objective}.micro_batch_size=4" in capsys.readouterr().err
