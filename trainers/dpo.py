"""Direct preference optimisation (arXiv:2305.18290) under any update scheme.

The reference model is the model as it was when the stage began. With a module, it is the base with
the module switched off, or, in a stage that continues from an earlier one, with a frozen copy of
the module; a model that is trained whole is held twice.
"""

from __future__ import annotations

from typing import Any

from trainers.evaluation.pairs import PreferenceEvaluator, chosen_rows
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Tokenizer
from trainers.rows import Prepared
from trainers.rows.preference import PAIRS, Pair, preference_columns
from trainers.stage import run as stage
from trainers.stage.objective import Build, EvaluatedBy, Objective


class DPO(Objective[Pair]):
    """Makes the chosen answer of each pair likelier than the rejected one; the plan's beta bounds
    how far the model moves.
    """

    config = "trl:DPOConfig"
    trained_by = "trainers.stage.trl_classes:DPO"
    kind = PAIRS
    columns = staticmethod(preference_columns)
    evaluated_by: EvaluatedBy | None = PreferenceEvaluator
    measures_loss = True
    logged = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {"max_length": None, "beta": job.options["beta"]}

    def trainer_parts(self, build: Build[Pair], config: Any) -> dict[str, Any]:
        from trainers.stage.trl_trainer import reference_model

        reference = reference_model(build.job, build.model, config)
        return {**super().trainer_parts(build, config), "ref_model": reference}

    def probe(self, job: Job, data: Prepared[Pair], tokenizer: Tokenizer) -> Probe:
        (row,) = chosen_rows(tokenizer, [probe_row(data.train)])
        return Probe(row=row, pad_id=tokenizer.pad_token_id)


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, DPO())
