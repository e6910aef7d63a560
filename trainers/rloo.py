"""REINFORCE leave-one-out (arXiv:2402.14740) under any update scheme: each own answer against the
mean reward of the others to its prompt.

Rows of a step are prompts, as in trainers/grpo.py.

Run: python -P -m trainers.rloo PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
[--max-steps N] [--no-judge]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from trainers.frame import stage
from trainers.frame.job import Job, run_trainer
from trainers.grpo import GRPO


class RLOO(GRPO):
    """Makes answers likelier that get more than the mean of the others."""

    names = ("rloo",)

    def config_class(self) -> type:
        from trl import RLOOConfig

        return RLOOConfig

    def trainer_class(self) -> type:
        from trl import RLOOTrainer

        return RLOOTrainer

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {}


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write what came of it into its folder."""
    stage.train(job, RLOO())


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    return run_trainer(train, argv, objectives=RLOO.names, prog="trainers.rloo")


if __name__ == "__main__":
    sys.exit(main())
