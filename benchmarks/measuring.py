"""Timing whole processes in turn, and the one table."""

import os
import statistics
import subprocess
import tempfile
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
    group: str = ""  # a heading; rows are compared within it
    note: str = ""  # in place of values: why there are none

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Process:
    """One finished child: seconds of wall clock, of all cores, and peak resident memory."""

    wall_s: float
    peak_bytes: int  # of its largest process
    stdout: str
    stderr: str = ""
    cpu_s: float = 0.0  # with its own children: steadier than wall time on a shared machine


def run_process(
    command: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None
) -> Process:
    """Run a command to its end.

    Raises RuntimeError with its stderr where it fails. Peak memory is that of its largest process.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, **(env or {})}, cwd=cwd
        )
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:  # Ctrl-C: no child outlives the benchmark
            child.kill()
            raise
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)  # nobody else can wait for it now
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    if child.returncode:
        what = f"{' '.join(command)} ended with {child.returncode}"
        raise RuntimeError(f"{what}: {(complained or said)[-2000:]}")
    cpu_s = used.ru_utime + used.ru_stime
    return Process(wall_s, used.ru_maxrss * 1024, said, complained, cpu_s)


def in_turn(commands: dict[str, Sequence[str]], runs: int) -> list[Row]:
    """Wall seconds of each command, run A B C A B C ... against drift, after one warm-up each."""
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
        f"{'':44}{'median':>10}{'min':>10}{'max':>10}  unit                  ratio to first of the unit"
    ]
    first: dict[tuple[str, str], Row] = {}
    groups: set[str] = set()
    for row in rows:
        if row.group and row.group not in groups:
            groups.add(row.group)
            lines.append(row.group)
        if not row.values:
            lines.append(f"{row.name:44}{row.note}")
            continue
        base = first.setdefault((row.group, row.unit), row)
        ratio = row.median / base.median if base.median else float("nan")
        lines.append(
            f"{row.name:44}{row.median:10.3g}{min(row.values):10.3g}{max(row.values):10.3g} "
            f" {row.unit:22}{ratio:6.2f}"
        )
    return "\n".join(lines)
