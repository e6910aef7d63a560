"""A paged optimizer's state stays in paged memory after a run resumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

import torch

from trainers.keep import checkpoints


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


def test_loaded_states_are_paged_and_the_same(tmp_path, monkeypatch):
    """Both moments come back in paged buffers with the same numbers, whose table is one for all."""
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
    checkpoints.save_training(tmp_path, {"weights": weights}, first, weights=True)

    resumed = optimizer_over(copy, monkeypatch)
    copy.data.zero_()
    wrapped = SimpleNamespace(optimizer=resumed)  # as accelerate does
    checkpoints.load_training(tmp_path, {"weights": copy}, wrapped)
    found = resumed.state[copy]
    for name in ("state1", "state2"):
        assert found[name].is_paged
        assert torch.equal(found[name], state[name])
    assert found["step"] == 3
    assert torch.equal(copy, weights)
