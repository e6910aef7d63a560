"""A command as if it had been typed, in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence

Main = Callable[[], object]  # the command line: reads sys.argv and ends with SystemExit


def typed(main: Main, words: Sequence[str], given: bytes = b"") -> tuple[int, bytes]:
    """The exit code of a command, and what it printed.

    Args:
        words: What follows `advise`.
        given: What it reads from standard input.
    """
    before, printed, code = (sys.argv, sys.stdin, sys.stdout, sys.stderr), io.BytesIO(), 0
    sys.argv = [sys.argv[0], *words]
    sys.stdin = io.TextIOWrapper(io.BytesIO(given), "utf-8")  # whatever the locale is
    sys.stdout = out = io.TextIOWrapper(printed, "utf-8", write_through=True)
    if "--json" not in words:  # no document that says what is wrong
        sys.stderr = out
    try:
        main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    finally:
        out.detach()
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before
    return code, printed.getvalue()
