"""Direct preference optimisation (arXiv:2305.18290) under any update scheme.

The reference model is the model as it was when the stage began. With a module, it is the base with
the module switched off, or, in a stage that continues from an earlier one, with a frozen copy of
the module; a model that is trained whole is held twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.evaluation.held_out import collated, trainer_loss
from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.pairs import PreferenceEvaluator, both_sides, chosen_rows
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import Prepared
from trainers.rows.preference import PAIRS, Pair, preference_columns
from trainers.rows.sequences import flattened
from trainers.stage import run as stage
from trainers.stage.objective import Objective
from trainers.step import settings


class DPO(Objective[Pair]):
    """Makes the chosen answer of each pair likelier than the rejected one; the plan's beta bounds
    how far the model moves.
    """

    kind = PAIRS
    measures_loss = True
    logged = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")

    def config_class(self) -> type:
        from trl import DPOConfig

        return DPOConfig

    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Pair]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        from trainers.rows.rows_dataset import copied_dataset, rows_dataset
        from trainers.stage import trl_classes
        from trainers.stage.trl_trainer import reference_model

        precomputes = job.stage.trl.get("precompute_ref_log_probs")
        dataset = copied_dataset if precomputes else rows_dataset
        config = settings.build_config(
            self.config_class(), {**arguments, "max_length": None, "beta": job.options["beta"]}, job
        )
        return trl_classes.DPO(
            model=model,
            ref_model=reference_model(job, model, config),
            args=config,
            train_dataset=dataset(flattened(sequences), preference_columns),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )

    def probe(self, job: Job, data: Prepared[Pair], tokenizer: Tokenizer) -> Probe:
        return Probe(
            row=chosen_rows(tokenizer, [probe_row(data.train)])[0], pad_id=tokenizer.pad_token_id
        )

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Pair], fingerprint: str
    ) -> PreferenceEvaluator:
        return PreferenceEvaluator(job, trainer, data, fingerprint)

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Pair]) -> float | None:
        log_probs = answer_log_probs(
            trainer, [side for row in rows for side in both_sides(trainer.processing_class, row)]
        )
        return -sum(log_probs) / sum(row.learned for row in rows)

    def held_out_inputs(self, trainer: Trainer, rows: Sequence[Pair]) -> Any:
        return collated(trainer, preference_columns(rows)), len(rows)

    def held_out_loss(self, trainer: Trainer, inputs: Any) -> tuple[float, float]:
        batch, count = inputs
        return trainer_loss(trainer, batch) * count, count


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, DPO())
