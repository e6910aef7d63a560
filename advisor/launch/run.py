"""`advise run`: what a plan says is checked, then trained or measured stage by stage; the next call
resumes where this one ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import all_extras
from advisor.ground.files import PLAN_FILE, write_atomically
from advisor.ground.resources import trainers_root
from advisor.ground.terminal import print_message
from advisor.ground.types import Hardware, as_free_now
from advisor.launch.base_check import base_license
from advisor.launch.base_paths import (
    correct_record,
    moved_bases,
    true_configs,
    write_configs,
)
from advisor.launch.call import Call
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.dry_run import measure_plan
from advisor.launch.ending import Ending, end_run
from advisor.launch.expected import expect_stage
from advisor.launch.folder import RunFolder, find_record, is_done, refuse_other_methods
from advisor.launch.input_digests import (
    recorded_by_earlier_version,
    recorded_inputs,
    refuse_changed,
    renamed,
)
from advisor.launch.live import refuse_live
from advisor.launch.machines import Machines, machines_of
from advisor.launch.memory_check import check_memory, measured_need
from advisor.launch.nodes import find_place, node_of
from advisor.launch.out_of_memory import peak_estimator
from advisor.launch.prepare import PlanRun, prepare_plan, select_entries
from advisor.launch.record_keeper import OnEnd, RecordKeeper, Say, new_record, note_new_paths
from advisor.launch.result_check import check_results, results_it_rests_on
from advisor.launch.stages import StageRunner, is_unfinished
from advisor.launch.teaching import Teacher
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.model import Comments, Plan
from advisor.plan.next_run import resume_command
from advisor.plan.record import DONE, DryRun, Run, RunRecord
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.past_runs import read_past_runs


def refuse_without_posix() -> None:
    """Raise MachineNotReady on Windows: run folders are locked, and trainers started and stopped,
    by means of POSIX systems.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise MachineNotReady(
            "training does not run on Windows itself; advice does",
            hint="start it under WSL2, where Windows runs Linux: `wsl --install`, then the same"
            " command there. Or train elsewhere: `advise export PLAN --to bundle`",
        ) from None


def run_plan(
    plan: Path | str | Plan,
    *,
    comments: Comments | None = None,
    output: Path | str | None = None,
    only: str | None = None,
    set_values: Iterable[str] = (),
    max_steps: int | None = None,
    dry_run: bool = False,
    judge: bool = True,
    hardware: Hardware | None = None,
    say: Say | None = None,
    trainers: Path | None = None,
    on_end: OnEnd | None = None,
) -> Run | DryRun:
    """Train what a plan says, and return what came of it.

    The same plan is resumed where it was; a finished one is left alone. Nothing is written before
    everything that can be checked has been checked. Messages go to stderr.

    Args:
        plan: The launch file; or a Plan that was just made, with paths relative to the current
            folder.
        comments: The reasons that belong to such a Plan.
        output: The run folder; default: ./runs/<name>-<digest>.
        only: One stage, one task, or one stage of one task by the name of its folder.
        set_values: Changes of the plan: 'stages.0.learning_rate=1e-4'.
        max_steps: Stops every stage after so many steps, for a trial run.
        dry_run: Measure two steps and one evaluation batch of each stage instead.
        judge: Compare the result with the base afterwards.
        hardware: The machine; default: probed.
        say: Takes messages, line by line; default: stderr.
        trainers: The folder that holds the package `trainers`; default: the installed one.
        on_end: Called with the folder and the record whenever training ends, also by a failure:
            writes the report.

    Raises AdviseError: InputError, MachineNotReady before anything is written (RunIsLive if this
    very run is at work in another process); TrainingFailed, Stopped with run.json written.
    """
    say = say or print_message
    refuse_without_posix()
    for line in all_extras().warnings():
        say(f"warning: {line}")
    run = prepare_plan(
        plan,
        comments=comments,
        output=output,
        set_values=set_values,
        max_steps=max_steps,
        say=say,
    )
    selected = select_entries(run.entries, only)
    record = find_record(run.folder, run.identity)
    if record is not None and not dry_run:
        refuse_live(run.folder)  # before anything is looked at that it is changing
    if record is not None:
        refuse_other_methods(record, run.entries, run.folder)
    if record is not None and not dry_run:
        sound = results_it_rests_on(record, selected, run.folder)
        configs = true_configs(run, record)
        changed = check_results(
            record, sound, run.folder, shown_folder=run.shown_folder, corrected=configs
        )
        for warning in changed:
            say(f"warning: {warning}")
        unfinished = {
            entry.name for entry in run.entries if not is_done(record, entry.name, run.folder)
        }
        if only is None:
            is_finished = record.status == DONE and not unfinished
            say(
                f"{run.shown_folder} is finished" if is_finished else f"resuming {run.shown_folder}"
            )
        # Killed between its last stage and its end, a run still has to be finished.
        if (
            not unfinished.intersection(entry.name for entry in selected)
            and (unfinished or record.status == DONE)
            and not (judge and record.judge and is_unfinished(run, record))
        ):
            if node := node_of(run.plan.launch.nodes, os.environ):  # another machine keeps it
                return Run(folder=run.folder, record=record, already_done=True, node=node)
            is_known = run.has_paths_of(record)
            if record.status == DONE and (configs or not is_known):
                now = {} if is_known else run.inputs.of_entries(selected)
                for line in (*renamed(record, run.inputs, now, run.folder), *moved_bases(configs)):
                    say(line)
                record = note_new_paths(run, record, configs)
            return _ended(
                run, record, say, resume_command(run.shown_folder, only=only, judge=judge)
            )

    call = Call(
        run=run,
        selected=selected,
        # Only what is not done yet needs its trainer, data and disk.
        left=[
            entry for entry in selected if dry_run or not is_done(record, entry.name, run.folder)
        ],
        record=record,
        only=only,
        max_steps=max_steps,
        dry_run=dry_run,
        judge=judge,
        machine=hardware or _probed(),
        say=say,
        package_folder=trainers or trainers_root(),
        on_end=on_end,
    )
    place = find_place(run.plan.launch.nodes, os.environ, plan=run.path, folder=run.folder)
    if place is not None:
        say(f"machine {place.node} of {place.nodes} meets the others in {run.shown_folder}")
    with machines_of(place, run.folder) as machines:
        return _train(call, machines)


def _train(call: Call, machines: Machines | None) -> Run | DryRun:
    """Check this machine, then train what is left: here, or on all machines of the run."""
    node = machines.place.node if machines is not None else 0
    run, record, left, say = call.run, call.record, call.left, call.say
    max_steps, judge, machine = call.max_steps, call.judge, call.machine
    shape = plan_shape(run.plan, run.path)
    checked = call.preflight(shape, leads=node == 0)
    inputs = call.inputs_here()
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
    memory = check_memory(
        left,
        expected,
        checked.gpus.gpus,
        measured=measured_need(run.folder, run.digests.values()),
        is_chosen_folder=run.is_chosen_folder,
        peak_of=peak_estimator(run.plan, shape, used, past),
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
        machines.agree(call.report(inputs, checked.gpus.gpus))
        if node:
            starter.follow(machines, run.entries)
            return call.outcome(node)
    with RunFolder(run.folder) as folder, every_stop_as_interrupt():
        starter = replace(starter, lock_fd=folder.lock_fd)
        if call.dry_run:
            return measure_plan(
                run, call.selected, starter=starter, expected=expected, teacher=teacher, say=say
            )
        record = find_record(run.folder, run.identity)  # again, now that nobody can change it
        if record is not None and record.inputs:
            before = recorded_inputs(record)
            refuse_changed(before, inputs, run.inputs, run.folder, growing=bool(run.plan.tasks))
            if not run.has_paths_of(record):
                for line in renamed(record, run.inputs, inputs, run.folder):
                    say(line)
            if recorded_by_earlier_version(before):
                say(
                    "an earlier version began this run: of the model, only its configuration and"
                    " the names and sizes of its weights could be compared"
                )
        record = new_record(
            run,
            record,
            expected=expected,
            inputs=inputs,
            hardware=used,
            max_steps=max_steps,
            judge=judge,
            license=base_license(run.plan, run.path, shape),
        )
        configs = true_configs(run, record)
        keeper = RecordKeeper(
            run.folder, correct_record(record, configs), say=say, on_end=call.on_end
        )
        if configs:
            keeper.save()
            write_configs(run, configs)
            for line in moved_bases(configs):
                say(line)
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
            past=past,
            resume=resume,
        )
        return runner.train(call.selected)


def _ended(run: PlanRun, record: RunRecord, say: Say, again: str) -> Run:
    """A run that was finished before, once the plan's optional features have looked at it."""
    done = Run(folder=run.folder, record=record, already_done=True)
    keeper = RecordKeeper(run.folder, record, say=say, on_end=None)
    ending = Ending(run=done, plan=run.plan, keeper=keeper, say=say, again=again)
    if not run.plan.extras:
        return end_run(ending)
    with RunFolder(run.folder), every_stop_as_interrupt():
        write_atomically(run.folder / PLAN_FILE, run.copy_text)  # which may lack their keys
        return end_run(ending)


def _probed() -> Hardware:
    from advisor.probe import probe

    return probe()
