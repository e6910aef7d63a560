"""A stage that ran out of memory: the next smaller micro-batch to start it again with, or the
change that a person has to make.

The setting stands in the stage's adjusted.json, which the trainer reads when it starts and writes
when it changes it by itself; run.json says the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from advisor.launch.failure_report import doing_of
from advisor.launch.folder import last_step
from advisor.plan.entries import Entry
from advisor.plan.model import Stage
from advisor.record.files import try_read_part, write_record
from advisor.record.run import ADJUSTED
from advisor.record.smaller import adjustment_of, next_batch, usable
from advisor.record.stage import Adjusted, Adjustment


def adjustments(entry: Entry, folder: Path) -> list[Adjustment]:
    """What the stage has changed by itself so far."""
    return usable(entry.stage, try_read_part(Adjusted, folder / ADJUSTED))


def as_it_ran(entry: Entry, folder: Path) -> Stage:
    """The stage with the micro-batch that it had come to."""
    done = adjustments(entry, folder)
    if not done:
        return entry.stage
    return replace(
        entry.stage, micro_batch_size=done[-1].micro_batch_size, grad_accum=done[-1].grad_accum
    )


def next_attempt(entry: Entry, folder: Path, why: str) -> Adjustment | None:
    """The smaller micro-batch that the stage is started again with, written down for its trainer;
    None if there is none, or it would not help: memory ran out as the model was loaded, or saved.

    Raises MachineNotReady if it cannot be written down.
    """
    done = adjustments(entry, folder)
    rows = done[-1].micro_batch_size if done else entry.stage.micro_batch_size
    change = next_batch(entry.stage, rows)
    if change is None or doing_of(folder) not in ("training", ""):
        return None
    task = entry.task.name if entry.task else None
    step, _ = last_step(folder.parent.parent, entry.stage.name, task)
    adjustment = adjustment_of(entry, change, why, at_step=step)
    write_record(folder / ADJUSTED, Adjusted(adjusted=(*done, adjustment)))
    return adjustment
