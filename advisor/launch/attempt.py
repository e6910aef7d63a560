"""One attempt to train what is left of a run: the machine is checked, then stage after stage is
trained or measured. Nothing is written before everything that can be checked has been checked.
"""

from __future__ import annotations

import os
from dataclasses import replace

from advisor.ground.errors import MachineNotReady
from advisor.ground.types import Hardware, as_free_now
from advisor.launch.base_check import base_license
from advisor.launch.call import Call
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.dry_run import measure_plan
from advisor.launch.earlier import find_record
from advisor.launch.expected import expect_stage
from advisor.launch.folder import RunFolder
from advisor.launch.inputs import inputs_of, read_inputs, refuse_changed
from advisor.launch.machines import Machines, machines_of
from advisor.launch.memory_check import check_memory, measured_need
from advisor.launch.nodes import find_place
from advisor.launch.out_of_memory import peak_estimator
from advisor.launch.record_keeper import RecordKeeper, new_record
from advisor.launch.stages import StageRunner
from advisor.launch.teaching import Teacher
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.next_run import resume_command
from advisor.plan.record import DryRun, Run, RunRecord
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.past_runs import read_past_runs


def train_or_measure(call: Call, record: RunRecord | None) -> Run | DryRun:
    """Train what is left of a run, or measure it: here, or on all machines of the run.

    Raises AdviseError as `run_plan` does.

    Args:
        record: What earlier calls left in the folder.
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
        machines.agree(call.report(needed, machine, checked.gpus.gpus))
        if node:
            starter.follow(machines, run.entries)
            return call.outcome(node)
    with RunFolder(run.folder) as folder, every_stop_as_interrupt():
        starter = replace(starter, lock_fd=folder.lock_fd)
        if call.dry_run:
            return measure_plan(
                run, call.selected, starter=starter, expected=expected, teacher=teacher, say=say
            )
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
            max_steps=max_steps,
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
            past=past,
            resume=resume,
        )
        return runner.train(call.selected)


def _probed() -> Hardware:
    from advisor.probe import probe

    return probe()
