"""The beginning of a stage: libraries and device of this process, the stage's faults, its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from advisor.ground.errors import Fault, InputError
from advisor.methods.optimizers import optimizer
from trainers.job.job import Job
from trainers.job.machine import (
    check_versions,
    keep_freed_memory,
    quiet_libraries,
    torch_device,
    use_cores,
)
from trainers.job.types import Device, Tokenizer
from trainers.rows import Prepared
from trainers.say.progress import tell
from trainers.stage.objective import Objective
from trainers.stage.recipes import ChecksPassed
from trainers.step import make_optimizer, settings
from trainers.step.cpu_products import use_faster_products
from trainers.step.pass_through import check_passed_through
from trainers.updates import Update, load_update


class OpenStage(NamedTuple):
    """What a stage finds in the process that trains it."""

    versions: dict[str, str]  # of the libraries
    device: Device
    threads: int
    update: Update


def open_stage(
    job: Job, config_class: Callable[[], type], faults: Callable[[Job], Sequence[Fault]]
) -> OpenStage:
    """The device and libraries of this process, ready.

    Raises InputError with everything that the stage cannot do here, and MachineNotReady for missing
    or untested libraries and devices.
    """
    narrow = job.stage.quantization is not None or bool(optimizer(job.stage.optimizer).library)
    versions = check_versions(quantized=narrow)
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    use_faster_products(device)
    keep_freed_memory(device)
    quiet_libraries()
    from trainers.start.kernels import use_triton_if_it_works
    from trainers.start.loading import dtype_faults

    update = load_update(job.stage.update)
    common = settings.training_arguments(job, device, steps=1)
    check_passed_through(job, config_class(), update, common)
    found = [*dtype_faults(job, device), *faults(job)]
    if found:
        raise InputError(faults=found)
    if job.only_checks:
        raise ChecksPassed
    notes = [use_triton_if_it_works(device.type)]
    if rounding := make_optimizer.rounding_warning(job.stage):
        notes.append(f"WARNING: {rounding}")
    notes.append(make_optimizer.rate_note(job.stage) or "")
    for note in notes:
        tell(job, note)
    return OpenStage(versions, device, threads, update)


def prepare(job: Job, objective: Objective[Any]) -> tuple[Tokenizer, Prepared[Any]]:
    """(the stage's tokenizer, its rows). Raises InputError for data that cannot be trained on."""
    from trainers.start.loading import load_tokenizer

    tokenizer = load_tokenizer(job, writes=objective.writes)
    return tokenizer, objective.rows(job, tokenizer)


def describe(data: Prepared[Any], *, template: bool = True) -> list[str]:
    """The data in a few lines: what is trained on, and what is not.

    Args:
        template: Say where the chat template came from.
    """
    rows = f"{len(data.train):,} rows to train on, {len(data.holdout):,} held out"
    tokens, learned_tokens = data.tokens, data.learned_tokens
    learned = (
        f", {learned_tokens / tokens:.0%} of them learned"
        if tokens and learned_tokens > len(data.train)
        else ""
    )
    by = f"; chat template: {data.template}" if data.template and template else ""
    return [f"{rows}; {tokens:,} tokens{learned}{by}", *(f"note: {note}" for note in data.notes)]
