"""A model that is judged, over several GPUs if it is too large for one: several processes have
trained it in parts, and one process has to hold all of it.
"""

from __future__ import annotations

from typing import Any

from trainers.job.job import JUDGE, Job
from trainers.job.types import Device, Model

WEIGHTS_SHARE = 0.9  # of a GPU's free memory; the rest is for activations and answers


def spread(job: Job, device: Device) -> dict[str, Any]:
    """The arguments of `from_pretrained` that fill the first GPU and go on to the next ones; {} for
    training, and where there is one GPU or none.

    A model that fits on the first GPU is there alone, as without them.
    """
    if job.part != JUDGE or device.type != "cuda":
        return {}
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    free = {number: torch.cuda.mem_get_info(number)[0] for number in range(count)}
    room = {number: int(WEIGHTS_SHARE * found) for number, found in free.items()}
    return {"device_map": "sequential", "max_memory": room}


def is_spread(model: Model) -> bool:
    """Whether the model's modules are on more than one device."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return len(set((getattr(base, "hf_device_map", None) or {}).values())) > 1
