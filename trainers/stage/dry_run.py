"""A dry run: memory and time of two real optimizer steps on the longest batch of the real data, and
of one evaluation batch. Nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DRY_RUN, StageMeasurement
from advisor.record.stage import Measured
from trainers.job.files import write_json
from trainers.job.job import Job
from trainers.job.machine import MemoryMeter, is_main_process
from trainers.job.types import Trainer
from trainers.rows import Prepared
from trainers.rows.sequences import lengths
from trainers.say.progress import say
from trainers.step import settings

STEPS = 2


def measure(
    job: Job,
    groups: Sequence[Sequence[Any]],
    data: Prepared[Any],
    memory: MemoryMeter,
    build: Callable[..., Trainer],
    versions: dict[str, str],
    *,
    evaluate: Callable[..., float | None],
    most_batches: int | None = None,
) -> None:
    """Write dry_run.json into the stage's folder.

    Args:
        groups: The trainer's sequences, each a row or several packed ones.
        data: The rows they came from, for their counts.
        memory: A meter that counts from before the model was loaded.
        build: Makes the trainer: of a job, its sequences, steps and callback.
        versions: Of the libraries, for the record.
        evaluate: The loss of one evaluation batch, or None if there is none.
        most_batches: Micro-batches of a step: the peak does not grow with more, since gradients
            exist from the first one on. None: all.
    """
    from trainers.keep.progress import RunCallback

    stage, processes = job.stage, settings.world_size()
    micro_batches = min(stage.grad_accum, most_batches or stage.grad_accum)
    order = (-lengths(groups)).argsort(kind="stable")[: stage.micro_batch_size]
    longest = [groups[int(place)] for place in order]
    batch = [longest[place % len(longest)] for place in range(stage.micro_batch_size)]
    shown = is_main_process()
    watch = RunCallback(job, steps=STEPS, memory=memory)
    short = replace(job, entry=replace(job.entry, stage=replace(stage, grad_accum=micro_batches)))
    trainer = build(
        short, batch * micro_batches * STEPS * processes, steps=STEPS, callback=watch, save=False
    )
    try:
        trainer.train()
    finally:
        watch.close()
    training_bytes = memory.peak_bytes()
    rows = [group[0] for group in batch]
    evaluation_loss = evaluate(trainer, rows)
    if not shown:
        return
    step_s = watch.step_times_s[-1]
    steps = settings.total_steps(job, len(groups), processes=processes)
    whole_step_s = step_s * stage.grad_accum / micro_batches
    peak_bytes = memory.peak_bytes()
    record = StageMeasurement(
        measured=Measured(
            peak_bytes=peak_bytes,
            training_peak_bytes=training_bytes,
            counter=memory.counter,
            reserved_bytes=memory.reserved_bytes(),
            baseline_bytes=memory.baseline_bytes,
            step_s=whole_step_s,
            step_times_s=tuple(watch.step_times_s),
            micro_batches=micro_batches,
            largest_batch_tokens=trainer.all_tokens().largest,
            tokens_per_s=watch.tokens / watch.train_s if watch.train_s else None,
        ),
        steps=steps,
        longest_batch_duration_s=whole_step_s * steps,
        batch_tokens=sum(row.tokens for group in batch for row in group),
        losses=tuple(watch.losses),
        evaluation_loss=evaluation_loss,
        data=data.counts(),
        versions=versions,
    )
    write_json(job.output / DRY_RUN, record.to_dict())
    kind = (
        "allocated on the GPU"
        if memory.on_gpu
        else "growth of resident memory from before the model was loaded"
    )
    peak = f"peak {format_gib(peak_bytes)} ({kind})"
    say(
        f"{stage.name}: {peak}, {whole_step_s:.2f} s a step on the longest batch, {steps:,} steps:"
        f" at most {format_duration(whole_step_s * steps)}"
    )
