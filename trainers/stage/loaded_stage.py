"""A stage in memory: first its rows and its model, then the trainer that is built from them. The
process that trains it and the one that judges its result build the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from advisor.ground.progress import board
from trainers.job.job import JUDGE, Job
from trainers.job.machine import MemoryMeter
from trainers.job.process import LOADING, WHILE_LOADING
from trainers.job.types import Model, Tokenizer
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.held_out_curve import check_held_out
from trainers.keep.resuming import open_store, save_clock
from trainers.rows import Prepared
from trainers.rows.batches import Batches
from trainers.say.processes import connect
from trainers.say.progress import LOAD, Parts, tell
from trainers.stage.objective import Objective, Opened
from trainers.stage.opening import OpenStage, describe, open_stage, prepare
from trainers.stage.trainer_builder import TrainerBuilder
from trainers.start.packing_check import unpacked_if_seen
from trainers.step import settings
from trainers.step.out_of_memory import with_room


@dataclass(frozen=True, kw_only=True)
class LoadedStage:
    """The rows and the model of a stage."""

    job: Job  # with what `auto` is on this machine, packed as this model and memory allow
    objective: Objective[Any]
    opened: OpenStage
    tokenizer: Tokenizer
    data: Prepared[Any]
    memory: MemoryMeter  # counts from before the model was loaded
    model: Model  # without the module that the stage adds
    stops: list[str]  # tokens that were added to those that end an answer
    sequences: Sequence[Sequence[Any]]

    @property
    def builder(self) -> TrainerBuilder:
        """What the stage's trainers are built with."""
        opened = self.opened
        return TrainerBuilder(
            self.objective, self.model, self.tokenizer, opened.device, opened.update
        )


@dataclass(frozen=True, kw_only=True)
class BuiltStage:
    """The same with its trainer, before the first step."""

    loaded: LoadedStage
    steps: int  # optimizer steps of the whole stage
    store: CheckpointStore
    callback: Any  # a RunCallback
    trainer: Any
    continues: bool  # the model came with the module of an earlier stage

    @property
    def job(self) -> Job:
        """The stage."""
        return self.loaded.job


def load_stage(job: Job, objective: Objective[Any], parts: Parts) -> LoadedStage:
    """The stage's rows and model, loaded.

    Raises InputError for a plan or data that cannot be trained on, and MachineNotReady for what the
    machine lacks.
    """
    parts.begin(LOAD)
    job.enter(LOADING)
    job.process.stop.costs = WHILE_LOADING
    opened = open_stage(job, objective.config_class, objective.faults)
    device = opened.device
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from transformers import set_seed

    from trainers.start.attention import with_attention
    from trainers.start.loading import check_vocabulary, enable_stop_tokens

    job = with_room(with_attention(job, device))
    # A module starts from the same numbers, whatever this process did before.
    set_seed(job.stage.seed)
    tokenizer, data = prepare(job, objective)
    if job.part != JUDGE:  # the process that trained has said it
        for line in describe(data, template=objective.kind.name not in ("classes", "rewritings")):
            tell(job, line)
    check_held_out(job, data.holdout, has_loss=objective.measures_loss)
    bases = job.process.bases
    memory = MemoryMeter(device) if bases is None else bases.meter(device)
    board.memory = memory.in_use
    connect(device)  # their rows are there
    model = objective.load(
        Opened(job=job, device=device, update=opened.update, tokenizer=tokenizer, data=data)
    )
    check_vocabulary(model, tokenizer, chain(data.train, data.holdout))
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends)) if objective.writes else []
    job, data = unpacked_if_seen(job, data, model, device)
    return LoadedStage(
        job=job,
        objective=objective,
        opened=opened,
        tokenizer=tokenizer,
        data=data,
        memory=memory,
        model=model,
        stops=stops,
        sequences=objective.sequences(job, data.train, model),
    )


def build_stage(loaded: LoadedStage, *, processes: int) -> BuiltStage:
    """The stage with its trainer.

    Args:
        processes: How many train it.
    """
    from trainers.keep.progress import RunCallback

    job, objective, data = loaded.job, loaded.objective, loaded.data
    steps = settings.total_steps(job, len(loaded.sequences), processes=processes)
    store = open_store(
        job, loaded.opened.versions, steps=steps, rows=data.digest, model=loaded.model,
        more=objective.depends_on(job, data), processes=processes,
    )  # fmt: skip
    callback = RunCallback(
        job, steps=steps, memory=loaded.memory, store=store, saves=save_clock(job, steps),
        logged=objective.logged,
    )  # fmt: skip
    continues = hasattr(loaded.model, "peft_config")
    trainer = loaded.builder.build(job, loaded.sequences, steps=steps, callback=callback)
    if trainer.orders_rows:
        trainer.batches = Batches.of(job, loaded.sequences, processes=processes)
        if job.part != JUDGE:
            pairs = objective.kind.name == "pairs"
            tell(job, trainer.batches.describe(len(data.train), pairs=pairs))
    trainer.checkpoint_store = store
    return BuiltStage(
        loaded=loaded,
        steps=steps,
        store=store,
        callback=callback,
        trainer=trainer,
        continues=continues,
    )
