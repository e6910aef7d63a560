"""Which results of a run write texts, and which of them were asked for."""

from __future__ import annotations

import shlex
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.methods import objective
from advisor.record.files import read_record
from advisor.record.run import DONE, RECORD, RunRecord, StageRecord, last_of_each_task


def record_of(run: Path) -> RunRecord:
    """run.json of a run folder. Raises InputError if there is none, or it is damaged."""
    record = read_record(run, hint="run the plan again with another --output")
    if record is None:
        raise InputError(
            f"{run} is no run folder: it has no {RECORD}",
            where=str(run),
            hint="`advise run` makes one, and prints where it is",
        )
    return record


def writing_stages(run: Path, record: RunRecord, *, only: str | None = None) -> list[StageRecord]:
    """The last finished stage of each task, or of the run if it has no tasks.

    Raises InputError if nothing that writes is finished, or `only` names none.
    """
    last = last_of_each_task(
        stage
        for stage in record.stages
        if stage.status == DONE and not objective(stage.objective).scores
    )
    if not last:
        raise InputError(
            "no stage that writes is finished",
            where=str(run),
            hint=f"to resume the run: advise run {shlex.quote(str(run))}",
        )
    for stage in last:
        if record.is_classifier(stage):
            raise InputError(
                "its result sorts texts into classes and does not write",
                where=str(run),
                hint=f"alone it sorts what is typed: advise chat {shlex.quote(str(run))}",
            )
        if record.is_seq2seq(stage):
            raise InputError(
                "its result is a sequence-to-sequence model, which holds no conversation",
                where=str(run),
                hint="the page at the end of the run and report.html show how to load it, with"
                " AutoModelForSeq2SeqLM or AutoPeftModelForSeq2SeqLM",
            )
    chosen = [stage for stage in last if only in (None, label(stage))]
    if not chosen:
        raise InputError(
            "the run has no such result",
            where=f"--only {only}",
            allowed=", ".join(map(label, last)),
        )
    return chosen


def label(stage: StageRecord) -> str:
    """What a result is called: its task, or its stage."""
    return stage.task or stage.name


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
