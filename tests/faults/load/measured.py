"""A command with what it cost: time of the processor and peak memory, of its children too."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command did and cost."""

    code: int
    out: str
    err: str
    cpu_s: float
    wall_s: float
    peak_bytes: int  # of the largest of its processes


class Command:
    """A Python command that has been started; `wait` says what it cost."""

    def __init__(self, *words: str, folder: Path, fields: dict[str, str] | None = None) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.began_s = time.monotonic()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment | {"HF_HUB_OFFLINE": "1"} | (fields or {}),
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
        )

    def wait(self) -> Cost:
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
            file.close()
        return Cost(
            code=self.process.returncode,
            out=texts[0],
            err=texts[1],
            cpu_s=used.ru_utime + used.ru_stime,
            wall_s=time.monotonic() - self.began_s,
            peak_bytes=used.ru_maxrss * 1024,  # Linux counts in KiB
        )


def advise(*words: str, folder: Path) -> Cost:
    """What a call of `advise` in a folder did and cost."""
    return Command("-m", "advisor", *words, folder=folder).wait()


def growth(costs: Sequence[float], sizes: Sequence[int]) -> float:
    """How much faster a cost grows than the work: 1 is linear; below, the fixed part counts."""
    return (costs[-1] / costs[0]) / (sizes[-1] / sizes[0])
