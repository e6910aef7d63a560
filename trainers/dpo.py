"""Direct preference optimisation (arXiv:2305.18290) under any update scheme.

The reference model is the model as it was when the stage began. With a module, it is the base with
the module switched off, or, in a stage that continues from an earlier one, with a frozen copy of
the module; a model that is trained whole is held twice.
"""

from __future__ import annotations

from typing import Any

from trainers.evaluation.pairs import PreferenceEvaluator
from trainers.job.job import Job
from trainers.rows.preference import PAIRS, preference_columns
from trainers.rows.row import Kind
from trainers.rows.sequences import Columns
from trainers.stage.objective import EvaluatedBy, Objective
from trainers.stage.run import trains


class DPO(Objective[Any]):
    """Makes the chosen answer of each pair likelier than the rejected one; the plan's beta bounds
    how far the model moves.
    """

    config = "trl:DPOConfig"
    trained_by = "trl:DPOTrainer"
    kind: Kind[Any] = PAIRS
    columns: Columns = staticmethod(preference_columns)
    evaluated_by: EvaluatedBy | None = PreferenceEvaluator
    measures_loss = True
    has_reference = True
    logged = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {"max_length": None, "beta": job.options["beta"]}


train = trains(DPO)
