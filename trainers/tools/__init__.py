"""Commands for what a run left behind, or is still to read: no part of a training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.terminal import show_streams
from trainers.job.libraries import quiet_libraries
from trainers.job.machine import use_cores


def command(
    work: Callable[[Any], int | None],
    options: Mapping[str, Mapping[str, Any]],
    *,
    loads: bool = True,
    stopped: str = "error: stopped",
) -> Callable[..., int]:
    """The function that does the work that a command line asks for; it returns the exit code. What
    goes wrong is said on standard error.

    Args:
        work: Takes the options.
        options: Name -> arguments of argparse's `add_argument`.
        loads: It loads models: with quiet libraries, on the cores that are ours.
        stopped: Said after Ctrl-C; empty: nothing.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(prog=getattr(work, "__module__", None))
        for name, how in options.items():
            parser.add_argument(name, **how)
        given = parser.parse_args(argv)
        show_streams()
        if loads:
            use_cores()
            quiet_libraries()
        try:
            return work(given) or 0
        except KeyboardInterrupt:
            if stopped:
                print(stopped, file=sys.stderr)
            return Stopped.exit_code
        except AdviseError as error:
            print(f"error: {error.text()}", file=sys.stderr)
            return error.exit_code

    return main
