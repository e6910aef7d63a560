"""`advise run`: what a plan says is checked, then trained or measured stage by stage; the next call
resumes where this one ended.
"""

from __future__ import annotations

import os
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import all_extras
from advisor.ground.files import PLAN_FILE, write_atomically
from advisor.launch.attempt import train_or_measure
from advisor.launch.call import Call
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.earlier import check_results, find_record
from advisor.launch.folder import RunFolder, is_done, refuse_live
from advisor.launch.machines import node_of
from advisor.launch.prepare import Options, prepare_plan, select_entries
from advisor.launch.record_keeper import Ending, RecordKeeper, end_run
from advisor.launch.stages import is_unfinished
from advisor.plan.model import Plan
from advisor.record.next_step import resume_command
from advisor.record.run import DONE, DryRun, Run, RunRecord

AS_PLANNED = Options()


def run_plan(plan: Path | str | Plan, options: Options = AS_PLANNED) -> Run | DryRun:
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
    if record is not None and not options.dry_run:
        refuse_live(run.folder)  # before anything is looked at that it is changing
        for warning in check_results(run, record, selected):
            options.say(f"warning: {warning}")
        if done := _finished_before(call, record):
            return done
    return train_or_measure(call)


def _refuse_without_posix() -> None:
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


def _finished_before(call: Call, record: RunRecord) -> Run | None:
    """The run, if nothing is left of what was asked for, once the plan's optional features have
    looked at it. Says whether it is finished or goes on.
    """
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
    done = Run(folder=run.folder, record=record, already_done=True, node=node)
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
