"""REINFORCE leave-one-out (arXiv:2402.14740) under any update scheme: the model's own answers, each
against the mean reward of its other answers to the prompt.

The rows of a step are prompts, as in trainers/grpo.py.
"""

from __future__ import annotations

from typing import Any

from trainers.grpo import GRPO
from trainers.job.job import Job
from trainers.stage import run as stage


class RLOO(GRPO):
    """Makes answers likelier whose reward is above the mean of the others."""

    config = "trl:RLOOConfig"
    trained_by = "trainers.stage.rollout_trainers:RLOO"

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {}


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, RLOO())
