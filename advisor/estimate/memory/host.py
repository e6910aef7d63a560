"""Memory that a divided model needs of the machines themselves: while the base is read, and while
weights are put together to be saved; and what a run keeps there that offloads.
"""

from __future__ import annotations

from advisor.estimate.memory.gradients import gradients
from advisor.estimate.memory.optimizer_states import state_size
from advisor.estimate.memory.static import other_roles, weights
from advisor.estimate.run import Run
from advisor.estimate.types import HostMoment
from advisor.ground.types import FSDP

# Of a part that a process writes: the tensors, unless they are in host memory already, and the file
# that is made of them (torch/distributed/checkpoint/filesystem.py).
COPIES, COPIES_OFFLOADED = 2, 1


def host_bytes(run: Run) -> int | None:
    """Bytes that lie in the memory of each machine: its GPUs' parts of weights, gradients and
    optimizer states. None if nothing is offloaded, or the dimensions are not known.

    Left out: page-locked buffers that torch rounds up, and the checkpoint while it is read.
    """
    if not run.is_sized or not run.device.offloads:
        return None
    here = run.on(offloads=False, is_cpu=False)
    size = sum(term.size_bytes for term in (*weights(here), *gradients(here), *other_roles(here)))
    return round((size + state_size(here) / here.shard_states) * here.gpus / here.device.machines)


def host_moments(run: Run) -> tuple[HostMoment, ...]:
    """What each machine needs of its own memory, by moment; of the first one if they differ.

    Empty if no model is divided, for other trainers, and if the dimensions are not known.

    Left out: Python and its libraries (about 1 GiB a process), rows, page cache, and the file of a
    result while it is made.
    """
    if not run.is_sized or not run.is_ours or run.device.sharding != FSDP or run.device.gpus < 2:
        return ()
    kept = host_bytes(run) or 0
    run = run.on(offloads=False, is_cpu=False)
    beside = " beside what is offloaded" if kept else ""
    trained = run.trained_bytes
    copies = COPIES_OFFLOADED if kept else COPIES
    parts = copies * (trained + state_size(run)) / run.device.machines
    found = []
    if run.stage.quantization is None:  # a 4-bit base is quantised on each GPU, tensor by tensor
        whole = run.dims.params * run.weight_bytes
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
