"""What is left of a run that was begun before: all, some, or nothing but a last look."""

from __future__ import annotations

import os

from advisor.ground.files import PLAN_FILE, write_atomically
from advisor.launch.call import Call
from advisor.launch.child import every_stop_as_interrupt
from advisor.launch.earlier import check_results, find_record
from advisor.launch.folder import RunFolder, is_done, refuse_live
from advisor.launch.machines import node_of
from advisor.launch.record_keeper import Ending, RecordKeeper, end_run
from advisor.launch.stages import is_unfinished
from advisor.record.next_step import resume_command
from advisor.record.run import DONE, Run, RunRecord


def look_back(call: Call) -> RunRecord | None:
    """What earlier calls recorded of this very run; None if there was none.

    Raises InputError if the folder holds anything else, or the result of a finished stage is
    damaged; RunIsLive if another process is at work there.
    """
    run = call.run
    record = find_record(run)
    if record is not None and not call.dry_run:
        refuse_live(run.folder)  # before anything is looked at that it is changing
        for warning in check_results(run, record, call.selected):
            call.say(f"warning: {warning}")
    return record


def finished_before(call: Call, record: RunRecord) -> Run | None:
    """The run, if nothing is left of what was asked for, once the plan's optional features have
    looked at it. Says whether it is finished or goes on.
    """
    run = call.run
    unfinished = {
        entry.name for entry in run.entries if not is_done(record, entry.name, run.folder)
    }
    if call.only is None:
        is_finished = record.status == DONE and not unfinished
        call.say(
            f"{run.shown_folder} is finished" if is_finished else f"resuming {run.shown_folder}"
        )
    # Killed between its last stage and its end, a run still has to be finished.
    if (
        unfinished.intersection(entry.name for entry in call.selected)
        or not (unfinished or record.status == DONE)
        or (call.judge and record.judge and is_unfinished(run, record))
    ):
        return None
    if node := node_of(run.plan.launch.nodes, os.environ):  # another machine keeps it
        return Run(folder=run.folder, record=record, already_done=True, node=node)
    done = Run(folder=run.folder, record=record, already_done=True)
    keeper = RecordKeeper(run.folder, record, say=call.say, on_end=None)
    again = resume_command(run.shown_folder, only=call.only, judge=call.judge)
    ending = Ending(run=done, plan=run.plan, keeper=keeper, say=call.say, again=again)
    if not run.plan.extras:
        return end_run(ending)
    with RunFolder(run.folder), every_stop_as_interrupt():
        write_atomically(run.folder / PLAN_FILE, run.copy_text)  # which may lack their keys
        return end_run(ending)
