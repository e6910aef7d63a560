"""Whether packed rows of a model see each other, and what is done then."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from advisor.ground.errors import InputError
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process
from trainers.job.types import Device, Model
from trainers.rows import Prepared, pack
from trainers.rows.packing import check_packing
from trainers.rows.sequences import lengths
from trainers.say.progress import say
from trainers.start.loading import written_out
from trainers.start.model_files import reading
from trainers.step.sharding import reads_once


def unpacked_if_seen(
    job: Job, data: Prepared[Any], model: Model, device: Device
) -> tuple[Job, Prepared[Any]]:
    """The job and its data; without packing if it would let rows of this model see each other, and
    the plan has `group_by_length: true` beside it, which is then done instead. Says so.

    An optimizer step keeps its number of rows, and a micro-batch has no more tokens than before.

    Raises InputError if packing alone is asked for.
    """
    if not job.stage.packing:
        return job, data
    stage = job.entry.stage  # as planned: checkpoints depend on it
    try:
        with on_device(model, job, device) as tried:
            check_packing(tried, data.train, stage=stage.name, attention=job.stage.attention)
    except InputError as error:
        if not stage.group_by_length:
            raise
        why = error.faults[0].headline.removeprefix(f"stage {stage.name}: ")
    else:
        return job, data
    packed = pack(data.train, stage.seq_len)
    rows = len(data.train) / len(packed) * stage.effective_batch_size
    longest = int(lengths(data.train).max())
    micro = stage.micro_batch_size * max(1, stage.seq_len // longest)
    micro = max(1, min(micro, round(rows)))
    accum = max(1, round(rows / micro))
    note = (
        f"{why}: rows of similar length share a micro-batch instead, {micro} in each and"
        f" {micro * accum} in an optimizer step, about as many as packed"
    )
    if is_main_process():
        say(f"{label(job)}: WARNING: {note}")
    # Rows for the sequences that memory had room for, if an earlier attempt ran out of it.
    room = job.most_rows and max(1, micro * job.most_rows // stage.micro_batch_size)
    changed = replace(stage, packing=False, micro_batch_size=micro, grad_accum=accum)
    return (
        replace(job, entry=replace(job.entry, stage=changed), most_rows=room),
        replace(data, notes=(*data.notes, note)),
    )


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
    few = min(count, max([2, *(1 + kinds.index(kind) for kind in set(kinds))]))
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, value[:few])
    text.num_hidden_layers = few
    return config
