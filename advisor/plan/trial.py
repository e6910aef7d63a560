"""A trial: the plan as it is, on a few rows, to see in minutes that it works."""

from __future__ import annotations

import math

from advisor.plan.entries import entries
from advisor.plan.model import Plan

TRIAL_ROWS = 50
LEAST_STEPS = 3  # fewer show no direction of the loss


def trial_steps(plan: Plan) -> int:
    """How many optimizer steps of each stage read about `TRIAL_ROWS` rows, for --max-steps.

    One number for all stages: that of the stage with the most rows a step, since a trial is to end
    in minutes.
    """
    rows = [entry.stage.effective_batch_size * plan.launch.world_size for entry in entries(plan)]
    return max(LEAST_STEPS, math.ceil(TRIAL_ROWS / max(rows)))
