"""Odds ratio preference optimisation (arXiv:2403.07691) under any update scheme: learns the better
answers and to prefer them, without a reference.

TRL keeps it under `trl.experimental`, from where it may go with any release. As in the paper's
code, the prompts of the better answers are learned with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainers.dpo import DPO
from trainers.evaluation.pairs import PreferenceJudge
from trainers.frame import settings, stage
from trainers.frame.job import Job
from trainers.prepare import IGNORED, Prepared
from trainers.prepare.preference import Pair, preference_columns

NOTE = (
    "ORPO is experimental in TRL and may be gone in its next release; the prompts of the better"
    " answers are learned too, as in the paper's code"
)


class ORPO(DPO):
    """Makes the better answer of each pair likely, and likelier than the worse one."""

    logged = ("rewards/margins", "rewards/accuracies", "nll_loss", "log_odds_ratio")

    def config_class(self) -> type:
        from trl.experimental.orpo import ORPOConfig

        return ORPOConfig

    def judge(self, job: Job, trainer: Any, data: Prepared[Pair], mark: str) -> PreferenceJudge:
        return PreferenceJudge(job, trainer, data, mark, learns_answers=True)

    def rows(self, job: Job, tokenizer: Any) -> Prepared[Pair]:
        data: Prepared[Pair] = super().rows(job, tokenizer)
        return replace(data, notes=(*data.notes, NOTE))

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

        own = {
            "max_length": job.stage.seq_len,
            "beta": job.options["beta"],
            "remove_unused_columns": False,
        }
        return orpo_trainer()(
            model=model,
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=Dataset.from_dict(preference_columns([row for (row,) in sequences])),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )


def orpo_trainer() -> type:
    """TRL's trainer on rows that are tokenised already."""
    from trl.experimental.orpo import ORPOTrainer

    from trainers.frame.trl_trainer import with_safe_checkpoints

    class Ready(ORPOTrainer):  # type: ignore[misc]
        def tokenize_row(self, feature: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
            """The columns that TRL would make of text, from our token ids."""
            prompt = list(feature["prompt_ids"])
            row: dict[str, Any] = {
                "prompt_input_ids": prompt,
                "prompt_attention_mask": [1] * len(prompt),
            }
            for side in ("chosen", "rejected"):
                answer = list(feature[f"{side}_ids"])
                row[f"{side}_input_ids"] = prompt + answer
                row[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
                row[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
            return row

    return with_safe_checkpoints(Ready)


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, ORPO())
