"""How long `advise check` takes on a million short rows, and how much memory; and what reading
costs the start of advice.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import Row, run_process

TITLE = (
    "a million short rows checked (targets: about 20 s, under 500 MB), and the profile that advice"
    " takes"
)
ROWS = 1_000_000
RUNS = 2
WORDS = (
    "the order parcel came late and my money back please where is it now account password reset",
    "invoice blue green lamp table",
)
# One process for each measurement: peak memory is that of a process's whole life.
CHECK = """
import resource, sys, time
from advisor.commands.check import check_data
start = time.perf_counter()
found, _ = check_data(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, found.rows)
"""
QUICK = """
import sys, time
from advisor.data import profile
start = time.perf_counter()
profile(sys.argv[1])
print(time.perf_counter() - start)
"""


def write_rows(path: Path, rows: int) -> None:
    """Question and answer rows of about 160 bytes, the same every time."""
    choose = random.Random(1).choices
    words = " ".join(WORDS).split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "question": f"{' '.join(choose(words, k=8))} {number}?",
                "answer": f"{' '.join(choose(words, k=14))}.",
            }
            file.write(json.dumps(row) + "\n")


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "million.jsonl", Path(folder) / "thousand.jsonl"
        write_rows(large, ROWS)
        write_rows(small, 1000)
        seconds, busy, megabytes, quick = [], [], [], []
        for _ in range(RUNS):
            wall_s, cpu_s, peak_bytes, rows = run_process(
                [sys.executable, "-c", CHECK, str(large)]
            ).stdout.split()
            assert int(rows) == ROWS
            seconds.append(float(wall_s))
            busy.append(float(cpu_s))
            megabytes.append(float(peak_bytes) / 1e6)
            quick.append(float(run_process([sys.executable, "-c", QUICK, str(small)]).stdout))
        command = [sys.executable, "-m", "advisor", "check", str(large), "--json"]
        start = time.perf_counter()
        run_process(command, env={"PYTHONPATH": os.getcwd()})
        whole_s = time.perf_counter() - start
    children_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return [
        Row("check of 1,000,000 rows", tuple(seconds), "s"),
        Row("of that, on the processor (others may share it)", tuple(busy), "s"),
        Row("the same as a command, with --json", (whole_s,), "s"),
        Row("profile of 1,000 rows, as advice takes it", tuple(quick), "s"),
        Row("peak memory of the check", tuple(megabytes), "MB"),
        Row("peak memory of any child", (children_mb,), "MB"),
    ]
