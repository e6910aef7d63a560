"""A dry run: memory and time of two real optimizer steps on the longest batch of the real data, and
of one evaluation batch. Nothing is saved.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.ground.units import format_duration, format_gib
from advisor.record.run import DRY_RUN, StageMeasurement
from advisor.record.stage import Measured
from trainers.job.files import write_json
from trainers.job.machine import is_main_process, process_count
from trainers.rows.sequences import lengths
from trainers.say.progress import say
from trainers.stage.build import build_trainer
from trainers.stage.load import LoadedStage
from trainers.step import settings

STEPS = 2


def measure(loaded: LoadedStage) -> None:
    """Write dry_run.json into the stage's folder."""
    from trainers.keep.progress import RunCallback

    job, memory, groups = loaded.job, loaded.memory, loaded.sequences
    stage, processes = job.stage, process_count()
    # The peak does not grow with more micro-batches: gradients exist from the first one on.
    micro_batches = min(stage.grad_accum, loaded.objective.measured_batches or stage.grad_accum)
    order = (-lengths(groups)).argsort(kind="stable")[: stage.micro_batch_size]
    longest = [groups[int(place)] for place in order]
    batch = [longest[place % len(longest)] for place in range(stage.micro_batch_size)]
    shown = is_main_process()
    watch = RunCallback(job, steps=STEPS, memory=memory)
    short = replace(job, entry=replace(job.entry, stage=replace(stage, grad_accum=micro_batches)))
    shortened = replace(loaded, opened=replace(loaded.opened, job=short))
    rows = batch * micro_batches * STEPS * processes
    measures = loaded.objective.measures_loss
    evaluated = [group[0] for group in batch]
    trainer = build_trainer(
        shortened,
        rows,
        steps=STEPS,
        callback=watch,
        held_out=evaluated * processes if measures else [],
    )
    try:
        trainer.train()
    finally:
        watch.close()
    training_bytes = memory.peak_bytes()
    evaluation_loss = loaded.objective.evaluation_loss(trainer, evaluated)
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
        data=loaded.data.counts(),
        versions=dict(loaded.opened.versions),
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
