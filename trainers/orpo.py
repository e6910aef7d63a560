"""Odds ratio preference optimisation (arXiv:2403.07691) under any update scheme: learns the chosen
answers and to prefer them, without a reference model.

TRL keeps it under `trl.experimental`, which any release may drop. As in the paper's code, the
prompts of the chosen answers are learned with them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trainers.dpo import DPO
from trainers.evaluation.pairs import PreferenceEvaluator
from trainers.job.job import Job
from trainers.rows.preference import tokenised_columns
from trainers.stage.run import trains


class ORPO(DPO):
    """Makes the chosen answer of each pair likely, and likelier than the rejected one."""

    config = "trl.experimental.orpo:ORPOConfig"
    trained_by = "trl.experimental.orpo:ORPOTrainer"
    keeps = ("prediction_step",)  # `compute_loss` counts among the training's
    columns = staticmethod(tokenised_columns)
    evaluated_by = staticmethod(partial(PreferenceEvaluator, learns_answers=True))
    note = (
        "ORPO is experimental in TRL, whose next release may drop it; the prompts of the chosen"
        " answers are learned too, as in the paper's code"
    )
    has_reference = False
    puts_module = False  # TRL would cast that of a 4-bit base to 16 bits
    logged = ("rewards/margins", "rewards/accuracies", "nll_loss", "log_odds_ratio")

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {
            "max_length": job.stage.seq_len,
            "beta": job.options["beta"],
            "remove_unused_columns": False,
        }


train = trains(ORPO)
