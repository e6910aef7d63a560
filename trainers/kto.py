"""Kahneman-Tversky optimisation (arXiv:2402.01306) under any update scheme: from answers that
people liked or did not, or from pairs.

At least four rows go through a device at once, because the rows of one batch are what the KL
divergence from the reference model is estimated from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault, InputError
from trainers.evaluation.held_out import collated, trainer_loss
from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.pairs import PreferenceEvaluator, answer_row
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import Prepared
from trainers.rows.preference import (
    FEEDBACK,
    Feedback,
    columns_with_others,
    feedback_columns,
    others_in_batch,
)
from trainers.rows.sequences import Beside, Picked, Singles, flattened, values_of
from trainers.stage import run as stage
from trainers.stage.objective import Objective
from trainers.step import settings

FEWEST_AT_ONCE = 4


class KTO(Objective[Feedback]):
    """Makes answers that people liked likelier, and others less likely."""

    kind = FEEDBACK
    measures_loss = True
    logged = ("kl", "rewards/margins", "rewards/chosen", "rewards/rejected")

    def config_class(self) -> type:
        from trl import KTOConfig

        return KTOConfig

    def faults(self, job: Job) -> list[Fault]:
        size = job.stage.micro_batch_size
        if size >= FEWEST_AT_ONCE:
            return []
        what = (
            f"KTO estimates the KL divergence from the rows of one batch,"
            f" and micro_batch_size is {size}"
        )
        return [
            Fault(
                where=f"stage {job.stage.name}",
                what=what,
                allowed=f"micro_batch_size: {FEWEST_AT_ONCE} or more",
                hint="a smaller grad_accum keeps the effective batch size",
            )
        ]

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Feedback]:
        data: Prepared[Feedback] = super().rows(job, tokenizer)
        if len(set(values_of(data.train, "label"))) < 2:
            verdict = "liked" if data.train[0].label else "rejected"
            raise InputError(
                f"people {verdict} all {len(data.train):,} answers: nothing"
                " says what makes one better",
                where=f"stage {job.stage.name}",
                allowed="liked and rejected answers",
            )
        if len(data.train) < FEWEST_AT_ONCE:
            raise InputError(
                f"{len(data.train)} answers are too few for KTO",
                where=f"stage {job.stage.name}",
                allowed=f"{FEWEST_AT_ONCE} or more",
            )
        return data

    def sequences(
        self, job: Job, rows: Sequence[Feedback], model: Model
    ) -> Sequence[tuple[Feedback, ...]]:
        """The rows in an order that depends on the seed. TRL keeps it, and the two answers of a
        pair must not always be in one batch.
        """
        order = list(range(len(rows)))
        random.Random(job.stage.seed).shuffle(order)  # noqa: S311  (an order that repeats, not a secret)
        return Singles(Picked([rows], order))

    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Feedback]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        from trainers.rows.rows_dataset import copied_dataset, rows_dataset
        from trainers.stage import trl_classes
        from trainers.stage.trl_trainer import reference_model

        rows = flattened(sequences)
        others = others_in_batch(len(rows), batch=job.stage.micro_batch_size)
        precomputes = job.stage.trl.get("precompute_ref_log_probs")
        dataset = copied_dataset if precomputes else rows_dataset
        config = settings.build_config(
            self.config_class(), {**arguments, "max_length": None, "beta": job.options["beta"]}, job
        )
        return trl_classes.KTO(
            model=model,
            ref_model=reference_model(job, model, config),
            args=config,
            train_dataset=dataset(Beside(rows, Picked([rows], others)), columns_with_others),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )

    def probe(self, job: Job, data: Prepared[Feedback], tokenizer: Tokenizer) -> Probe:
        row = probe_row(data.train)
        return Probe(
            row=answer_row(tokenizer, row, row.completion_ids, row.expected),
            pad_id=tokenizer.pad_token_id,
        )

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Feedback], fingerprint: str
    ) -> PreferenceEvaluator:
        return PreferenceEvaluator(job, trainer, data, fingerprint)

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Feedback]) -> float | None:
        log_probs = answer_log_probs(
            trainer,
            [
                answer_row(trainer.processing_class, row, row.completion_ids, row.expected)
                for row in rows
            ],
        )
        return -sum(log_probs) / sum(row.learned for row in rows)

    def held_out_inputs(self, trainer: Trainer, rows: Sequence[Feedback]) -> Any:
        return collated(trainer, feedback_columns(rows, batch=len(rows))), len(rows)

    def held_out_loss(self, trainer: Trainer, inputs: Any) -> tuple[float, float]:
        batch, count = inputs
        return trainer_loss(trainer, batch) * count, count


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, KTO())
