"""Runs every benchmark, or those named: python -m benchmarks [NAME ...]

`python -m benchmarks gpu` stands apart: it needs a GPU, has options and keeps its rows. `refit
--write` and `estimators --write` also write what they find.

A benchmark is a module here with TITLE and `measure() -> list[Row]`; the first row is what the
others are compared with.
"""

import importlib
import os
import pkgutil
import platform
import sys

import benchmarks
from benchmarks.measuring import table


def main() -> int:
    if sys.argv[1:2] == ["gpu"]:
        from benchmarks.gpu import main as measure_gpu

        return measure_gpu(sys.argv[2:])
    if sys.argv[1:2] in (["refit"], ["estimators"]) and "--write" in sys.argv[2:]:
        return int(importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:]))
    names = [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in ("__main__", "measuring", "gpu", "gpu_rows") and not module.ispkg
    ]
    wanted = sys.argv[1:] or names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        print(f"unknown benchmark '{unknown[0]}'; known: {', '.join(names)}", file=sys.stderr)
        return 2
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores,"
        f" Python {platform.python_version()}"
    )
    for name in wanted:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {module.TITLE}\n")
        print(table(module.measure()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
