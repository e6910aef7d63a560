"""Whether packed rows of a model see each other, and what is done then."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from msgspec import structs

from advisor.ground.errors import InputError
from trainers.job import Device, Model
from trainers.job.job import Job
from trainers.rows import Prepared, pack
from trainers.rows.packing import check_packing
from trainers.rows.sequences import lengths
from trainers.say.progress import tell
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
        tried = tried_on(model, job, device)
        check_packing(tried, data.train, stage=stage.name, attention=job.stage.attention)
    except InputError as error:
        if not stage.group_by_length:
            raise
        why = error.faults[0].headline.removeprefix(f"stage {stage.name}: ")
    else:
        return job, data
    packed = pack(data.train, stage.seq_len)
    rows = len(data.train) / len(packed) * stage.effective_batch_size
    fit = stage.micro_batch_size * max(1, stage.seq_len // int(lengths(data.train).max()))
    micro = max(1, min(fit, round(rows)))
    accum = max(1, round(rows / micro))
    note = (
        f"{why}: rows of similar length share a micro-batch instead, {micro} in each and"
        f" {micro * accum} in an optimizer step, about as many as packed"
    )
    tell(job, f"WARNING: {note}")
    # Rows for the sequences that memory had room for, if an earlier attempt ran out of it.
    room = job.most_rows and max(1, micro * job.most_rows // stage.micro_batch_size)
    changed = structs.replace(stage, packing=False, micro_batch_size=micro, grad_accum=accum)
    return (
        replace(job, entry=structs.replace(job.entry, stage=changed), most_rows=room),
        replace(data, notes=(*data.notes, note)),
    )


def tried_on(model: Model, job: Job, device: Device) -> Any:
    """The model; of one that is read once for all processes, and is on the host until it is
    divided, one with its first layers on the device. Their weights are random: whether rows see
    each other depends on the architecture.
    """
    if not reads_once(job):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    devices = [device] if device.type == "cuda" else []
    with torch.device(device), torch.random.fork_rng(devices):
        return AutoModelForCausalLM.from_config(
            first_layers(base.config),
            dtype=getattr(torch, job.stage.weights_dtype),
            attn_implementation=job.stage.attention,
            trust_remote_code=job.plan.trust_remote_code,
        ).eval()


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
