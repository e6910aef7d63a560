"""A stage with its trainer, before the first step: as its objective builds it, with what every
trainer here has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainers.job.job import JUDGE, Job
from trainers.job.machine import process_count
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.held_out_curve import asks_for_curve, even_batch, make_curve
from trainers.keep.resuming import dependencies, open_store
from trainers.rows.batches import Batches
from trainers.rows.sequences import flattened
from trainers.say.progress import tell
from trainers.stage.load import LoadedStage
from trainers.stage.objective import Build
from trainers.step import settings
from trainers.step.make_optimizer import put_own
from trainers.step.sharding import adjust_sharding, by_the_reader, sharding_arguments
from trainers.updates.experts import Balance, choose_balance, returning_routers


@dataclass(frozen=True, kw_only=True)
class BuiltStage:
    """A loaded stage and its trainer."""

    loaded: LoadedStage
    steps: int  # optimizer steps of the whole stage
    store: CheckpointStore
    callback: Any  # a RunCallback
    trainer: Any

    @property
    def job(self) -> Job:
        """The stage."""
        return self.loaded.job

    @property
    def continues(self) -> bool:
        """Whether the model came with the module of an earlier stage."""
        return hasattr(self.loaded.model, "peft_config")


def build_stage(loaded: LoadedStage, *, processes: int) -> BuiltStage:
    """The stage with its trainer.

    Args:
        processes: How many train it.
    """
    from trainers.keep.progress import RunCallback

    job, objective, data = loaded.job, loaded.objective, loaded.data
    steps = settings.total_steps(job, len(loaded.sequences), processes=processes)
    parts = {"rows": data.digest, **objective.depends_on(job, data)}
    depends_on = dependencies(job, parts, steps=steps, model=loaded.model, processes=processes)
    store = open_store(job, depends_on, loaded.opened.versions)
    callback = RunCallback(
        job, steps=steps, memory=loaded.memory, store=store, logged=objective.logged
    )  # fmt: skip
    if objective.measures_loss and (job.judge or asks_for_curve(job)) and job.part != JUDGE:
        callback.curve = make_curve(job, data.holdout, loaded.sequences, steps=steps)
    trainer = build_trainer(
        loaded, loaded.sequences, steps=steps, callback=callback,
        held_out=callback.curve.rows if callback.curve is not None else (),
    )  # fmt: skip
    if trainer.orders_rows:
        trainer.batches = Batches.of(job, loaded.sequences, processes=processes)
        if job.part != JUDGE:
            pairs = objective.kind.name == "pairs"
            tell(job, trainer.batches.describe(len(data.train), pairs=pairs))
    trainer.checkpoint_store = store
    return BuiltStage(loaded=loaded, steps=steps, store=store, callback=callback, trainer=trainer)


def build_trainer(
    loaded: LoadedStage,
    sequences: Sequence[Sequence[Any]],
    *,
    steps: int,
    callback: Any,
    held_out: Sequence[Any] = (),
) -> Any:
    """The objective's trainer, with our callback alone.

    Args:
        sequences: Those of the stage, or what a dry run takes of them.
        steps: Optimizer steps.
        callback: A RunCallback.
        held_out: The rows that are evaluated on while it trains.
    """
    from transformers import PrinterCallback

    from trainers.start.kernels import compile_layers
    from trainers.start.loading import unquantised_parameters

    job, objective, model = loaded.job, loaded.objective, loaded.model
    update, stage, options = loaded.opened.update, loaded.job.stage, loaded.job.options
    arguments = settings.training_arguments(job, loaded.opened.device, steps=steps)
    arguments |= sharding_arguments(job, model)
    arguments["save_strategy"] = "no" if callback.store is None else "steps"
    if held_out:
        arguments["per_device_eval_batch_size"] = even_batch(
            len(held_out) // process_count(), stage.micro_batch_size
        )
    continues = hasattr(model, "peft_config")
    # A prefix asks the model for the shape of its keys, and starts from some of them.
    asked = partial(update.peft_config, stage, options, model)
    peft_config = None if continues else by_the_reader(job, asked)
    balance = Balance(on=False, arguments={}, said=None)
    if objective.balances_experts:
        config = objective.config_class()
        balance = choose_balance(model, peft_config, config, stage.trl, writes=objective.writes)
    # ORPO and CPO ask the config whether to train with the loss, and only when they are built.
    with returning_routers(model, balance.on):
        trainer: Any = objective.trainer(
            Build(
                job=job,
                model=model,
                tokenizer=loaded.tokenizer,
                peft_config=peft_config,
                sequences=sequences,
                held_out=held_out,
                arguments={**arguments, **balance.arguments},
            )
        )
    plain = unquantised_parameters(trainer.model)
    if plain is not None and plain[1]:
        tell(
            job,
            f"note: {stage.quantization} quantises linear layers alone: {plain[0]:,} parameters"
            f" keep {stage.weights_dtype}, {plain[1]:,} of them in routed experts",
        )
    tell(job, balance.said)
    adjust_sharding(trainer, job)
    if not continues:
        whole = trainer.accelerator.unwrap_model(trainer.model)
        start = partial(update.start, stage, options, whole, loaded.tokenizer, flattened(sequences))
        tell(job, by_the_reader(job, start))
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    tell(job, put_own(trainer, stage))
    if stage.compile:
        tell(job, compile_layers(trainer.model))
    return trainer
