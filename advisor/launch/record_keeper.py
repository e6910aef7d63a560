"""run.json while a run goes on, and what optional features do with a run that is done. Every change
is written at once, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground import files
from advisor.ground.errors import AdviseError, MachineNotReady, Stopped
from advisor.ground.extras import extras
from advisor.ground.types import DDP
from advisor.ground.version import __version__
from advisor.launch.call import Call
from advisor.launch.earlier import Inputs
from advisor.launch.folder import is_done, now
from advisor.launch.hub import base_license
from advisor.launch.identity import with_identity
from advisor.launch.prepare import OnEnd, PlanRun, Say
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.record.files import write_record
from advisor.record.judge import folder_verdict
from advisor.record.run import (
    DONE,
    FAILED,
    PENDING,
    RECORD,
    RUNNING,
    SCHEMA_VERSION,
    STOPPED,
    FinishedRun,
    MachineRecord,
    RunRecord,
    StageRecord,
    StageResult,
    Status,
)
from advisor.record.stage import Adjustment, ErrorRecord, Expected, LaunchRecord


def new_record(call: Call, old: RunRecord | None, inputs: Inputs) -> RunRecord:
    """run.json at the start of an attempt; what earlier attempts finished is kept."""
    run, hardware = call.run, call.used
    first = RunRecord(schema_version=SCHEMA_VERSION, status=RUNNING, stages=(), attempts=0)
    before = old or first
    launch = LaunchRecord(
        strategy=(run.plan.launch.strategy or DDP) if run.plan.launch.world_size > 1 else None,
        processes=run.plan.launch.processes,
        nodes=run.plan.launch.nodes,
    )
    if before.launch is not None and launch == replace(
        before.launch, sharded_tensors=None, peak_gib_per_rank=(), extra={}
    ):
        launch = before.launch
    return replace(
        before,
        advise_version=__version__,
        name=run.plan.name,
        status=RUNNING,
        composition=run.plan.origin.composition,
        model=run.plan.model,
        license=base_license(run, call.shape) or before.license,
        stages=tuple(
            _stage_record(entry, before, call.expected[entry.name], run.folder)
            for entry in run.entries
        ),
        launch=launch,
        max_steps=run.max_steps,
        judge=call.options.judge,
        hardware=MachineRecord(
            kind=hardware.kind,
            gpus=tuple(gpu.name for gpu in hardware.gpus),
            driver_version=hardware.driver_version if hardware.gpus else None,
            cpu_cores=hardware.cpu_cores,
            ram_total_bytes=hardware.ram_total_bytes,
        ),
        digests=run.digests,
        tasks=run.tasks,
        input_files=inputs,
        identity=None,
        started_at=before.started_at or now(),
        finished_at=None,
        attempts=before.attempts + 1,
    )


def _stage_record(entry: Entry, old: RunRecord, expected: Expected, folder: Path) -> StageRecord:
    """An entry of run.json's `stages`; a finished one is kept as it is."""
    before = old.stage(entry.name)
    if before is not None and is_done(old, entry.name, folder):
        return before
    status: Status = before.status if before else PENDING
    return StageRecord(
        name=entry.name,
        task=entry.task.name if entry.task else None,
        objective=entry.stage.objective,
        update=entry.stage.update,
        quantization=entry.stage.quantization,
        status=STOPPED if status in (RUNNING, DONE) else status,  # killed, or its result is gone
        expected=expected,
        folder=f"stages/{entry.name}",
        adjusted=before.adjusted if before else (),
    )


RESERVE = f"{files.TEMPORARY}reserve"  # room for the last record of a run that fills its disk
RESERVE_BYTES = 2**18


class RecordKeeper:
    """The record of a run. From its first change on, run.json says the same."""

    def __init__(self, folder: Path, record: RunRecord, *, say: Say, on_end: OnEnd | None) -> None:
        self.folder = folder
        self.record = record
        self.say = say
        self.on_end = on_end

    def is_done(self, name: str) -> bool:
        """Whether a stage is recorded as done and its result is there."""
        return is_done(self.record, name, self.folder)

    def begin(self, names: Sequence[str]) -> None:
        """Stages that one process trains one after the other: the first runs, the rest wait."""
        for name in names:
            self._change(name, status=PENDING, finished_at=None, error=None)
        # They were of other modules.
        self.record = replace(self.record, cross_evaluation=None)
        self._change(names[0], status=RUNNING, started_at=now())
        self.save()
        with suppress(OSError):
            files.DISK.write(self.folder / RESERVE, bytes(RESERVE_BYTES))

    def accept(self, name: str, result: StageResult, *, following: str | None) -> None:
        """A stage is finished; its process goes on with the following one, if there is one."""
        stage = self.record.stage(name)
        assert stage is not None, name
        self.record = replace(
            self.record.with_stage(stage.with_result(result, finished_at=now())),
            resolved={**self.record.resolved, name: result.resolved},
            versions={**self.record.versions, **result.versions},
            launch=(self.record.launch or LaunchRecord()).with_stage(result.launch),
        )
        self._judge()
        if following is not None:
            self._change(following, status=RUNNING, started_at=now(), finished_at=None)
        self.save()

    def note_adjustments(self, name: str, adjustments: Sequence[Adjustment]) -> None:
        """What the stage has changed by itself so far."""
        self._change(name, adjusted=tuple(adjustments))
        every = tuple(one for stage in self.record.stages for one in stage.adjusted)
        if every != self.record.adjusted:
            self.record = replace(self.record, adjusted=every)
            self.save()

    def end_with(self, error: AdviseError) -> None:
        """The run ends by an error, unless the record says already how it ended."""
        if self.record.status != RUNNING:
            return
        status: Status = STOPPED if isinstance(error, Stopped) else FAILED
        for stage in self.record.stages:
            if stage.status == RUNNING:
                ended = {"status": status, "finished_at": now(), "error": ErrorRecord.of(error)}
                self._change(stage.name, **ended)
        self._finish(status)

    def note_comparison(self, losses: Mapping[str, Mapping[str, float | None]]) -> None:
        """The modules of all tasks were compared."""
        self.record = replace(self.record, cross_evaluation=losses)
        self.save()

    def note_extra(self, name: str, found: Mapping[str, Any] | None) -> None:
        """Keep what an optional feature found, under `extras.NAME`; None: forget it."""
        noted = {key: one for key, one in (self.record.extras or {}).items() if key != name}
        noted |= {name: found} if found is not None else {}
        self.record = replace(self.record, extras=noted or None)
        self._judge()
        self.save()

    def finish(self, run: PlanRun | None = None, *, complete: bool = True) -> Status:
        """The run ends: done if every stage is, and nothing else is left to do; else stopped.

        Args:
            run: What was run, for `identity`.
        """
        is_complete = complete and all(stage.status == DONE for stage in self.record.stages)
        if is_complete and run is not None:
            self.record = with_identity(run, self.record)
        self._finish(DONE if is_complete else STOPPED)
        return self.record.status

    def _change(self, name: str, **values: Any) -> None:
        stage = self.record.stage(name)
        assert stage is not None, name
        self.record = self.record.with_stage(replace(stage, **values))

    def _judge(self) -> None:
        verdict = folder_verdict(self.folder, self.record)
        self.record = replace(self.record, verdict=verdict or self.record.verdict)

    def _finish(self, status: Status) -> None:
        self.record = replace(self.record, status=status, finished_at=now())
        self._judge()
        files.DISK.discard(self.folder / RESERVE)
        try:
            self.save()
        except MachineNotReady:  # a full disk, say: the error that ends the run says so already
            if status == DONE:
                raise
        if self.on_end is not None:
            try:
                self.on_end(self.folder, self.record)
            except Exception as error:  # the training counts; the report can be made again
                self.say(f"could not write the report: {error}")

    def save(self) -> None:
        """Write run.json. Raises MachineNotReady."""
        write_record(self.folder / RECORD, self.record)


RESUME = "resume with"


class Ending(Struct, frozen=True, kw_only=True):
    """A run that is done, as an optional feature is given it."""

    run: FinishedRun
    plan: Plan  # as it stands in the run folder
    keeper: RecordKeeper
    say: Say
    again: str  # the command that tries again what failed
    failures: list[AdviseError] = field(default_factory=list)  # of features that were asked before


def end_run(ending: Ending) -> FinishedRun:
    """The run after every optional feature has acted on it, with the errors they returned.

    Raises Stopped if it was asked to stop.
    """
    for extra in extras().values():
        error = extra.finished(ending)
        if error is not None:
            ending.failures.append(error)
    run, record = ending.run, ending.keeper.record
    did_nothing = run.already_done and record is run.record and not ending.failures
    return replace(run, record=record, errors=tuple(ending.failures), already_done=did_nothing)


def with_resume(error: AdviseError, command: str) -> AdviseError:
    """The error with the command that goes on from the last checkpoint beside its own hint."""
    *others, last = error.faults
    line = f"{RESUME}: {command}"
    if line in last.hint:
        return error
    hint = line if not last.hint or isinstance(error, Stopped) else f"{last.hint}\n  {line}"
    return type(error)(faults=[*others, replace(last, hint=hint)])
