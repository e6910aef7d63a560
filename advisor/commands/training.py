"""How commands start a run and show what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.commands.output import console, print_json, say, with_error
from advisor.ground.progress import waiting
from advisor.launch import DryRun, Run, run_plan
from advisor.launch.live import RunIsLive
from advisor.render.report import write_report
from advisor.render.run import print_run, run_json

if TYPE_CHECKING:
    from advisor.plan.model import Comments, Plan


def train(
    plan: Plan | Path, settings: Mapping[str, Any], *, comments: Comments | None = None
) -> Run | DryRun:
    """Train a launch file, or a plan that was just made, and write the report.

    Args:
        plan: The launch file, or the plan to write into its run folder.
        settings: Parameter -> value of the run options (options.py); left out: the default.
        comments: The comment beside each value of a plan that was just made.

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
        return run_plan(plan, comments=comments, judge=judge, on_end=write_report, **arguments)


def train_or_follow(
    plan: Plan | Path,
    settings: Mapping[str, Any],
    *,
    comments: Comments | None = None,
    as_json: bool = False,
) -> int:
    """Train, or show how far a run is that is at work already. Returns the exit code."""
    try:
        run: Run | DryRun | None = train(plan, settings, comments=comments)
    except RunIsLive as found:
        from advisor.commands.following import follow

        run = follow(found, as_json=as_json)
    return 0 if run is None else show_run(run, as_json=as_json)


def show_run(run: Run | DryRun, *, as_json: bool = False, samples: bool = True) -> int:
    """Print what came of a run. Returns the exit code.

    Args:
        samples: With two sample answers.
    """
    errors = run.errors if isinstance(run, Run) else []
    if as_json:
        document = run_json(run)
        faults = [fault for error in errors for fault in error.faults]
        print_json(with_error(document, faults) if faults else document)
    print_run(run, console(stderr=as_json), samples=samples)
    for error in errors:
        say(f"error: {error.text()}")
    return int(run.exit_code)
