"""Whether packed rows of a model see each other, and what is done then."""

from __future__ import annotations

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
from trainers.start.few_layers import on_device


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
