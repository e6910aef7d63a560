"""How the processes of a run find each other, and how long each of them waits for the others."""

from __future__ import annotations

from datetime import timedelta

from trainers.job.machine import process_count
from trainers.job.types import Device
from trainers.say.waiting import ConnectionLost

# For all to join, and for one that is alive and does not come to an exchange of gradients; one that
# ends is noticed at once (docs/reliability.md). A model may be loaded meanwhile.
JOIN_S = 1800
NEVER_CAME = ("DistStoreError", "DistNetworkError")  # torch's, while processes connect


def connect(device: Device) -> None:
    """Connect this process with the others of the run; nothing if it is alone. transformers does
    so with its arguments, on the CPU without a limit of ours, and a base that one process reads for
    all has to know of the others before.

    On CUDA also for tensors on the host, where offloaded gradients are clipped, and parts of a
    checkpoint agreed upon.

    Raises ConnectionLost if another one does not come.
    """
    if process_count() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    backend = "gloo" if device.type == "cpu" else "cuda:nccl,cpu:gloo"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=JOIN_S))
    except RuntimeError as error:
        if type(error).__name__ not in NEVER_CAME:
            raise
        raise ConnectionLost(
            f"not all of the {process_count()} processes joined the run within {waited()}",
            hint=(
                "one of them hangs, or cannot reach the others over the network; its output is"
                " above"
            ),
        ) from error


def waited() -> str:
    """How long they wait, in words."""
    return f"{JOIN_S // 60} minutes" if JOIN_S >= 60 else f"{JOIN_S} seconds"
