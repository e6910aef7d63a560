"""The trainer of a stage, as its objective builds it, with what every trainer here has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from trainers.job.job import Job
from trainers.job.types import Device, Model, Tokenizer
from trainers.rows.sequences import flattened
from trainers.say.progress import tell
from trainers.stage.objective import Build, Objective
from trainers.step import settings
from trainers.step.make_optimizer import put_own
from trainers.step.sharding import adjust_sharding, by_the_reader, sharding_arguments
from trainers.updates import Update
from trainers.updates.experts import Balance, choose_balance, returning_routers


class TrainerBuilder(NamedTuple):
    """What every trainer of a stage is built from."""

    objective: Objective[Any]
    model: Model
    tokenizer: Tokenizer
    device: Device
    update: Update

    def build(
        self,
        job: Job,
        sequences: Sequence[Sequence[Any]],
        *,
        steps: int,
        callback: Any,
        save: bool = True,
    ) -> Any:
        """The objective's trainer, with our callback alone.

        Args:
            job: The stage; a dry run shortens it.
            sequences: The trainer's sequences.
            steps: Optimizer steps.
            callback: A RunCallback.
            save: Write checkpoints.
        """
        from peft import PeftModel
        from transformers import PrinterCallback
        from transformers.trainer_callback import ProgressCallback

        from trainers.start.compiling import compile_said
        from trainers.start.loading import unquantised_parameters

        arguments = settings.training_arguments(job, self.device, steps=steps)
        arguments |= sharding_arguments(job, self.model)
        if not save:
            arguments["save_strategy"] = "no"
        continues = isinstance(self.model, PeftModel)
        # A prefix asks the model for the shape of its keys, and starts from some of them.
        peft_config = (
            None
            if continues
            else by_the_reader(
                job, partial(self.update.peft_config, job.stage, job.options, self.model)
            )
        )
        balance = Balance(on=False, arguments={}, said=None)
        if self.objective.balances_experts:
            balance = choose_balance(
                self.model,
                peft_config,
                self.objective.config_class(),
                job.stage.trl,
                writes=self.objective.writes,
            )
        # ORPO and CPO ask the config whether to train with the loss, and only when they are built.
        with returning_routers(self.model, balance.on):
            trainer: Any = self.objective.trainer(
                Build(
                    job=job,
                    model=self.model,
                    tokenizer=self.tokenizer,
                    peft_config=peft_config,
                    sequences=sequences,
                    arguments={**arguments, **balance.arguments},
                )
            )
        plain = unquantised_parameters(trainer.model)
        if plain is not None and plain[1]:
            tell(
                job,
                f"note: {job.stage.quantization} quantises linear layers alone:"
                f" {plain[0]:,} parameters keep {job.stage.weights_dtype}, {plain[1]:,} of them in"
                " routed experts",
            )
        tell(job, balance.said)
        adjust_sharding(trainer, job)
        if not continues:
            started = partial(
                self.update.start,
                job.stage,
                job.options,
                trainer.accelerator.unwrap_model(trainer.model),
                self.tokenizer,
                flattened(sequences),
            )
            tell(job, by_the_reader(job, started) or "")
        trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        callback.trainer = trainer
        tell(job, put_own(trainer, job.stage))
        if job.stage.compile:
            tell(job, compile_said(trainer.model))
        return trainer
