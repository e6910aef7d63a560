"""How commands start a run and show what came of it, or how far one is that is at work."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advisor.commands.output import console, print_json, say, with_error
from advisor.ground.files import shown_path
from advisor.ground.progress import waiting
from advisor.ground.terminal import is_terminal
from advisor.launch import DryRun, FinishedRun, Options, run_plan
from advisor.launch.folder import RunIsLive, read_live
from advisor.record.files import read_record
from advisor.record.run import DONE
from advisor.render.report import write_report
from advisor.render.run import print_run, run_json

if TYPE_CHECKING:
    from advisor.plan.model import Comments, Plan


def follow(found: RunIsLive, *, as_json: bool = False) -> FinishedRun | None:
    """Say how far a live run is; the run, if it ended meanwhile."""
    live = read_live(found.folder)
    if live is None:
        record = read_record(found.folder)
        return FinishedRun(folder=found.folder, record=record) if record is not None else None
    if as_json:
        run = FinishedRun(folder=live.folder, record=live.record)
        print_json({**run_json(run), "progress": live.to_dict()})
    else:
        say(f"{shown_path(live.folder)} is running (process {live.process}): {live.sentence}")
        say(f"to stop it, with its last step saved: kill {live.process}")
    return None


def train(
    plan: Plan | Path, settings: Mapping[str, Any], *, comments: Comments | None = None
) -> FinishedRun | DryRun:
    """Train a launch file, or a plan that was just made, and write the report.

    Args:
        settings: Parameter -> value of the run options (options.py); left out: the default.

    Raises:
        InputError: The plan or its data cannot be used.
        MachineNotReady: The machine lacks something.
        TrainingFailed: A trainer ended without a result.
    """
    arguments = {
        name: value
        for name, value in settings.items()
        if name != "no_judge" and value not in (None, ())
    }
    judge = not settings.get("no_judge", False)
    with waiting("checking plan, data and machine"):  # until the first trainer starts
        options = Options(comments=comments, judge=judge, on_end=write_report, **arguments)
        return run_plan(plan, options)


def train_or_follow(
    plan: Plan | Path,
    settings: Mapping[str, Any],
    *,
    comments: Comments | None = None,
    as_json: bool = False,
) -> int:
    """Train, or show how far a run is that is at work already. Returns the exit code."""
    try:
        run: FinishedRun | DryRun | None = train(plan, settings, comments=comments)
    except RunIsLive as found:
        run = follow(found, as_json=as_json)
    return 0 if run is None else show_run(run, as_json=as_json)


def show_run(
    run: FinishedRun | DryRun, *, as_json: bool = False, offers: bool | None = None
) -> int:
    """Print what came of a run, and offer on a terminal what can be done with a result. Returns
    the exit code.

    Args:
        offers: False: the caller says what comes next; None: on a terminal it is offered.
    """
    is_seen = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    is_asked = offers is None and not as_json and is_seen and _has_result(run)
    errors = run.errors if isinstance(run, FinishedRun) else []
    if as_json:
        document = run_json(run)
        faults = [fault for error in errors for fault in error.faults]
        print_json(with_error(document, faults) if faults else document)
    print_run(run, console(stderr=as_json), has_menu=is_asked or offers is False)
    for error in errors:
        say(f"error: {error.text()}")
    if is_asked and isinstance(run, FinishedRun):
        from advisor.commands.after_run import after_run  # only where somebody is asked
        from advisor.wizard.prompts import terminal_ui

        after_run(run, terminal_ui(console()), train=_train_again, call=_call)
    return int(run.exit_code)


def _has_result(run: FinishedRun | DryRun) -> bool:
    """Whether there is a result to do something with, on the machine that has it."""
    return isinstance(run, FinishedRun) and run.status == DONE and not run.node and not run.errors


def _call(name: str, *arguments: str) -> None:
    """Another command, as if it had been typed."""
    root = click.get_current_context().find_root()
    command = root.command.get_command(root, name)  # type: ignore[attr-defined]
    command.main(list(arguments), prog_name=name, standalone_mode=False)


def _train_again(words: Sequence[str]) -> FinishedRun | None:
    """Train as the line of a verdict says: a plan, changes of it, another folder. Show what came of
    it; None if there is nothing to do something with.
    """
    plan, *rest = words
    flags = list(zip(rest[::2], rest[1::2], strict=True))
    changes = tuple(value for flag, value in flags if flag == "--set")
    run = train(Path(plan), {"set_values": changes, "output": dict(flags).get("--output")})
    show_run(run, offers=False)
    return run if _has_result(run) and isinstance(run, FinishedRun) else None
