"""How commands use what needs torch: modules of trainers/tools as child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec

from advisor.ground.errors import MachineNotReady
from advisor.ground.install import install_line
from advisor.ground.resources import trainers_root


def refuse_without(packages: Iterable[str], what: str) -> None:
    """Raise MachineNotReady, with the line to install, if `what` needs a missing package."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MachineNotReady(f"{what} needs {', '.join(missing)}", hint=install_line())


def run_tool(
    name: str, *arguments: str, stdout: int | None = None, stderr: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The result of a module of trainers/tools, run as a child process of this terminal.

    Only `chat` may read what is typed there.
    """
    paths = (str(trainers_root()), os.environ.get("PYTHONPATH"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONSAFEPATH": "1",  # a user's own `trainers/` never shadows ours
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", f"trainers.tools.{name}", *arguments],
        env=environment,
        stdin=None if name == "chat" else subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
