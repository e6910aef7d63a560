"""A stage before its training: libraries and device of this process, then its rows, then its model.
The process that trains it and the one that judges its result load the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.progress import board
from advisor.methods.optimizers import optimizer
from trainers.job.job import JUDGE, Job
from trainers.job.libraries import check_versions, quiet_libraries
from trainers.job.machine import MemoryMeter, keep_freed_memory, torch_device, use_cores
from trainers.job.process import LOADING, WHILE_LOADING
from trainers.job.types import Device, Model, Tokenizer
from trainers.keep.held_out_curve import check_held_out
from trainers.rows import Prepared
from trainers.say.processes import connect
from trainers.say.progress import LOAD, Parts, tell
from trainers.stage.objective import Objective, Opened
from trainers.stage.recipes import ChecksPassed
from trainers.start.packing_check import unpacked_if_seen
from trainers.step import make_optimizer, settings
from trainers.step.out_of_memory import with_room
from trainers.step.pass_through import check_passed_through
from trainers.updates import Update, load_update


@dataclass(frozen=True, kw_only=True)
class LoadedStage:
    """The rows and the model of a stage."""

    objective: Objective[Any]
    opened: Opened[Any]  # packed as the model allows
    parts: Parts  # the clock of this process
    memory: MemoryMeter  # counts from before the model was loaded
    model: Model  # without the module that the stage adds
    stops: list[str]  # tokens that were added to those that end an answer
    sequences: Sequence[Sequence[Any]]

    @property
    def job(self) -> Job:
        """With what `auto` is on this machine, packed as this model and memory allow."""
        return self.opened.job

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the rows."""
        return self.opened.tokenizer

    @property
    def data(self) -> Prepared[Any]:
        """The rows."""
        return self.opened.data


def load_stage(job: Job, objective: Objective[Any], parts: Parts) -> LoadedStage:
    """The stage's rows and model, loaded.

    Raises InputError for a plan or data that cannot be trained on, and MachineNotReady for what the
    machine lacks.
    """
    parts.begin(LOAD)
    job.enter(LOADING)
    job.process.stop.costs = WHILE_LOADING
    opened = open_stage(job, objective)
    from trainers.start.loading import check_vocabulary, enable_stop_tokens

    bases, device = job.process.bases, opened.device
    memory = MemoryMeter(device) if bases is None else bases.meter(device)
    board.memory = memory.in_use
    connect(device)  # their rows are there
    model = objective.load(opened)
    data, tokenizer = opened.data, opened.tokenizer
    check_vocabulary(model, tokenizer, chain(data.train, data.holdout))
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends)) if objective.writes else []
    job, data = unpacked_if_seen(opened.job, data, model, device)
    return LoadedStage(
        objective=objective,
        opened=replace(opened, job=job, data=data),
        parts=parts,
        memory=memory,
        model=model,
        stops=stops,
        sequences=objective.sequences(job, data.train, model),
    )


def open_stage(job: Job, objective: Objective[Any]) -> Opened[Any]:
    """The stage in this process, with its rows. Raises as `load_stage` does."""
    narrow = job.stage.quantization is not None or bool(optimizer(job.stage.optimizer).library)
    versions = check_versions(quantized=narrow)
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    keep_freed_memory(device)
    quiet_libraries()
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from transformers import set_seed

    from trainers.start.attention import with_attention
    from trainers.start.kernels import use_triton_if_it_works

    update = load_update(job.stage.update)
    check_stage(job, objective, update, device)
    tell(job, use_triton_if_it_works(device.type))
    if rounding := make_optimizer.rounding_warning(job.stage):
        tell(job, f"WARNING: {rounding}")
    tell(job, make_optimizer.optimizer_note(job.stage, device.type))
    job = with_room(with_attention(job, device))
    # A module starts from the same numbers, whatever this process did before.
    set_seed(job.stage.seed)
    tokenizer, data = prepare(job, objective)
    if job.part != JUDGE:  # the process that trained has said it
        for line in describe(data, template=objective.kind.name not in ("classes", "rewritings")):
            tell(job, line)
    check_held_out(job, data.holdout, has_loss=objective.measures_loss)
    return Opened(
        job=job, versions=versions, device=device, threads=threads, update=update,
        tokenizer=tokenizer, data=data,
    )  # fmt: skip


def check_stage(job: Job, objective: Objective[Any], update: Update, device: Device) -> None:
    """Raise InputError with everything that the stage cannot do here, and ChecksPassed for a stage
    that was only to be checked.
    """
    from trainers.start.loading import dtype_faults

    common = settings.training_arguments(job, device, steps=1)
    check_passed_through(job, objective.config_class(), update, common)
    found = [*dtype_faults(job, device), *objective.faults(job)]
    if found:
        raise InputError(faults=found)
    if job.only_checks:
        raise ChecksPassed


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
