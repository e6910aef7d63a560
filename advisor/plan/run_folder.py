"""The run folders that a training left: found by path, or the newest one."""

from __future__ import annotations

from pathlib import Path

from advisor.ground.errors import InputError
from advisor.plan.record import DONE, RECORD
from advisor.plan.record_files import read_record


def find_run(run: str) -> Path:
    """The run folder with this path. Raises InputError if it is none."""
    folder = Path(run).expanduser().absolute()
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{run} is not a run folder: it has no {RECORD}",
            where=str(run),
            hint=(
                "`advise run` prints its run folder; without a name, the newest one under ./runs"
                " is used"
            ),
        )
    return folder


def newest_run(here: Path) -> Path:
    """The run under ./runs that ended last with a finished stage.

    Raises InputError if there is none.
    """
    found = []
    for record_path in (here / "runs").glob(f"*/{RECORD}"):
        try:
            record = read_record(record_path.parent)
        except InputError:  # of another version, or broken: not to be used unasked
            continue
        if record is not None and any(stage.status == DONE for stage in record.stages):
            found.append((record.finished_at or "", record_path.parent))
    if not found:
        raise InputError(
            "there is no finished run under ./runs",
            hint="name a run folder; `advise run` prints where it is",
        )
    return max(found)[1]


def device_of(folder: Path) -> str:
    """The kind of device a run was trained on: cuda, rocm, mps or cpu."""
    record = read_record(folder)
    kind = record.hardware.kind if record is not None and record.hardware is not None else None
    return kind if kind in ("cuda", "rocm", "mps") else "cpu"
