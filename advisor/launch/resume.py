"""The command that resumes a run, whole and ready to paste, and errors that name it."""

from __future__ import annotations

import shlex
from dataclasses import replace

from advisor.ground.errors import AdviseError, Stopped

RESUME = "resume with"


def resume_command(
    folder: str, *, only: str | None = None, max_steps: int | None = None, judge: bool = True
) -> str:
    """'advise run runs/shop-1b2c --only legal': the run folder holds the plan with its changes.

    Args:
        folder: The run folder as it can be typed from here.
        only: The stage or task that was asked for.
        max_steps: The limit of a trial run.
        judge: Whether the result is compared with the base.
    """
    words = ["advise", "run", f"./{folder}" if folder.startswith("-") else folder]
    words += ["--only", only] if only is not None else []
    words += ["--max-steps", str(max_steps)] if max_steps is not None else []
    return shlex.join([*words, *([] if judge else ["--no-judge"])])


def with_resume(error: AdviseError, command: str) -> AdviseError:
    """The error with the command that goes on from the last checkpoint beside its own hint."""
    *others, last = error.faults
    line = f"{RESUME}: {command}"
    if line in last.hint:
        return error
    hint = line if not last.hint or isinstance(error, Stopped) else f"{last.hint}\n  {line}"
    return type(error)(faults=[*others, replace(last, hint=hint)])
