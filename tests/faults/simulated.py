"""Rows of the table from the simulator of faults, run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.table import Row

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys
from tests.faults.simulator.simulate import simulate
first, count = map(int, sys.argv[1:])
found = simulate(range(first, first + count))
keys = ("faults", "survived", "lost_steps")
print(json.dumps({**{key: dict(getattr(found, key)) for key in keys}, "bad": found.violations}))
"""


def simulated(first: int, count: int) -> list[Row]:
    """What so many schedules came to."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(first), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the simulator ended with {done.returncode}: {done.stderr[-400:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    moment = f"schedules {first} to {first + count - 1}"
    rows = [
        Row(
            fault=f"simulated {kind}",
            objective="stand-in trainer",
            moment=moment,
            survived=survived,
            count=number,
        )
        for kind, tried in found["faults"].items()
        for survived, number in (
            (True, found["survived"].get(kind, 0)),
            (False, tried - found["survived"].get(kind, 0)),
        )
        if number
    ]
    notes = [
        Row(
            fault="simulated schedule",
            objective="stand-in trainer",
            moment=moment,
            survived=False,
            count=0,
            note=note,
        )
        for note in found["bad"]
    ]
    return [*rows, *notes]
