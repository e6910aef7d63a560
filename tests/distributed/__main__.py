"""Train every strategy with every update and objective, with other settings, and on other numbers of
processes, and measure the memory of divided stages.

    python -m tests.distributed [--only NAME | --memory] [--write docs/strategies.md]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.distributed.cells import all_cells
from tests.distributed.memory import in_page, measure, memory_cells, section
from tests.distributed.models import fill
from tests.distributed.page import page
from tests.distributed.results import train_cells, wrong


def main() -> int:
    given = arguments()
    began = time.monotonic()
    chosen = [cell for cell in all_cells() if not given.memory and cell.is_any_of(given.only)]
    with tempfile.TemporaryDirectory(prefix="advise-strategies-", dir=given.folder) as name:
        folder = Path(name)
        fill(folder)
        found = train_cells(folder, chosen)
        held = [] if given.only else measure(folder, [*memory_cells(2), *memory_cells(4)])
    for cell, one in found.items():
        told = f"{one.far:.0e}" if one.far is not None else one.text.partition("\n")[0]
        print(f"{cell.name:42} {cell.world:20} {one.status:8} {told}"[:160])
    if held:
        print(section(held))
    if given.write:
        text = given.write.read_text("utf-8") if given.memory else page(found)
        given.write.write_text(in_page(text, section(held)), encoding="utf-8")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    faults = [*wrong(found.values()), *(fault for one in held for fault in one.faults())]
    for fault in faults:
        print(f"\nNOT AS IT SHOULD BE: {fault}")
    return 1 if faults else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="cells of an objective, an update, a strategy, a precision or a setting",
    )  # fmt: skip
    parser.add_argument(
        "--memory", action="store_true", help="the memory of divided stages alone, without cells"
    )
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the tables into this page"
    )
    given = parser.parse_args()
    if given.only and (given.write or given.memory):
        parser.error("--write and --memory need all cells: leave --only out")
    return given


if __name__ == "__main__":
    sys.exit(main())
