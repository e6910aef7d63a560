"""PPO under any update scheme.

Run: python -P -m trainers.ppo PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run] [--max-steps
N] [--no-judge]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainers.frame.job import run_trainer
from trainers.ppo.loop import train


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    return run_trainer(train, argv, objectives=("ppo",), prog="trainers.ppo")


if __name__ == "__main__":
    sys.exit(main())
