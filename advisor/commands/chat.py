"""`advise chat`: finds the runs, starts the talking child on this terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import trainers_root
from advisor.launch.folder import RECORD, read_record

NEEDED = ("torch", "transformers", "peft")


def chat(
    runs: Sequence[str],
    *,
    voices: Sequence[str] = (),
    max_new_tokens: int = 512,
    system: str | None = None,
) -> int:
    """Talk until the input ends; returns the exit code.

    Raises InputError where there is no finished run.
    """
    folders = [find_run(run) for run in runs] if runs else [newest_run(Path.cwd())]
    command = [
        "trainers.tools.chat",
        *map(str, folders),
        "--device",
        device_of(folders[0]),
        "--max-new-tokens",
        str(max_new_tokens),
    ]
    command += [word for voice in voices for word in ("--with", voice)]
    command += ["--system", system] if system else []
    return trainer_child(command, env=dict(os.environ))


def trainer_child(arguments: Sequence[str], *, env: dict[str, str]) -> int:
    """Run one of our torch-side modules on this terminal; returns its exit code.

    Raises MachineNotReady without the packages.
    """
    missing = [name for name in NEEDED if not _installed(name)]
    if missing:
        raise MachineNotReady(
            f"this needs {', '.join(missing)}", hint="pip install 'finetune-advisor[train]'"
        )
    paths = [str(trainers_root()), *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])]
    env = {
        **env,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
    }  # a user's own `trainers/` never shadows ours
    return subprocess.run([sys.executable, "-P", "-m", *arguments], env=env, check=False).returncode


def find_run(run: str) -> Path:
    """The run folder that was named. Raises InputError where it is none."""
    folder = Path(run).expanduser().absolute()
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{run}: no run folder (it has no {RECORD})",
            hint=(
                "advise run prints where its run folder is; `advise chat` alone takes the newest"
                " under ./runs"
            ),
        )
    return folder


def newest_run(here: Path) -> Path:
    """The run under ./runs that ended last with a finished stage.

    Raises InputError where there is none.
    """
    found = []
    for record_path in (here / "runs").glob(f"*/{RECORD}"):
        try:
            record = read_record(record_path.parent)
        except InputError:  # of another version, or broken: not a run to talk to unasked
            continue
        if record and any(stage.get("status") == "done" for stage in record.get("stages", [])):
            found.append((str(record.get("finished_at") or ""), record_path.parent))
    if not found:
        raise InputError(
            "there is no finished run under ./runs", hint="name a run folder: advise chat RUN"
        )
    return max(found)[1]


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def device_of(folder: Path) -> str:
    """cuda where the run was on a card, else the processor."""
    kind = ((read_record(folder) or {}).get("hardware") or {}).get("kind")
    return kind if kind in ("cuda", "rocm", "mps") else "cpu"
