"""Memory that a divided model needs of the machines themselves: while the base is read, and while
weights are put together to be saved; and what a run keeps there that offloads.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate.memory.gradients import gradients
from advisor.estimate.memory.optimizer_states import state_size
from advisor.estimate.memory.static import other_roles, weights
from advisor.estimate.model.dims import dims_of
from advisor.estimate.resolved_run import resolve
from advisor.estimate.types import HostMoment, RunSpec
from advisor.ground.types import FSDP, ModelShape


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


# Of a part that a process writes: the tensors, unless they are in host memory already, and the file
# that is made of them (torch/distributed/checkpoint/filesystem.py).
COPIES, COPIES_OFFLOADED = 2, 1


def host_moments(spec: RunSpec, shape: ModelShape, *, machines: int = 1) -> tuple[HostMoment, ...]:
    """What each machine needs of its own memory, by moment; of the first one where they differ.

    Empty where no model is divided, for other trainers, and where the dimensions are not known.

    Left out: Python and its libraries (about 1 GiB a process), rows, page cache, and the file of a
    result while it is made.
    """
    dims = dims_of(shape)
    if dims is None or spec.framework is not None or spec.sharding != FSDP or spec.gpus < 2:
        return ()
    s = resolve(replace(spec, offload_weights=False), dims)
    kept = host_bytes(spec, shape, machines=machines) or 0
    beside = " beside what is offloaded" if kept else ""
    trained = s.trained_bytes
    copies = COPIES_OFFLOADED if kept else COPIES
    parts = copies * (trained + state_size(s)) / machines
    found = []
    if spec.quantization is None:  # a 4-bit base is quantised on each GPU, tensor by tensor
        whole = dims.params * s.weight_bytes
        because = "the base is read whole by one process of each machine, which sends the others"
        found.append(HostMoment("loading", round(whole), f"{because} their parts"))
    if kept:
        because = "weights, gradients and optimizer states are offloaded"
        found.append(HostMoment("training", kept, because))
    because = (
        "each process writes its part of the trained weights and of the optimizer's states from a"
        f" copy{beside}"
    )
    found.append(HostMoment("checkpoint", round(kept + parts), because))
    because = f"the trained weights are put together in the first process{beside}"
    found.append(HostMoment("saving", round(kept + trained), because))
    return tuple(found)
