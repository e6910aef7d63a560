"""Train every strategy with every update and objective, with other settings, and on other numbers of
processes: python -m tests.distributed [--only NAME] [--write docs/strategies.md]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.distributed.cells import fill
from tests.distributed.page import page
from tests.distributed.trained import Result, wrong
from tests.distributed.whole import train_settings, train_table, wrong_worlds
from tests.distributed.worlds import train_worlds


def main() -> int:
    given = arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advise-strategies-", dir=given.folder) as name:
        folder = Path(name)
        fill(folder)
        cells = train_table(folder, given.only)
        told = wrong(cells.values())
        show(cells.values())
        if not given.only:
            settings, worlds = train_settings(folder), train_worlds(folder)
            show(settings.values())
            told += [*wrong(settings.values()), *wrong_worlds(worlds)]
            if given.write:
                given.write.write_text(page(cells, settings, worlds), encoding="utf-8")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    for one in told:
        print(f"\nNOT AS IT SHOULD BE: {one}")
    return 1 if told else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="cells of the table alone: of an objective, an update or a strategy",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="for scratch files")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the tables into this page"
    )
    given = parser.parse_args()
    if given.only and given.write:
        parser.error("--write needs all cells: leave --only out")
    return given


def show(results: Iterable[Result]) -> None:
    """A line for each training."""
    for one in results:
        told = f"{one.far:.0e}" if one.far is not None else one.text.partition("\n")[0]
        print(f"{one.name:34} {one.strategy:14} {one.status:8} {told}"[:160], flush=True)


if __name__ == "__main__":
    sys.exit(main())
