"""Start processes that train plans, one start for many of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.distributed.train import FAILED, outcome_file

ROOT = Path(__file__).resolve().parents[2]
QUIET_S = 240.0  # without a plan done: the processes wait for each other
TAIL = 1500  # characters of the output that are shown


def train_plans(
    plans: Sequence[Path], *, processes: int, judge: bool = False
) -> dict[Path, dict[str, Any]]:
    """Plan -> what became of it, trained by so many processes. Processes that end or hang at a plan
    are started again for the plans behind it.

    Args:
        plans: Each into a folder beside it.
        processes: That train them together.
        judge: Check what was trained and saved, in one process.
    """
    for plan in plans:
        outcome_file(plan).unlink(missing_ok=True)
    left = list(plans)
    while left:
        log = left[0].with_suffix(".log")
        ended = _start(left, processes, log, judge=judge)
        left = [plan for plan in left if not outcome_file(plan).exists()]
        if left:
            text = f"{ended}: {log.read_text('utf-8', errors='replace')[-TAIL:]}"
            outcome_file(left[0]).write_text(json.dumps({"status": FAILED, "text": text}))
            left = left[1:]
    return {plan: json.loads(outcome_file(plan).read_text("utf-8")) for plan in plans}


def _start(plans: Sequence[Path], processes: int, log: Path, *, judge: bool) -> str:
    """How processes ended that were to train the plans."""
    launcher = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
    ]  # fmt: skip
    command = [
        sys.executable, "-P", *(launcher if processes > 1 else []),
        "-m", "tests.distributed.train", *(["--judge"] if judge else []), *map(str, plans),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        started = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    done, since = -1, time.monotonic()
    while started.poll() is None:
        time.sleep(0.1)
        count = sum(outcome_file(plan).exists() for plan in plans)
        if count > done:
            done, since = count, time.monotonic()
        if time.monotonic() - since > QUIET_S:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            return f"nothing happened for {QUIET_S:.0f} s"
    return f"exit code {started.returncode}"
