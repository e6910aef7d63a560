"""Kahneman-Tversky optimisation (arXiv:2402.01306) under any update scheme: from answers that
people liked or did not, or from pairs.

At least four rows go through a device at once, since how far the model has moved is estimated from
the rows of one batch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault, InputError
from trainers.dpo import DPO
from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.pairs import answer_row
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.frame import settings, stage
from trainers.frame.job import Job
from trainers.prepare import Prepared
from trainers.prepare.preference import FEEDBACK, Feedback, feedback_columns

FEWEST_AT_ONCE = 4


class KTO(DPO):
    """Makes answers that people liked likelier, and others less likely."""

    kind = FEEDBACK
    logged = ("kl", "rewards/margins", "rewards/chosen", "rewards/rejected")

    def config_class(self) -> type:
        from trl import KTOConfig

        return KTOConfig

    def faults(self, job: Job) -> list[Fault]:
        size = job.stage.micro_batch_size
        if size >= FEWEST_AT_ONCE:
            return []
        what = (
            f"stage {job.stage.name}: kto estimates from the rows of one batch how far the model"
            f" has moved, and micro_batch_size is {size}"
        )
        return [
            Fault(
                what=what,
                allowed=f"micro_batch_size: {FEWEST_AT_ONCE} or more",
                hint="with a smaller grad_accum the rows of a step stay the same",
            )
        ]

    def rows(self, job: Job, tokenizer: Any) -> Prepared[Feedback]:
        data: Prepared[Feedback] = super().rows(job, tokenizer)
        if len({row.label for row in data.train}) < 2:
            verdict = "liked" if data.train[0].label else "not liked"
            raise InputError(
                f"stage {job.stage.name}: people {verdict} all {len(data.train):,} answers: nothing"
                " says what makes one better",
                allowed="answers of both kinds",
            )
        if len(data.train) < FEWEST_AT_ONCE:
            raise InputError(
                f"stage {job.stage.name}: {len(data.train)} answers are too few for kto",
                allowed=f"{FEWEST_AT_ONCE} or more",
            )
        return data

    def sequences(
        self, job: Job, rows: Sequence[Feedback], model: Any
    ) -> list[tuple[Feedback, ...]]:
        """The rows in an order that follows from the seed: TRL keeps it, and the two answers of a
        pair must not meet in one batch every time.
        """
        order = list(rows)
        random.Random(job.stage.seed).shuffle(order)  # noqa: S311  (an order that repeats, not a secret)
        return [(row,) for row in order]

    def trainer(
        self,
        job: Job,
        model: Any,
        tokenizer: Any,
        device: Any,
        peft_config: Any,
        sequences: Sequence[Sequence[Feedback]],
        arguments: Mapping[str, Any],
    ) -> Any:
        from datasets import Dataset
        from trl import KTOTrainer

        from trainers.frame.trl_trainer import reference_model, with_safe_checkpoints

        return with_safe_checkpoints(KTOTrainer)(
            model=model,
            ref_model=reference_model(job, model),
            args=settings.build_config(
                self.config_class(),
                {**arguments, "max_length": None, "beta": job.options["beta"]},
                job,
            ),
            train_dataset=Dataset.from_dict(
                feedback_columns([row for (row,) in sequences], batch=job.stage.micro_batch_size)
            ),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )

    def probe(self, job: Job, data: Prepared[Feedback], tokenizer: Any) -> Probe:
        row = probe_row(data.train)
        return Probe(
            row=answer_row(tokenizer, row, row.completion_ids, row.expected),
            pad_id=tokenizer.pad_token_id,
        )

    def evaluation_loss(self, trainer: Any, rows: Sequence[Feedback]) -> float | None:
        found = answer_log_probs(
            trainer,
            [
                answer_row(trainer.processing_class, row, row.completion_ids, row.expected)
                for row in rows
            ],
        )
        return -sum(found) / sum(row.learned for row in rows)


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, KTO())
