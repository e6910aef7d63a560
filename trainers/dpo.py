"""Direct preference optimisation (arXiv:2305.18290) under any update scheme.

The model is compared with itself as it was when the stage began: a module is switched off, or read
as a frozen copy of it where the stage goes on from an earlier one; a model trained whole is kept
twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.pairs import PreferenceEvaluator, both_sides, chosen_rows
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.frame import settings, stage
from trainers.frame.job import Job
from trainers.frame.stage import Objective
from trainers.prepare import Prepared
from trainers.prepare.preference import PAIRS, Pair, preference_columns


class DPO(Objective):
    """Makes the better answer of each pair likelier than the worse one, as far as the beta of the
    plan lets it move.
    """

    kind = PAIRS
    logged = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")

    def config_class(self) -> type:
        from trl import DPOConfig

        return DPOConfig

    def trainer(
        self,
        job: Job,
        model: Any,
        tokenizer: Any,
        device: Any,
        peft_config: Any,
        sequences: Sequence[Sequence[Pair]],
        arguments: Mapping[str, Any],
    ) -> Any:
        from datasets import Dataset
        from trl import DPOTrainer

        from trainers.frame.trl_trainer import reference_model, with_safe_checkpoints

        return with_safe_checkpoints(DPOTrainer)(
            model=model,
            ref_model=reference_model(job, model),
            args=settings.build_config(
                self.config_class(),
                {**arguments, "max_length": None, "beta": job.options["beta"]},
                job,
            ),
            train_dataset=Dataset.from_dict(preference_columns([row for (row,) in sequences])),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )

    def probe(self, job: Job, data: Prepared[Any], tokenizer: Any) -> Probe:
        return Probe(
            row=chosen_rows(tokenizer, [probe_row(data.train)])[0], pad_id=tokenizer.pad_token_id
        )

    def evaluator(
        self, job: Job, trainer: Any, data: Prepared[Any], fingerprint: str
    ) -> PreferenceEvaluator:
        return PreferenceEvaluator(job, trainer, data, fingerprint)

    def evaluation_loss(self, trainer: Any, rows: Sequence[Any]) -> float | None:
        found = answer_log_probs(
            trainer, [side for row in rows for side in both_sides(trainer.processing_class, row)]
        )
        return -sum(found) / sum(row.learned for row in rows)


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, DPO())
