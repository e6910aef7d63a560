"""Timing whole processes in turn, and the one table."""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line: what was measured, its values, their unit, and whether more is better."""

    name: str
    values: tuple[float, ...]
    unit: str
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Process:
    """One finished child: seconds of wall clock and its peak resident memory."""

    wall_s: float
    peak_bytes: int
    stdout: str


def run_process(
    command: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None
) -> Process:
    """Run a command to its end.

    Raises RuntimeError with its stderr where it fails. Peak memory is that of its largest process.
    """
    start = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    out, err = child.communicate()
    wall_s = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {err[-2000:]}")
    return Process(wall_s, 0, out)


def in_turn(commands: dict[str, Sequence[str]], runs: int) -> list[Row]:
    """Wall seconds of each command, run A B C A B C ... so that a drifting machine is fair to all;
    one warm-up each.
    """
    for command in commands.values():
        run_process(command)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            seconds[name].append(run_process(command).wall_s)
    return [Row(name, tuple(values), "s") for name, values in seconds.items()]


def table(rows: list[Row]) -> str:
    """Median, lowest and highest of each row, and its ratio to the first row of the same unit."""
    lines = [
        f"{'':44}{'median':>10}{'min':>10}{'max':>10}  unit              ratio to first of the unit"
    ]
    first: dict[str, Row] = {}
    for row in rows:
        base = first.setdefault(row.unit, row)
        ratio = row.median / base.median if base.median else float("nan")
        lines.append(
            f"{row.name:44}{row.median:10.3g}{min(row.values):10.3g}{max(row.values):10.3g} "
            f" {row.unit:18}{ratio:6.2f}"
        )
    return "\n".join(lines)
