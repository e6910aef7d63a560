"""One attempt to train what is left of a run: the machine is checked, then stage after stage is
trained or measured. Nothing is written before everything that can be checked has been checked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import Fault, MachineNotReady, Stopped
from advisor.ground.files import PLAN_FILE, TEMPORARY, write_atomically
from advisor.ground.types import Gpu, Hardware, as_free_now
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from advisor.launch.base_check import base_license
from advisor.launch.call import Call
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.earlier import find_record
from advisor.launch.expected import expect_stage
from advisor.launch.failure_report import explain_failure, oom_kills, smaller_hint
from advisor.launch.folder import RunFolder, has_result, now
from advisor.launch.gpus import gpu_words
from advisor.launch.inputs import inputs_of, read_inputs, refuse_changed
from advisor.launch.machines import Machines, find_place, machines_of
from advisor.launch.out_of_memory import peak_estimator
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import RecordKeeper, new_record
from advisor.launch.stages import StageRunner
from advisor.launch.teaching import Teacher
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.entries import Entry
from advisor.record.files import try_read_part, write_record
from advisor.record.next_step import resume_command
from advisor.record.run import (
    DRY_RUN,
    PENDING,
    SCHEMA_VERSION,
    DryRun,
    DryRunRecord,
    DryRunStage,
    Run,
    RunRecord,
    StageMeasurement,
)
from advisor.record.smaller import PeakOf
from advisor.record.stage import Expected
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.past_runs import read_past_runs


def train_or_measure(call: Call, record: RunRecord | None) -> Run | DryRun:
    """Train what is left of a run, or measure it: here, or on all machines of the run.

    Raises AdviseError as `run_plan` does.
    """
    run = call.run
    place = find_place(run.plan.launch.nodes, os.environ, plan=run.path, folder=run.folder)
    if place is not None:
        call.say(f"machine {place.node} of {place.nodes} meets the others in {run.shown_folder}")
    with machines_of(place, run.folder) as machines:
        return _train(call, record, machines)


def _train(call: Call, record: RunRecord | None, machines: Machines | None) -> Run | DryRun:
    """Check this machine, then train what is left: here, or on all machines of the run."""
    node = machines.place.node if machines is not None else 0
    run, say, judge, max_steps = call.run, call.say, call.judge, call.run.max_steps
    machine, left = call.hardware or _probed(), call.left(record)
    shape = plan_shape(run.plan, run.path)
    checked = call.preflight(left, machine, shape, leads=node == 0)
    inputs = read_inputs(run, record.input_files if record is not None else {})
    needed = inputs_of(run, left, inputs)
    used = device_hardware(run.plan, machine, checked.gpus.gpus)
    past, notes = read_past_runs()
    expected = {
        entry.name: expect_stage(
            run.plan,
            entry,
            shape,
            as_free_now(used),
            profile=checked.profiles.get(entry.data.path),
            max_steps=max_steps,
            judge=judge,
            past=past,
        )
        for entry in run.entries
    }
    teacher = Teacher(plan=run.plan, hardware=used, shape=shape, expected=expected, say=say)

    if checked.gpus.why:
        say(checked.gpus.why)
    peak_of = peak_estimator(run.plan, shape, used, past)
    memory = check_memory(
        left,
        expected,
        checked.gpus.gpus,
        measured=measured_need(run.folder, run.digests.values()),
        is_chosen_folder=run.is_chosen_folder,
        peak_of=peak_of,
    )
    if memory.faults and not call.dry_run:
        raise MachineNotReady(faults=memory.faults)
    # A dry run is what shows how much is really needed: it is tried.
    found = (*run.warnings, *checked.warnings, *notes, *memory.warnings)
    for warning in (*found, *(fault.headline for fault in memory.faults)):
        say(f"warning: {warning}")

    for line in checked.needs if not node else ():
        say(line)
    starter = TrainerStarter(
        package_folder=call.package_folder,
        run_folder=run.folder,
        launch=run.plan.launch,
        gpus=checked.gpus.environment,
        server_gpus=checked.gpus.server,
        max_steps=max_steps,
        memory_bytes=machine.ram_total_bytes,
        machines=machines,
    )
    if machines is not None:
        machines.agree(call.report(needed, machine, checked.gpus.gpus))
        if node:
            starter.follow(machines, run.entries)
            return call.outcome(node)
    with RunFolder(run.folder) as folder, every_stop_as_interrupt():
        starter = replace(starter, lock_fd=folder.lock_fd)
        if call.dry_run:
            return measure_plan(run, call.selected, starter, teacher)
        record = find_record(run)  # again, now that nobody can change it
        if record is not None:
            refuse_changed(run, record.input_files, needed)
            inputs = {**inputs, **record.input_files, **needed}
        record = new_record(
            run,
            record,
            expected=expected,
            inputs=inputs,
            hardware=used,
            judge=judge,
            license=base_license(run.plan, run.path, shape),
        )
        keeper = RecordKeeper(run.folder, record, say=say, on_end=call.on_end)
        resume = resume_command(run.shown_folder, only=call.only, max_steps=max_steps, judge=judge)
        if machines is not None:
            resume += "   (on every machine)"
        runner = StageRunner(
            run=run,
            starter=starter,
            keeper=keeper,
            judge=judge,
            say=say,
            teacher=teacher,
            peak_of=peak_of,
            resume=resume,
        )
        return runner.train(call.selected)


def _probed() -> Hardware:
    from advisor.probe import probe

    return probe()


def measure_plan(
    run: PlanRun, selected: Sequence[Entry], starter: TrainerStarter, teacher: Teacher
) -> DryRun:
    """What was measured; dry_run.json is all that stays in the folder.

    Raises the error of the first stage that fails.
    """
    scratch = run.folder / f"{TEMPORARY}dry-run"
    try:
        stages = tuple(_measure_stage(run, entry, scratch, starter, teacher) for entry in selected)
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
    run: PlanRun, entry: Entry, scratch: Path, starter: TrainerStarter, teacher: Teacher
) -> DryRunStage:
    stage = DryRunStage(
        name=entry.name,
        objective=entry.stage.objective,
        update=entry.stage.update,
        quantization=entry.stage.quantization,
        expected=teacher.expected[entry.name],
        status=PENDING,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "stages").mkdir(parents=True)
    write_atomically(scratch / PLAN_FILE, run.text_in(scratch))
    for name in entry.needs:
        trained = run.folder / "stages" / name
        if not has_result(trained):
            teacher.say(f"stage {entry.name}: not measured, because {name} is not trained yet")
            return replace(stage, why=f"needs {name}, which is not trained yet")
        (scratch / "stages" / name).symlink_to(trained, target_is_directory=True)
    teacher.say(
        f"stage {entry.name}: measuring two steps on the longest rows and one evaluation batch"
    )
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


SHOWN_PROCESSES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFindings:
    """What the check says."""

    faults: tuple[Fault, ...] = ()  # clearly too little
    warnings: tuple[str, ...] = ()  # perhaps too little


def check_memory(
    todo: Sequence[Entry],
    expected: Mapping[str, Expected],
    gpus: Sequence[Gpu],
    *,
    measured: Mapping[str, int],
    is_chosen_folder: bool = False,
    peak_of: PeakOf | None = None,
) -> MemoryFindings:
    """What is short on the fullest of the run's GPUs.

    It is clearly too little if even the lower end of the estimate's band is not free. What a dry
    run has measured counts instead of the estimate.

    Args:
        measured: Entry -> bytes that a dry run of this plan reserved.
    """
    known = [
        (gpu.memory_free_bytes, place)
        for place, gpu in enumerate(gpus)
        if gpu.memory_free_bytes is not None
    ]
    if not known:
        return MemoryFindings()
    free, place = min(known)
    gpu, faults, warnings = gpus[place], [], []
    here = (
        f"{gpu_words(gpu, place)} has {format_gib(free)} free"
        f"{'' if gpu.memory_total_bytes is None else f' of {format_gib(gpu.memory_total_bytes)}'}"
    )
    others = f"other programs hold: {_holders(gpu)}" if _holders(gpu) else ""
    for entry in todo:
        needs, low, high = _need(expected.get(entry.name), measured.get(entry.name))
        if low is None or high is None or high <= free:
            continue
        check = (
            ""
            if entry.name in measured
            else "; `advise run --dry-run` measures it, and counts instead of the estimate"
        )
        if low <= free:
            warnings.append(
                f"stage {entry.name} {needs}, {here}: it may run out of memory"
                f"{f' ({others})' if others else ''}{check}"
            )
            continue
        is_too_small = gpu.memory_total_bytes is not None and low > gpu.memory_total_bytes
        wait = "" if is_too_small or not others else "wait for them or end them, or "
        smaller = smaller_hint(entry, is_chosen_folder, peak_of=peak_of, limit_bytes=free)
        faults.append(
            Fault(
                where=f"stage {entry.name}",
                what=f"stage {entry.name} {needs}, {here}",
                allowed=others,
                hint=f"{wait}{smaller}{check}",
            )
        )
    return MemoryFindings(faults=tuple(faults), warnings=tuple(warnings))


def _need(
    expected: Expected | None, measured_bytes: int | None
) -> tuple[str, int | None, int | None]:
    """('needs about 21.0 GiB (18.9 to 23.1)', the lower end, the upper end)."""
    if measured_bytes is not None:
        return (
            f"needs {format_gib(measured_bytes)} (measured by a dry run)",
            measured_bytes,
            measured_bytes,
        )
    if expected is None or expected.need_bytes is None:
        return "", None, None
    low = expected.need_low_bytes or expected.need_bytes
    high = expected.need_high_bytes or expected.need_bytes
    band = f"{format_gib(low)} to {format_gib(high)}"
    return f"needs about {format_gib(expected.need_bytes)} ({band})", low, high


def _holders(gpu: Gpu) -> str:
    """'python (process 4242) 18.1 GiB, Xorg (process 7) 0.8 GiB'."""
    found = [
        f"{process.name or 'a program'} (process {process.pid})"
        f"{'' if process.memory_bytes is None else f' {format_gib(process.memory_bytes)}'}"
        for process in gpu.other_processes
    ]
    more = len(found) - SHOWN_PROCESSES
    return ", ".join(found[:SHOWN_PROCESSES]) + (f" and {more} more" if more > 0 else "")


def measured_need(folder: Path, digests: Iterable[str]) -> dict[str, int]:
    """Entry -> bytes that a dry run of this very plan reserved on the GPU; empty without one."""
    record = try_read_part(DryRunRecord, folder / DRY_RUN)
    if record is None or not set(digests) & set(record.digests.values()):
        return {}
    return {
        stage.name: stage.measured.reserved_bytes
        for stage in record.stages
        if stage.measured is not None and stage.measured.reserved_bytes is not None
    }
