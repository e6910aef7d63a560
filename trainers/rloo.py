"""REINFORCE leave-one-out (arXiv:2402.14740) under any update scheme: the model's own answers, each
against the mean reward of its other answers to the prompt.

The rows of a step are prompts, as in trainers/grpo.py.
"""

from __future__ import annotations

from trainers.grpo import GRPO
from trainers.stage.run import trains


class RLOO(GRPO):
    """Makes answers likelier whose reward is above the mean of the others."""

    config = "trl:RLOOConfig"
    trained_by = "trainers.stage.rollout_trainers:RLOO"


train = trains(RLOO)
