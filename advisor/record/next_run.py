"""Command lines that continue from a run, whole and ready to paste. What they set takes effect:
a key that the plan or a task overrides is named where it counts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable

from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.record.smaller import key_path

CARD = "README.md"


def resume_command(
    folder: str, *, only: str | None = None, max_steps: int | None = None, judge: bool = True
) -> str:
    """'advise run runs/shop-1b2c --only legal': the run folder holds the plan with its changes."""
    words = ["advise", "run", f"./{folder}" if folder.startswith("-") else folder]
    words += ["--only", only] if only is not None else []
    words += ["--max-steps", str(max_steps)] if max_steps is not None else []
    return shlex.join([*words, *([] if judge else ["--no-judge"])])


def upload_command(repository: str, folder: str, files: Iterable[str]) -> str:
    """The command that uploads a result's files and card; checkpoints and samples stay."""
    only = [f"--include={name}" for name in (*files, CARD)]
    return shlex.join(["hf", "upload", repository, folder, ".", "--private", *only])


def longer_setting(entry: Entry) -> str:
    """'stages.sft.epochs=4': twice the training of a stage, by the key that decides on it."""
    stage = entry.stage
    if stage.max_steps is not None:
        return f"{key_path(entry, 'max_steps')}={2 * stage.max_steps}"
    return f"{key_path(entry, 'epochs')}={2 * stage.epochs:g}"


TRIAL_ROWS = 50
LEAST_STEPS = 3  # fewer show no direction of the loss


def trial_steps(plan: Plan) -> int:
    """How many optimizer steps of each stage read about `TRIAL_ROWS` rows, for --max-steps.

    One number for all stages: that of the stage with the most rows a step, since a trial is to end
    in minutes.
    """
    rows = [entry.stage.effective_batch_size * plan.launch.world_size for entry in entries(plan)]
    return max(LEAST_STEPS, math.ceil(TRIAL_ROWS / max(rows)))
