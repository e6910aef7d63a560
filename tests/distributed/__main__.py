"""Train every strategy with every update and objective: python -m tests.distributed"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.distributed.cells import all_cells, fill
from tests.distributed.trained import bad, chosen, train_cells


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--folder", type=Path, help="for the runs; default: one that is removed")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="advise-table-") as name:
        folder = given.folder or Path(name)
        if not (folder / "model").exists():
            folder.mkdir(exist_ok=True, parents=True)
            fill(folder)
        results = train_cells(folder.resolve(), chosen(all_cells(), given.only))
    for one in results:
        print(
            one.cell.objective,
            "|",
            one.cell.update,
            "|",
            one.cell.strategy,
            "|",
            one.status,
            one.seconds,
            one.from_one,
            one.from_ddp,
            one.text[:400] if one.status != "trained" else one.left.launch["sharded_tensors"],
        )
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    wrong = bad(results)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
