"""What the training of a stage leaves for the process that judges its result.

Several processes train a stage together, and none of them may run a model while the others wait:
under sharding each forward pass needs all of them. So they leave this record beside the saved
result, and a process of its own judges what was saved, from the disk. It is gone once the stage has
its result.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from advisor.ground.json_values import OMIT_NULL
from advisor.record.run import SavedFile, StageResult

TRAINED: Final = "trained"  # the folder inside the stage's
TRAINED_RECORD, ANSWER = "record.json", "answer.safetensors"  # the files in it


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedStage(StageResult):
    """trained/record.json: a stage that is trained and saved, and not judged yet. What judging
    finds out is still missing: the evaluation, the checks of the saved files, the verdict.
    """

    processes: Annotated[int, "how many trained it"] = 1
    depends_on: Annotated[str, "digest of everything that the training depends on"] = ""
    answer: Annotated[SavedFile, "answer.safetensors: the trained model's answer to one row"]
    answered_in: Annotated[
        str | None, "dtype that the answer was computed in, if not that of the weights", OMIT_NULL
    ] = None


def trained_record(folder: Path) -> Path:
    """The record's path in the folder of a stage. It is written last: if it is there, all is."""
    return folder / TRAINED / TRAINED_RECORD
