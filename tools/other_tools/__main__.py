"""Write the keys of one release of another training tool, as its own classes state them.

    python -m tools.other_tools TOOL --python PATH

PATH is the Python of an environment that holds the tool; TOOL is one that has a module
probe/read_TOOL.py. Writes rules/tools/TOOL/RELEASE.yaml. A new release is this one command;
advisor/other_tools/tables/keys.py describes what the file holds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from advisor.ground.files import write_atomically
from tools.other_tools.table import probe, written

ROOT = Path(__file__).resolve().parent.parent.parent
PROBES = Path(__file__).resolve().parent / "probe"
TOOLS = sorted(path.stem.removeprefix("read_") for path in PROBES.glob("read_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.other_tools", description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--python", required=True, help="the Python of the tool's environment")
    parser.add_argument("--out", type=Path, default=ROOT / "rules" / "tools", help="a folder")
    chosen = parser.parse_args()
    try:
        table = probe(chosen.tool, chosen.python)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        print(f"{chosen.python} cannot read {chosen.tool}: {said[-2000:]}", file=sys.stderr)
        return 2
    path = chosen.out / chosen.tool / f"{table['release']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, written(table, schema=os.path.relpath(ROOT / "rules" / "schema", path.parent))
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
