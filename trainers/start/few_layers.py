"""The first layers of a model, on the device. A model that will be divided among processes is
on the host of one of them until then, so that what is tried before is tried on these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainers.job.job import Job
from trainers.job.types import Device, Model
from trainers.start.model_files import reading
from trainers.start.quantised_checkpoints import written_out
from trainers.step.sharding import reads_once

FEWEST = 2


@contextmanager
def on_device(model: Model, job: Job, device: Device) -> Iterator[Any]:
    """The model; or, of one that is read once for all processes, a copy of its first layers on the
    device, for as long as this lasts.
    """
    if not reads_once(job):
        yield model
        return
    import torch

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    source = base.config.name_or_path
    options: dict[str, Any] = {"revision": job.plan.revision} if source == job.base_model else {}
    options["trust_remote_code"] = job.plan.trust_remote_code
    with reading(source):
        few = type(base).from_pretrained(
            source,
            config=first_layers(base.config),
            dtype=getattr(torch, job.stage.weights_dtype),
            attn_implementation=job.stage.attention,
            device_map={"": device},
            **options,
            **written_out(source, **options),
        )
    yield few


def first_layers(config: Any) -> Any:
    """The config of the first layers: as many as hold one of each kind, two at least."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count, kinds = text.num_hidden_layers, getattr(text, "layer_types", None) or ()
    few = min(count, max([FEWEST, *(1 + kinds.index(kind) for kind in set(kinds))]))
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, value[:few])
    text.num_hidden_layers = few
    return config
