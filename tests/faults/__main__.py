"""Real kills, damaged folders and fuzzed inputs, on as many lanes as there are cores. It prints a
table of what was tried, what was survived and how much work was lost, and ends with 1 if anything
was not survived. docs/reliability.md says what is promised.
"""

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
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from tests.faults import load
from tests.faults.kills import harm
from tests.faults.kills.scenes import SEVERAL, fill, make_scene
from tests.faults.table import Row, as_markdown, made_with, rows_of

Job = Callable[[], list[Row]]
# Share of the kills; every objective with checkpoints of its own, and the longer plans once more.
SHARES = {
    "sft": 4, "cpt": 3, "dpo": 3, "kto": 1, "rm": 3, "rloo": 1, "ppo": 4,
    "sft>rm>ppo": 3, "departments": 3, **dict.fromkeys(SEVERAL, 3),
}  # fmt: skip
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
        rows += run_all([load.rows], until, 1, given.log)
    table = as_markdown(rows)
    minutes = (time.monotonic() - began) / 60
    print(f"{table}\n{minutes:.1f} minutes, seed {given.seed}")
    bad = [row for row in rows if row.wrong]
    for row in bad:
        print(f"\nNOT SURVIVED: {row.fault}, {row.where}, {row.moment}\n  {'; '.join(row.wrong)}")
    if given.write:
        before, _, rest = given.write.read_text("utf-8").partition(BEGIN)
        about = made_with("torch", "transformers", "trl", "peft")
        about += f"; seed {given.seed}, {minutes:.0f} minutes."
        written = f"{before}{BEGIN}\n{about}\n\n{table}{END}{rest.partition(END)[2]}"
        given.write.write_text(written, encoding="utf-8")
    return 1 if bad else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for name, count, of in (
        ("kills", 66, "real kills, at least"),
        ("ranks", 2, "SIGKILL of a process of two, and of advise: each"),
        ("damage", 24, "torn checkpoints; others come always"),
        ("fuzz", 21_000, "fuzzed inputs"),
        ("trainer", 180, "inputs of real trainings"),
        ("schedules", 1500, "of the simulator"),
        ("seed", 1, "of all that is drawn"),
        ("minutes", 60, "begin nothing new after these"),
        ("lanes", os.cpu_count() or 1, "jobs at the same time"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=of)
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
    found: list[Job] = []
    for name, share in reversed(shares.items()):
        kinds = [(harm.KINDS, round(unit * share + 0.499))]
        if name in SEVERAL:
            kinds += [((kind,), given.ranks) for kind in harm.OF_RANKS]
        if any(count for _, count in kinds):
            found.append(partial(killed, folder, name, kinds, given.seed))
    found += [
        partial(damaged, folder, name, step, given.damage // len(DAMAGED), given.seed)
        for name, step in DAMAGED.items()
        if given.damage and name in shares
    ]
    guided = given.fuzz // 3 if find_spec("atheris") else 0
    for module, count, size in (
        ("simulator.simulate", given.schedules, CHUNK),
        ("fuzz.trainer", given.trainer, 60),
        ("fuzz.guided", guided, 4 * CHUNK),
        ("fuzz.run", given.fuzz - guided, CHUNK),
    ):
        found += [
            partial(rows_of, module, given.seed * 100_000 + at, min(size, count - at))
            for at in range(0, count, size)
        ]
    return found


def killed(folder: Path, objective: str, kinds: list, seed: int) -> list[Row]:
    """Kill runs of one objective, until so many kills of each list of kinds have struck."""
    scene = make_scene(folder, objective)
    rows: list[Row] = []
    for number, (some, count) in enumerate(kinds):
        struck: list[Row] = []
        for turn in range(4 * count):  # some moments come too late
            dice = random.Random(f"{seed} {objective} {number} {turn}")
            most = min(harm.IN_ONE_RUN, count - len(struck))
            if drawn := list(islice(harm.draw_kills(scene, dice, some), most)):
                struck += harm.survive(scene, f"run-{scene.plan.stem}-{number}-{turn}", drawn)
        rows += struck
    return rows


def damaged(folder: Path, objective: str, step: int, torn: int, seed: int) -> list[Row]:
    """Damage a stopped run of one objective in every way, and tear so many checkpoints."""
    own = folder / f"damage-{objective}"
    fill(own)
    scene = make_scene(own, objective)
    harm.stop_after(scene, harm.STOPPED, step)
    dice = random.Random(f"{seed} damage {objective}")
    tears = harm.tears(own / harm.STOPPED)
    chosen = [*harm.damages(objective), *dice.sample(tears, min(torn, len(tears)))]
    return [
        harm.try_damage(scene, one, folder / f"damaged-{objective}-{number}")
        for number, one in enumerate(chosen)
    ] + harm.full_disk(scene, folder / f"disk-{objective}", dice)


def run_all(todo: Iterable[Job], until: float, lanes: int, log: Path | None) -> list[Row]:
    """The rows of all jobs, so many at a time; those that would begin too late are left out."""
    rows: list[Row] = []

    def one(job: Job) -> None:
        if time.monotonic() > until:
            return
        try:
            found = job()
        except Exception as error:
            found = [Row(fault="the harness itself", where="", wrong=[repr(error)])]
        rows.extend(found)
        for row in found:
            print("X" if row.wrong else ".", end="", file=sys.stderr, flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(one, todo))
    print(file=sys.stderr)
    return sorted(rows, key=lambda row: (row.fault, row.where))


if __name__ == "__main__":
    sys.exit(main())
