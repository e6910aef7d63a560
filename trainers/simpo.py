"""Simple preference optimisation (arXiv:2405.14734) under any update scheme: the better answer wins
by a margin in mean log-probability, without a reference model.

TRL has it as a loss of its CPO trainer, kept under `trl.experimental`, from where it may go with
any release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.ground.errors import Fault
from trainers.dpo import DPO
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import Prepared
from trainers.rows.preference import Pair, preference_columns
from trainers.rows.sequences import flattened
from trainers.stage import run as stage
from trainers.step import settings

# Fields of TRL's config that this stage sets, and where to say it instead.
SET_HERE = {
    "simpo_gamma": "set gamma",
    "loss_type": "remove it: other losses of TRL's CPO trainer are not simpo",
    "cpo_alpha": "remove it: simpo has no term for learning the better answer",
}
NOTE = "SimPO is experimental in TRL and may be gone in its next release"


class SimPO(DPO):
    """Makes the mean log-probability of the better answer higher by a margin."""

    logged = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")

    def config_class(self) -> type:
        from trl.experimental.cpo import CPOConfig

        return CPOConfig

    def faults(self, job: Job) -> list[Fault]:
        """Keys of `trl:` that the stage sets itself."""
        return [
            Fault(
                where=f"stage {job.stage.name}: trl", what=f"'{key}' cannot be set here", hint=hint
            )
            for key, hint in SET_HERE.items()
            if key in job.stage.trl
        ]

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Pair]:
        data: Prepared[Pair] = super().rows(job, tokenizer)
        return replace(data, notes=(*data.notes, NOTE))

    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Pair]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        from trainers.rows.rows_dataset import rows_dataset
        from trainers.stage import pair_trainers

        own = {
            "max_length": job.stage.seq_len,
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
            "beta": job.options["beta"],
            "simpo_gamma": job.options["gamma"],
            "remove_unused_columns": False,
        }
        return pair_trainers.CPO(
            model=model,
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=rows_dataset(flattened(sequences), preference_columns),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, SimPO())
