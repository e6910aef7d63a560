"""The end of a process of torchrun."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


def run_and_leave(main: Callable[[], int]) -> int:
    """What `main` does; its exit code, unless the process has left with it before.

    The process ends without taking the interpreter down: gloo's threads may still hold tensors, and
    asking for the interpreter's lock then aborts a process that had done its work (about one in
    eight here; https://github.com/pytorch/pytorch/pull/179291).
    """
    code: str | int | None = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)

    atexit.register(leave)  # before anything else: called after everything else
    try:
        code = main()
    except SystemExit as error:
        code = error.code
        raise
    return code
