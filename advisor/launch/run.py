"""`advise run`: what a plan says is checked, then trained or measured stage by stage; the next call
resumes where this one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import all_extras
from advisor.ground.terminal import print_message
from advisor.ground.types import Hardware
from advisor.launch.attempt import train_or_measure
from advisor.launch.call import Call
from advisor.launch.finished import finished_before, look_back
from advisor.launch.prepare import prepare_plan, select_entries
from advisor.plan.model import Comments, Plan
from advisor.record.run import DryRun, Run, RunRecord


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
    say: Callable[[str], None] | None = None,
    trainers: Path | None = None,
    on_end: Callable[[Path, RunRecord], object] | None = None,
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
        plan, comments=comments, output=output, set_values=set_values, max_steps=max_steps
    )
    call = Call(
        run=run,
        selected=select_entries(run.entries, only),
        only=only,
        dry_run=dry_run,
        judge=judge,
        hardware=hardware,
        say=say,
        trainers=trainers,
        on_end=on_end,
    )
    record = look_back(call)
    if record is not None and not dry_run and (done := finished_before(call, record)):
        return done
    return train_or_measure(call, record)
