"""What a run keeps in the memory of the computer where it offloads."""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate.memory.gradients import gradients
from advisor.estimate.memory.optimizer_states import state_size
from advisor.estimate.memory.static import other_roles, weights
from advisor.estimate.model.dims import dims_of
from advisor.estimate.resolved_run import resolve
from advisor.estimate.types import RunSpec
from advisor.ground.types import ModelShape


def host_bytes(spec: RunSpec, shape: ModelShape, *, machines: int = 1) -> int | None:
    """Bytes that lie in the memory of each machine: its GPUs' parts of weights, gradients and
    optimizer states. None where nothing is offloaded, or the dimensions are not known.

    Left out: page-locked buffers that torch rounds up, and the checkpoint while it is read.
    """
    dims = dims_of(shape)
    if dims is None or not spec.offload_weights:
        return None
    s = resolve(replace(spec, offload_weights=False), dims)
    here = sum(term.size_bytes for term in (*weights(s), *gradients(s), *other_roles(s)))
    return round((here + state_size(s) / s.shard_states) * s.gpus / machines)
