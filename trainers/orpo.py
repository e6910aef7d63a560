"""Odds ratio preference optimisation (arXiv:2403.07691) under any update scheme: learns the chosen
answers and to prefer them, without a reference model.

TRL keeps it under `trl.experimental`, which any release may drop. As in the paper's code, the
prompts of the chosen answers are learned with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainers.dpo import DPO
from trainers.evaluation.pairs import PreferenceEvaluator
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import Prepared
from trainers.rows.preference import Pair, preference_columns
from trainers.rows.sequences import flattened
from trainers.stage import run as stage
from trainers.step import settings

NOTE = (
    "ORPO is experimental in TRL, whose next release may drop it; the prompts of the chosen answers"
    " are learned too, as in the paper's code"
)


class ORPO(DPO):
    """Makes the chosen answer of each pair likely, and likelier than the rejected one."""

    logged = ("rewards/margins", "rewards/accuracies", "nll_loss", "log_odds_ratio")

    def config_class(self) -> type:
        from trl.experimental.orpo import ORPOConfig

        return ORPOConfig

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Pair], fingerprint: str
    ) -> PreferenceEvaluator:
        return PreferenceEvaluator(job, trainer, data, fingerprint, learns_answers=True)

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
            "beta": job.options["beta"],
            "remove_unused_columns": False,
        }
        return pair_trainers.ORPO(
            model=model,
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=rows_dataset(flattened(sequences), preference_columns),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, ORPO())
