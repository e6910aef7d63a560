"""Simple preference optimisation (arXiv:2405.14734) under any update scheme: the better answer wins
by a margin in mean log-probability, without a reference model.

TRL has it as a loss of its CPO trainer, kept under `trl.experimental`, from where it may go with
any release.
"""

from __future__ import annotations

from typing import Any

from advisor.ground.errors import Fault
from trainers.dpo import DPO
from trainers.evaluation.pairs import PreferenceEvaluator
from trainers.job.job import Job
from trainers.orpo import ORPO
from trainers.stage.run import trains

# Fields of TRL's config that this stage sets, and where to say it instead.
SET_HERE = {
    "simpo_gamma": "set gamma",
    "loss_type": "remove it: other losses of TRL's CPO trainer are not simpo",
    "cpo_alpha": "remove it: simpo has no term for learning the better answer",
}


class SimPO(ORPO):
    """Makes the mean log-probability of the better answer higher by a margin."""

    config = "trl.experimental.cpo:CPOConfig"
    trained_by = "trl.experimental.cpo:CPOTrainer"
    evaluated_by = PreferenceEvaluator
    note = "SimPO is experimental in TRL and may be gone in its next release"
    logged = DPO.logged

    def faults(self, job: Job) -> list[Fault]:
        return [
            Fault(
                where=f"stage {job.stage.name}: trl", what=f"'{key}' cannot be set here", hint=hint
            )
            for key, hint in SET_HERE.items()
            if key in job.stage.trl
        ]

    def own_arguments(self, job: Job) -> dict[str, Any]:
        own = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": job.options["gamma"]}
        return super().own_arguments(job) | own


train = trains(SimPO)
