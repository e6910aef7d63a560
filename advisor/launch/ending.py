"""The end of a run that is done: what optional features do with its results, and what did not end
as the plan wants.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.extras import extras
from advisor.launch.record_keeper import RecordKeeper, Say
from advisor.plan.model import Plan
from advisor.record.run import Run

RESUME = "resume with"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """A run that is done, as an optional feature is given it."""

    run: Run
    plan: Plan  # as it stands in the run folder
    keeper: RecordKeeper
    say: Say
    again: str  # the command that tries again what failed
    failures: list[AdviseError] = field(default_factory=list)  # of features that were asked before


def end_run(ending: Ending) -> Run:
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
