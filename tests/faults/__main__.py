"""The long form: python -m tests.faults [--kills N] [--ranks N] [--damage N] [--fuzz N] [--trainer N] [--seed S]
                           [--minutes M] [--write docs/reliability.md]

Real kills, damaged folders and fuzzed inputs, on as many lanes as there are cores; it prints a table
of what was tried, what was survived and how much work was lost. Exit code 1 if anything was not
survived. docs/reliability.md says what is promised.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from tests.faults.fuzz.run import fuzz_chunk
from tests.faults.kills import damage
from tests.faults.kills.kill import IN_ONE_RUN, PARENT, WORKER, draw_kills, draw_rank_kills, survive
from tests.faults.kills.scenes import SEVERAL, fill, make_scene
from tests.faults.load import rows as load_rows
from tests.faults.simulated import simulated
from tests.faults.table import Row, as_markdown, as_text, grouped, summary

Job = Callable[[], list[Row]]
# Share of the kills; every objective with checkpoints of its own, and the longer plans once more.
SHARES = {
    "sft": 4,
    "cpt": 3,
    "dpo": 3,
    "kto": 1,
    "rm": 3,
    "rloo": 1,
    "ppo": 4,
    "sft>rm>ppo": 3,
    "departments": 3,
    "two processes": 3,
    "two processes, fsdp": 3,
}
CHUNK = 500  # fuzzed inputs of one process
DAMAGED = {"sft": 6, "ppo": 6, "rm": 6}  # objective -> the step behind which it is stopped
BEGIN, END = "<!-- table of the last long run -->", "<!-- end of the table -->"


def main() -> int:
    given = arguments()
    until = time.monotonic() + 60 * given.minutes
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advise-faults-", dir=given.folder) as name:
        folder = Path(name)
        fill(folder)
        rows = run_all(jobs(given, folder), until, given.lanes, given.log)
    if not given.no_load:  # by itself: a hundred processes at once slow all others down
        rows += run_all([partial(load_rows, given.seed)], until, 1, given.log)
    print(as_text(summary(rows)))
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes, seed {given.seed}")
    bad = [row for row in rows if not row.survived]
    for row in bad:
        print(f"\nNOT SURVIVED: {row.fault}, {row.objective}, {row.moment}\n  {row.note}")
    if given.write:
        about = described(given.seed, time.monotonic() - began)
        write_table(given.write, f"{about}\n\n{as_markdown(grouped(rows))}")
    return 1 if bad else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=66, help="real kills, at least")
    parser.add_argument(
        "--ranks", type=int, default=2, help="SIGKILL of a process of two, and of advise: each"
    )
    parser.add_argument(
        "--damage", type=int, default=24, help="torn checkpoints; others come always"
    )
    parser.add_argument("--fuzz", type=int, default=21_000, help="fuzzed inputs")
    parser.add_argument("--trainer", type=int, default=180, help="inputs of real trainings")
    parser.add_argument("--schedules", type=int, default=1500, help="of the simulator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after these")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", default=[], metavar="PLAN", help="of the kills")
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument("--log", type=Path, help="write each row as it comes, as JSON lines")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    parser.add_argument(
        "--no-load", action="store_true", help="without many rows, steps and departments"
    )
    return parser.parse_args()


def jobs(given: argparse.Namespace, folder: Path) -> list[Job]:
    """Everything to do, the longest first."""
    shares = {name: SHARES[name] for name in given.only or SHARES}
    unit = given.kills / sum(shares.values())
    slow = ("sft>rm>ppo", "departments", *SEVERAL)
    order = sorted(shares, key=lambda name: name in slow)
    found: list[Job] = []
    for name in reversed(order):
        count = round(unit * shares[name] + 0.499)
        if count:
            found.append(kills_of(folder, name, count, given.seed))
    if given.ranks:
        found += [rank_kills_of(folder, name, given) for name in SEVERAL if name in shares]
    if given.damage:
        for name, step in DAMAGED.items():
            if name in shares:
                found.append(
                    damage_of(folder, name, step, given.damage // len(DAMAGED), given.seed)
                )
    guided = given.fuzz // 3 if find_spec("atheris") else 0
    schedules = range(0, given.schedules, CHUNK)
    found += [
        partial(simulated, given.seed * 100_000 + at, min(CHUNK, given.schedules - at))
        for at in schedules
    ]
    found += fuzz_jobs("trainer", given.trainer, 60, given.seed)
    found += fuzz_jobs("guided", guided, 4 * CHUNK, given.seed)
    found += fuzz_jobs("run", given.fuzz - guided, CHUNK, given.seed)
    return found


def fuzz_jobs(module: str, count: int, size: int, seed: int) -> list[Job]:
    """So many inputs in chunks, each with a seed of its own."""
    chunks = [min(size, count - at) for at in range(0, count, size)]
    return [
        partial(fuzz_chunk, seed * 1000 + number, chunk, module)
        for number, chunk in enumerate(chunks)
    ]


def kills_of(folder: Path, objective: str, count: int, seed: int) -> Job:
    """Kill runs of one objective, until so many kills have struck."""

    def job() -> list[Row]:
        scene = make_scene(folder, objective)
        rows: list[Row] = []
        turn = 0
        while len(rows) < count and turn < 3 * count:
            dice = random.Random(f"{seed} {objective} {turn}")
            kills = list(islice(draw_kills(scene, dice), min(IN_ONE_RUN, count - len(rows))))
            rows += survive(scene, f"run-{scene.plan.removesuffix('.yaml')}-{turn}", kills)
            turn += 1
        return rows

    return job


def rank_kills_of(folder: Path, objective: str, given: argparse.Namespace) -> Job:
    """Kill one of two processes, and `advise` that has started them, so often each."""

    def job() -> list[Row]:
        own = folder / f"ranks-{SEVERAL.index(objective)}"
        fill(own)
        scene = make_scene(own, objective)
        left = dict.fromkeys((WORKER, PARENT), given.ranks)
        rows: list[Row] = []
        for turn in range(4 * given.ranks):  # some moments come too late
            dice = random.Random(f"{given.seed} ranks {objective} {turn}")
            kills = draw_rank_kills(scene, dice, left)
            if not kills:
                break
            struck = survive(scene, f"run-{turn}", kills)
            for kill in kills[: len(struck)]:
                left[kill.target] -= 1
            rows += struck
        return rows

    return job


def damage_of(folder: Path, objective: str, step: int, torn: int, seed: int) -> Job:
    """Damage a stopped run of one objective in every way, and tear so many checkpoints."""

    def job() -> list[Row]:
        own = folder / f"damage-{objective}"
        fill(own)
        scene = make_scene(own, objective)
        damage.stop_after(scene, damage.STOPPED, step)
        dice = random.Random(f"{seed} damage {objective}")
        every = damage.damages(scene, own / damage.STOPPED)
        tears = [one for one in every if one.fault == damage.TORN]
        chosen = [one for one in every if one.fault != damage.TORN]
        chosen += dice.sample(tears, min(torn, len(tears)))
        rows = [
            damage.try_damage(scene, one, folder / f"damaged-{objective}-{number}")
            for number, one in enumerate(chosen)
        ]
        for how in ("cut in half", "gone", "with one bit turned"):
            rows.append(damage.damaged_result(scene, folder / f"finished-{objective}", how))
        row = damage.full_disk(scene, folder / f"disk-{objective}", dice)
        return [*rows, *([row] if row else [])]

    return job


def run_all(todo: Iterable[Job], until: float, lanes: int, log: Path | None) -> list[Row]:
    """The rows of all jobs, so many at a time; those that would begin too late are left out."""
    rows: list[Row] = []

    def one(job: Job) -> None:
        if time.monotonic() > until:
            return
        try:
            found = job()
        except Exception as error:
            found = [
                Row(
                    fault="the harness itself",
                    objective="",
                    moment="",
                    survived=False,
                    note=repr(error),
                )
            ]
        rows.extend(found)
        for row in found:
            print("." if row.survived else "X", end="", file=sys.stderr, flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(one, todo))
    print(file=sys.stderr)
    return sorted(rows, key=lambda row: (row.fault, row.objective))


def described(seed: int, seconds: float) -> str:
    """When, on what and with which versions the faults were tried."""
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")]
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{date.today().isoformat()}, {os.cpu_count()} CPU cores, Python {python},"
        f" {', '.join(versions)}; seed {seed}, {seconds / 60:.0f} minutes."
    )


def write_table(page: Path, table: str) -> None:
    """Put the table between its two marks."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
