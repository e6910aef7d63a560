"""Train every strategy with every update and objective: python -m tests.distributed [--only NAME]"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.distributed.cells import all_cells, fill, write_plan
from tests.distributed.trained import train_shared, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="an objective or a strategy")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advise-table-") as name:
        folder = Path(name)
        fill(folder)
        cells = [cell for cell in all_cells() if cell.is_any_of(given.only)]
        found = train_shared(
            {(cell.name, cell.strategy): write_plan(folder, cell) for cell in cells}
        )
    for one in found.values():
        far = one.from_one or one.from_ddp
        told = (f"{far.loss:.0e} {far.weight:.0e}" if far else "") or one.text.splitlines()[:1]
        print(f"{one.name:24} {one.strategy:14} {one.status:8} {told}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    faults = wrong(found.values())
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
