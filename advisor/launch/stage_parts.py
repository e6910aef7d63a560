"""The two parts of a stage that several processes train: the training, and the judging of what they
saved, each in a child of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from advisor.launch.trainer_process import Ended
from advisor.plan.record import RESULT
from advisor.plan.trained_record import trained_record

NOT_JUDGED = "stopped before its result was judged: no step is lost"


def train_and_judge(
    folders: Sequence[Path], train: Callable[[], Ended], judge: Callable[[], Ended]
) -> Ended:
    """How the processes of a stage ended. One process does all of it; what several have trained and
    saved is judged by one of its own, now or when the run is resumed.

    Args:
        folders: Of the stages that are trained together.
        train: Starts the training.
        judge: Starts what judges the saved results.
    """
    ended = None
    for _ in range(2):  # again, if what was trained is not what the plan says now
        if not is_trained(folders):
            ended = train()
            if ended.code != 0 or ended.was_stopped or not is_trained(folders):
                return ended
        ended = judge()
        if ended.code != 0 or ended.was_stopped or is_trained(folders):
            return ended
        if all((folder / RESULT).is_file() for folder in folders):
            return ended
    assert ended is not None
    return ended


def is_trained(folders: Sequence[Path]) -> bool:
    """Whether all of these stages are trained and saved by several processes, and not judged."""
    return all(trained_record(folder).is_file() for folder in folders)
