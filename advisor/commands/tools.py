"""How commands use what needs torch: modules of trainers/tools as child processes, on the run
folders that a training left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import trainers_root
from advisor.plan.record import DONE, RECORD, read_record

TORCH_PACKAGES = ("torch", "transformers", "peft")


def refuse_without(packages: Iterable[str], what: str) -> None:
    """Raise MachineNotReady, with the line to install, if `what` needs a missing package."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MachineNotReady(
            f"{what} needs {', '.join(missing)}", hint="pip install 'finetune-advisor[train]'"
        )


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


def find_run(run: str) -> Path:
    """The run folder with this path. Raises InputError if it is none."""
    folder = Path(run).expanduser().absolute()
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{run} is not a run folder: it has no {RECORD}",
            hint=(
                "`advise run` prints its run folder; without a name, the newest one under ./runs"
                " is used"
            ),
        )
    return folder


def newest_run(here: Path) -> Path:
    """The run under ./runs that ended last with a finished stage.

    Raises InputError if there is none.
    """
    found = []
    for record_path in (here / "runs").glob(f"*/{RECORD}"):
        try:
            record = read_record(record_path.parent)
        except InputError:  # of another version, or broken: not to be used unasked
            continue
        if record is not None and any(stage.status == DONE for stage in record.stages):
            found.append((record.finished_at or "", record_path.parent))
    if not found:
        raise InputError(
            "there is no finished run under ./runs",
            hint="name a run folder; `advise run` prints where it is",
        )
    return max(found)[1]


def device_of(folder: Path) -> str:
    """The kind of device a run was trained on: cuda, rocm, mps or cpu."""
    record = read_record(folder)
    kind = record.hardware.kind if record is not None and record.hardware is not None else None
    return kind if kind in ("cuda", "rocm", "mps") else "cpu"
