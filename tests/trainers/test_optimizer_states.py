"""A paged optimizer's state stays in paged memory after a run resumes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

import torch

from trainers.keep import checkpoints
from trainers.step.optimizer_states import load_optimizer


class Wrapper:
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def optimizer_over(parameter: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """bitsandbytes' own paged AdamW, whose buffers carry the mark of paged memory: without a GPU
    there is no managed memory to make them in.
    """
    found = bitsandbytes.optim.PagedAdamW32bit([parameter], lr=1e-3)

    def paged(p: Any, dtype: Any = torch.float32) -> Any:
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    monkeypatch.setattr(found, "get_state_buffer", paged)
    return found


@pytest.mark.parametrize("wrapped", [False, True])
def test_loaded_states_are_paged_and_the_same(wrapped, tmp_path, monkeypatch):
    """After `load_state_dict` alone both moments are plain tensors; loaded by us they are paged
    buffers with the same numbers, and the next step is that of the run that was never stopped.
    """
    weights = torch.nn.Parameter(torch.randn(64, 64))
    copy = torch.nn.Parameter(weights.detach().clone())
    first = optimizer_over(weights, monkeypatch)
    weights.grad = torch.ones_like(weights)
    first.initialized = True
    state = first.state[weights]
    first.init_state(first.param_groups[0], weights, 0, 0)
    state["state1"] += 0.25
    state["state2"] += 0.5
    state["step"] = 3
    checkpoints.save_state(tmp_path, "state", first.state_dict())
    saved = checkpoints.load_state(tmp_path, "state")

    plain = optimizer_over(copy, monkeypatch)
    plain.load_state_dict(checkpoints.load_state(tmp_path, "state"))
    assert not hasattr(plain.state[copy]["state1"], "is_paged")

    resumed = optimizer_over(copy, monkeypatch)
    load_optimizer(Wrapper(resumed) if wrapped else resumed, saved)
    found = resumed.state[copy]
    for name in ("state1", "state2"):
        assert found[name].is_paged
        assert torch.equal(found[name], state[name])
    assert found["step"] == 3


def test_other_optimizers_load_as_ever():
    """An optimizer that pages nothing gets its state by its own method."""
    weights = torch.nn.Parameter(torch.randn(3))
    one, other = torch.optim.AdamW([weights]), torch.optim.AdamW([weights])
    weights.grad = torch.ones(3)
    one.step()
    load_optimizer(other, one.state_dict())
    assert torch.equal(other.state[weights]["exp_avg"], one.state[weights]["exp_avg"])
