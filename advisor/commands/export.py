"""`advise export`: a run's result in another form."""

from __future__ import annotations

import os
from pathlib import Path

from advisor.commands.chat import device_of, find_run, newest_run, trainer_child
from advisor.ground.errors import InputError, nearest

FORMS = ("merged",)


def export(run: str | None, *, to: str, out: str | None, only: str | None = None) -> int:
    """Write the result in the wanted form; returns the exit code.

    Raises InputError for a form that is not known.
    """
    if to not in FORMS:
        raise InputError(
            f"--to {to}: not known", allowed=f"forms: {', '.join(FORMS)}", hint=nearest(to, FORMS)
        )
    folder = find_run(run) if run else newest_run(Path.cwd())
    target = Path(out).expanduser().absolute() if out else folder / "export" / to
    command = [
        "trainers.tools.merge",
        str(folder),
        "--out",
        str(target),
        "--device",
        device_of(folder),
        *(["--only", only] if only else []),
    ]
    return trainer_child(command, env=dict(os.environ))
