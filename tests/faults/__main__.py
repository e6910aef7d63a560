"""Real kills, damaged folders, attacks and fuzzed inputs, on as many lanes as there are cores. It
prints a table of what was tried, what was survived and how much work was lost, and ends with 1 if
anything was not survived. docs/reliability.md says what is promised.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from tests.faults import kills, load
from tests.faults.table import Row, as_markdown, by_phase, made_with, past_readers, rows_of

Job = Callable[[], Iterable[Row]]
DAMAGED = {"sft": 6, "ppo": 6, "rm": 6}  # plan -> the step behind which it is stopped
BEGIN, END = "<!-- table of the last long run -->", "<!-- end of the table -->"


def main() -> int:
    given = arguments()
    began = time.monotonic()
    until = began + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="advise-faults-", dir=given.folder) as name:
        folder = Path(name)
        kills.fill(folder)
        rows = run_all(jobs(given, folder), until, given.lanes, given.log)
    if not given.no_load:  # by itself: a hundred processes at once slow all others down
        rows += run_all([load.rows], until, 1, given.log)
    table, minutes = by_phase(rows) + as_markdown(rows), (time.monotonic() - began) / 60
    print(f"{table}\n{past_readers(rows)}{minutes:.1f} minutes, seed {given.seed}")
    bad = [row for row in rows if row.wrong]
    for row in bad:
        print(f"\nNOT SURVIVED: {row.fault}, {row.where}, {row.moment}\n  {'; '.join(row.wrong)}")
    if given.write:
        before, _, rest = given.write.read_text("utf-8").partition(BEGIN)
        about = made_with("torch", "transformers", "trl", "peft")
        about += f"; seed {given.seed}, {minutes:.0f} minutes. {past_readers(rows)}"
        written = f"{before}{BEGIN}\n{about}\n\n{table}{END}{rest.partition(END)[2]}"
        given.write.write_text(written, encoding="utf-8")
    return 1 if bad else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for name, count, of in (
        ("kills", 6, "real kills of each plan"),
        ("damage", 24, "torn checkpoints; others come always"),
        ("fuzz", 20_000, "fuzzed inputs"),
        ("trainer", 180, "inputs of real trainings"),
        ("schedules", 1500, "of the simulator"),
        ("seed", 1, "of all that is drawn"),
        ("minutes", 120, "begin nothing new after these"),
        ("lanes", os.cpu_count() or 1, "jobs at the same time"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=of)
    parser.add_argument(
        "--only", action="append", choices=list(kills.PLANS), metavar="PLAN", help="of the kills"
    )
    parser.add_argument(
        "--phase", choices=sorted({*kills.TURNS}), help="of the kills; default: each in turn"
    )
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument("--log", type=Path, help="write each row as it comes, as JSON lines")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    parser.add_argument("--no-load", action="store_true", help="without many rows, steps, calls")
    parser.add_argument("--no-attacks", action="store_true", help="without the table of attacks")
    return parser.parse_args()


def jobs(given: argparse.Namespace, folder: Path) -> list[Job]:
    """Everything to do, the longest first."""
    names = given.only or list(kills.PLANS)
    found: list[Job] = [
        partial(kills.killed, folder, name, given.kills, given.seed, given.phase)
        for name in reversed(names)
        if given.kills
    ]
    found += [
        partial(kills.damaged, folder, name, step, given.damage // len(DAMAGED), given.seed)
        for name, step in DAMAGED.items()
        if given.damage and name in names
    ]
    found += [] if given.no_attacks else [partial(rows_of, "attacks")]
    for module, count, size in (
        ("simulator", given.schedules, 500),
        ("fuzz.trainer", given.trainer, 60),
        ("fuzz.run", given.fuzz, 500),
    ):
        found += [
            partial(rows_of, module, given.seed * 100_000 + at, min(size, count - at))
            for at in range(0, count, size)
        ]
    return found


def run_all(todo: Iterable[Job], until: float, lanes: int, log: Path | None) -> list[Row]:
    """The rows of all jobs, so many at a time; those that would begin too late are left out."""
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        print("X" if row.wrong else ".", end="", file=sys.stderr, flush=True)
        if log:
            with log.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")

    def one(job: Job) -> None:
        if time.monotonic() > until:
            return
        try:
            for row in job():
                note(row)
        except Exception as error:
            note(Row(fault="the harness itself", where="", wrong=[repr(error)]))

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(one, todo))
    print(file=sys.stderr)
    return sorted(rows, key=lambda row: (row.fault, row.where))


if __name__ == "__main__":
    sys.exit(main())
