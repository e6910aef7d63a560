"""`advise run`: what a plan says is checked, then trained or measured stage by stage; the next call
resumes where this one ended. Nothing is written before everything that can be checked has been
checked.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import all_extras
from advisor.ground.files import PLAN_FILE, TEMPORARY, write_atomically
from advisor.ground.version import __version__
from advisor.launch.call import Call
from advisor.launch.checks import run_checks
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.earlier import (
    Inputs,
    begins_anew,
    check_results,
    find_record,
    inputs_of,
    read_inputs,
    refuse_changed,
    without_checkpoint,
)
from advisor.launch.failure_report import explain_failure, oom_kills, smaller_hint
from advisor.launch.folder import RunFolder, has_result, is_done, now, refuse_live
from advisor.launch.machines import Machines, Message, find_place, machines_of, node_of, versions
from advisor.launch.prepare import Options, prepare_plan, select_entries
from advisor.launch.record_keeper import Ending, RecordKeeper, end_run, new_record
from advisor.launch.stages import StageRunner, is_unfinished
from advisor.launch.teaching import note_dry_run
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.write import plan_digest
from advisor.record.content import digest_of
from advisor.record.files import try_read_part, write_record
from advisor.record.next_step import resume_command
from advisor.record.run import (
    DONE,
    DRY_RUN,
    PENDING,
    RECORD,
    SCHEMA_VERSION,
    DryRun,
    DryRunRecord,
    DryRunStage,
    FinishedRun,
    RunRecord,
    StageMeasurement,
)

AS_PLANNED = Options()


def run_plan(plan: Path | str | Plan, options: Options = AS_PLANNED) -> FinishedRun | DryRun:
    """Train what a plan says, and return what came of it.

    The same plan is resumed where it was; a finished one is left alone. Nothing is written before
    everything that can be checked has been checked. Messages go to stderr.

    Args:
        plan: The launch file; or a Plan that was just made, with paths relative to the current
            folder.
        options: How it is run.

    Raises AdviseError: InputError, MachineNotReady before anything is written (RunIsLive if this
    very run is at work in another process); TrainingFailed, Stopped with run.json written.
    """
    _refuse_without_posix()
    for line in all_extras().warnings():
        options.say(f"warning: {line}")
    run = prepare_plan(plan, options)
    selected = select_entries(run.entries, options.only)
    record = find_record(run)
    call = Call(run=run, options=options, selected=selected, record=record)
    if record is None and not options.dry_run and (said := begins_anew(run)):
        options.say(said)
    if record is not None and not options.dry_run:
        refuse_live(run.folder)  # before anything is looked at that it is changing
        for warning in check_results(run, record, selected):
            options.say(f"warning: {warning}")
        if done := _finished_before(call, record):
            return done
        for line in without_checkpoint(run, record):
            options.say(line)
    return train_or_measure(call)


def _refuse_without_posix() -> None:
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise MachineNotReady(
            "training does not run on Windows itself; advice does",
            hint="start it under WSL2, where Windows runs Linux: `wsl --install`, then the same"
            " command there. Or train elsewhere: `advise export --to bundle` packs the plan",
        ) from None


def _finished_before(call: Call, record: RunRecord) -> FinishedRun | None:
    """The run, if nothing of what was asked for is left to do, after its optional features."""
    run, options = call.run, call.options
    unfinished = {
        entry.name for entry in run.entries if not is_done(record, entry.name, run.folder)
    }
    if options.only is None:
        is_finished = record.status == DONE and not unfinished
        said = "{} is finished" if is_finished else "resuming {}"
        options.say(said.format(run.shown_folder))
    # Killed between its last stage and its end, a run still has to be finished.
    if (
        unfinished.intersection(entry.name for entry in call.selected)
        or not (unfinished or record.status == DONE)
        or (options.judge and record.judge and is_unfinished(run, record))
    ):
        return None
    node = node_of(run.plan.launch.nodes, os.environ)
    done = FinishedRun(folder=run.folder, record=record, already_done=True, node=node)
    if node:  # another machine keeps it
        return done
    keeper = RecordKeeper(run.folder, record, say=options.say, on_end=None)
    again = resume_command(run.shown_folder, only=options.only, judge=options.judge)
    ending = Ending(run=done, plan=run.plan, keeper=keeper, say=options.say, again=again)
    if not run.plan.extras:
        return end_run(ending)
    with RunFolder(run.folder), every_stop_as_interrupt():
        write_atomically(run.folder / PLAN_FILE, run.copy_text)  # which may lack their keys
        return end_run(ending)


def train_or_measure(call: Call) -> FinishedRun | DryRun:
    """Train what is left of a run, or measure it: here, or on all machines of the run.

    Raises AdviseError as `run_plan` does.
    """
    run = call.run
    place = find_place(run.plan.launch.nodes, os.environ, plan=run.path, folder=run.folder)
    if place is not None:
        call = replace(call, node=place.node)
        call.options.say(
            f"machine {place.node} of {place.nodes} meets the others in {run.shown_folder}"
        )
    with every_stop_as_interrupt(), machines_of(place, run.folder, call.options.say) as machines:
        return _train(call, machines)


def _train(call: Call, machines: Machines | None) -> FinishedRun | DryRun:
    """Check this machine, then train what is left: here, or on all machines of the run."""
    run, say = call.run, call.options.say
    checked = run_checks(call)
    inputs = read_inputs(run, call.record.input_files if call.record is not None else {})
    needed = inputs_of(run, call.left, inputs)
    if call.gpus.why:
        say(call.gpus.why)
    for warning in (*run.warnings, *checked.warnings, *call.past[1]):
        say(f"warning: {warning}")
    for line in checked.needs if not call.node else ():
        say(line)
    starter = TrainerStarter(call=call, machines=machines)
    if machines is not None:
        machines.agree(_shared_facts(call, needed))
        if call.node:
            starter.follow(machines)
            return _outcome_of_leader(call)
    with RunFolder(run.folder) as folder:
        starter = replace(starter, lock_fd=folder.lock_fd)
        if call.options.dry_run:
            return _measure_plan(call, starter)
        record = find_record(run)  # again, now that nobody can change it
        if record is not None:
            refuse_changed(run, record.input_files, needed)
            inputs = {**inputs, **record.input_files, **needed}
        keeper = RecordKeeper(
            run.folder, new_record(call, record, inputs), say=say, on_end=call.options.on_end
        )
        return StageRunner(call=call, starter=starter, keeper=keeper, is_new=folder.made).train()


def _shared_facts(call: Call, inputs: Inputs) -> Message:
    given = {
        "the plan": plan_digest(call.run.plan),
        "save_steps": [one.stage.save_steps for one in call.run.entries],
        "save_minutes": [one.stage.save_minutes for one in call.run.entries],
        "--only": call.options.only,
        "--max-steps": call.options.max_steps,
        "--dry-run": call.options.dry_run,
        "--no-judge": not call.options.judge,
    }
    held = {name: digest_of(files) for name, files in inputs.items()}
    return {"given": given | held, "versions": versions(call.machine.software, call.gpus.gpus)}


def _outcome_of_leader(call: Call) -> FinishedRun | DryRun:
    """What machine 0 has written into the folder, as another machine of the run sees it."""
    folder = call.run.folder
    if call.options.dry_run and (measured := try_read_part(DryRunRecord, folder / DRY_RUN)):
        return DryRun(folder=folder, record=measured, node=call.node)
    if (record := find_record(call.run)) is not None:
        return FinishedRun(folder=folder, record=record, node=call.node)
    raise MachineNotReady(f"machine 0 has finished, and its result is not seen in {folder}")


def _measure_plan(call: Call, starter: TrainerStarter) -> DryRun:
    """What was measured; dry_run.json and the plan, which can be trained now, stay in the folder.

    Raises the error of the first stage that fails.
    """
    run = call.run
    scratch = run.folder / f"{TEMPORARY}dry-run"
    try:
        stages = tuple(_measure_stage(call, entry, scratch, starter) for entry in call.selected)
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
    if not (run.folder / RECORD).exists():
        write_atomically(run.folder / PLAN_FILE, run.copy_text)
    return DryRun(folder=run.folder, record=record)


def _measure_stage(call: Call, entry: Entry, scratch: Path, starter: TrainerStarter) -> DryRunStage:
    run, at = call.run, f"stage {entry.name}"
    stage = DryRunStage(
        name=entry.name,
        objective=entry.stage.objective,
        update=entry.stage.update,
        quantization=entry.stage.quantization,
        expected=call.expected[entry.name],
        status=PENDING,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "stages").mkdir(parents=True)
    write_atomically(scratch / PLAN_FILE, run.text_in(scratch))
    for name in entry.needs:
        trained = run.folder / "stages" / name
        if not has_result(trained):
            call.options.say(f"{at}: not measured, because {name} is not trained yet")
            return replace(stage, why=f"needs {name}, which is not trained yet")
        (scratch / "stages" / name).symlink_to(trained, target_is_directory=True)
    call.options.say(f"{at}: measuring two steps on the longest rows and one evaluation batch")
    kills = oom_kills()
    ended = starter.train([entry], scratch)
    own = scratch / "stages" / entry.name
    found = try_read_part(StageMeasurement, own / DRY_RUN) if ended.code == 0 else None
    if found is not None and found.measured is not None:
        note_dry_run(call, entry, found.measured)
        return stage.with_measurement(found)
    raise explain_failure(
        entry,
        ended=ended,
        folder=own,
        oom_kills_before=kills,
        smaller=lambda doing: smaller_hint(entry, False, loading=doing == "loading"),
    )
