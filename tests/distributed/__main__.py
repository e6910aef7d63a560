"""Train every strategy with every update and objective, with other settings, and on other numbers of
processes: python -m tests.distributed [--only NAME] [--write docs/strategies.md]
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

from tests.distributed.cells import setting_cells, table_cells, world_cells
from tests.distributed.models import fill
from tests.distributed.page import page
from tests.distributed.results import train_cells, wrong


def main() -> int:
    given = arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advise-strategies-", dir=given.folder) as name:
        folder = Path(name)
        fill(folder)
        cells = [*table_cells(), *setting_cells(), *world_cells()]
        found = train_cells(folder, [cell for cell in cells if cell.is_any_of(given.only)])
    for cell, one in found.items():
        told = f"{one.far:.0e}" if one.far is not None else one.text.partition("\n")[0]
        print(f"{cell.name:42} {cell.world:20} {one.status:8} {told}"[:160])
    if given.write:
        given.write.write_text(page(found), encoding="utf-8")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    faults = wrong(found.values())
    for fault in faults:
        print(f"\nNOT AS IT SHOULD BE: {fault}")
    return 1 if faults else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="cells of an objective, an update, a strategy, a precision or a setting",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the tables into this page"
    )
    given = parser.parse_args()
    if given.only and given.write:
        parser.error("--write needs all cells: leave --only out")
    return given


if __name__ == "__main__":
    sys.exit(main())
