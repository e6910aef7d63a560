"""What the processes that trained a stage hand to the one that judges its result: a record, and the
trained model's answer to one row, with which the model on the disk has to agree.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from advisor.ground.files import DISK, ELSEWHERE, cannot_write
from advisor.record.files import ANSWER, TRAINED, TrainedStage, trained_record, try_read_part
from advisor.record.run import StageResult
from advisor.record.stage import SavedFile, Times
from trainers.job.files import make_folder, write_json
from trainers.keep.checkpoint_store import CheckpointStore, fingerprint


def dependency(store: CheckpointStore) -> str:
    """A digest of what the training depends on."""
    found = store.dependencies
    return fingerprint([found.parts, found.settings, found.processes])


def keep_trained(
    folder: Path, result: StageResult, answer: Any, *, answered_in: str | None = None, **about: Any
) -> None:
    """Write what `result` says and the trained model's answer into the stage's folder.

    Raises MachineNotReady if the disk does not take it.

    Args:
        folder: Of the stage.
        result: As far as it goes without judging.
        answer: To the row of the checks.
        answered_in: The dtype that the answer was computed in, if not that of the weights.
        about: The other keys of TrainedStage.
    """
    from safetensors.torch import save

    make_folder(folder / TRAINED)
    path, content = folder / TRAINED / ANSWER, save({"answer": answer.contiguous()})
    try:
        DISK.replace(path, content)
        saved = SavedFile(bytes=len(content), sha256=DISK.digest(path))
    except OSError as error:
        raise cannot_write(path, error, way_out=ELSEWHERE) from error
    known = {part.name: getattr(result, part.name) for part in fields(StageResult)}
    record = TrainedStage(**known, answer=saved, answered_in=answered_in, **about)
    write_json(trained_record(folder), record.to_dict())


def read_trained(folder: Path) -> tuple[TrainedStage, Any] | None:
    """(the record of a stage that is trained and not judged, the trained model's answer); None if
    there is none, or if it is not what was written.
    """
    from safetensors.torch import load

    record = try_read_part(TrainedStage, trained_record(folder))
    path = folder / TRAINED / ANSWER
    if record is None or not path.is_file() or DISK.digest(path) != record.answer.sha256:
        return None
    return record, load(path.read_bytes())["answer"]


def forget_trained(folder: Path) -> None:
    """Remove the record: the stage is judged, or is trained again. The record itself goes first."""
    trained_record(folder).unlink(missing_ok=True)
    DISK.discard(folder / TRAINED)


def without_handover(record: TrainedStage) -> StageResult:
    """What the record says of the stage itself."""
    known = {part.name: getattr(record, part.name) for part in fields(StageResult)}
    return StageResult(**known)


def together(one: Times | None, other: Times) -> Times:
    """The times of both processes that worked on a stage, part by part."""
    if one is None:
        return other
    names = [part.name for part in fields(Times) if part.name != "extra"]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    sums: dict[str, Any] = {
        name: None if pair == (None, None) else round(sum(value or 0.0 for value in pair), 3)
        for name, pair in pairs.items()
    }
    return replace(other, **sums)
