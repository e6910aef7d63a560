"""Commands for what a run left behind, or is still to read: no part of a training."""

from __future__ import annotations

import sys
from collections.abc import Callable

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.terminal import show_streams
from trainers.job.libraries import quiet_libraries
from trainers.job.machine import use_cores


def run_command(
    work: Callable[[], int | None], *, loads: bool = True, stopped: str = "error: stopped"
) -> int:
    """Do the work; the exit code. What goes wrong is said on standard error.

    Args:
        loads: It loads models: with quiet libraries, on the cores that are ours.
        stopped: Said after Ctrl-C; empty: nothing.
    """
    show_streams()
    if loads:
        use_cores()
        quiet_libraries()
    try:
        return work() or 0
    except KeyboardInterrupt:
        if stopped:
            print(stopped, file=sys.stderr)
        return Stopped.exit_code
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code
