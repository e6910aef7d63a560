"""Measures a plan instead of training it: two real steps and one evaluation batch of each stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advisor.ground.errors import Stopped
from advisor.ground.files import PLAN_FILE, TEMPORARY, write_atomically
from advisor.ground.version import __version__
from advisor.launch.failure_report import explain_failure, oom_kills, smaller_hint
from advisor.launch.folder import has_result, now
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import Say
from advisor.launch.teaching import Teacher
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.entries import Entry
from advisor.plan.measured_record import Expected
from advisor.plan.record import (
    DRY_RUN,
    PENDING,
    SCHEMA_VERSION,
    DryRun,
    DryRunRecord,
    DryRunStage,
    StageMeasurement,
)
from advisor.plan.record_files import try_read_part, write_record


def measure_plan(
    run: PlanRun,
    selected: Sequence[Entry],
    *,
    starter: TrainerStarter,
    expected: Mapping[str, Expected],
    teacher: Teacher,
    say: Say,
) -> DryRun:
    """What was measured; dry_run.json is all that stays in the folder.

    Raises the error of the first stage that fails.
    """
    scratch = run.folder / f"{TEMPORARY}dry-run"
    try:
        stages = tuple(
            _measure_stage(run, entry, scratch, starter, expected[entry.name], teacher, say)
            for entry in selected
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    record = DryRunRecord(
        schema_version=SCHEMA_VERSION,
        advise_version=__version__,
        name=run.plan.name,
        digests=run.digests,
        measured_at=now(),
        stages=stages,
    )
    write_record(run.folder / DRY_RUN, record)
    return DryRun(folder=run.folder, record=record)


def _measure_stage(
    run: PlanRun,
    entry: Entry,
    scratch: Path,
    starter: TrainerStarter,
    expected: Expected,
    teacher: Teacher,
    say: Say,
) -> DryRunStage:
    stage = DryRunStage(
        name=entry.name,
        objective=entry.stage.objective,
        update=entry.stage.update,
        quantization=entry.stage.quantization,
        expected=expected,
        status=PENDING,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "stages").mkdir(parents=True)
    write_atomically(scratch / PLAN_FILE, run.text_in(scratch))
    for name in entry.needs:
        trained = run.folder / "stages" / name
        if not has_result(trained):
            say(f"stage {entry.name}: not measured, because {name} is not trained yet")
            return replace(stage, why=f"needs {name}, which is not trained yet")
        (scratch / "stages" / name).symlink_to(trained, target_is_directory=True)
    say(f"stage {entry.name}: measuring two steps on the longest rows and one evaluation batch")
    kills = oom_kills()
    ended = starter.train([entry], scratch, ["--dry-run"])
    own = scratch / "stages" / entry.name
    found = try_read_part(StageMeasurement, own / DRY_RUN) if ended.code == 0 else None
    if found is not None and found.measured is not None:
        teacher.measured(entry, found.measured)
        return stage.with_measurement(found)
    if ended.was_stopped:
        raise Stopped("stopped", hint="nothing was kept")
    raise explain_failure(
        entry,
        code=ended.code,
        folder=own,
        oom_kills_before=kills,
        smaller=lambda doing: smaller_hint(entry, False, loading=doing == "loading"),
    )
