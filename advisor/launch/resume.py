"""Errors that name the command that resumes the run."""

from __future__ import annotations

from dataclasses import replace

from advisor.ground.errors import AdviseError, Stopped

RESUME = "resume with"


def with_resume(error: AdviseError, command: str) -> AdviseError:
    """The error with the command that goes on from the last checkpoint beside its own hint."""
    *others, last = error.faults
    line = f"{RESUME}: {command}"
    if line in last.hint:
        return error
    hint = line if not last.hint or isinstance(error, Stopped) else f"{last.hint}\n  {line}"
    return type(error)(faults=[*others, replace(last, hint=hint)])
