"""How long a person waits for help and for advice: beside the commit in tests/frozen/BASE, beside
Python with the libraries of a command alone, and beside the help of tools that import torch first.

Everything is compiled before, as pip does when it installs.
"""

import compileall
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import Row, run_process
from tools.frozen.__main__ import FROZEN, ROOT, tree_of

TITLE = "cold start of whole commands, 10 runs in turn: CPU seconds"
RUNS = 10
COMMANDS = {
    "--json (8B on an RTX 4090)": (
        "--json", "--task", "customer_service", "--budget", "low", "--gpu", "RTX 4090",
        "--model", "Qwen/Qwen3-8B",
    ),
    "first screen": ("--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B"),
    "--help": ("--help",),
}  # fmt: skip
OTHERS = (("accelerate", "estimate-memory", "--help"), ("trl", "sft", "--help"))


def measure() -> list[Row]:
    base = (FROZEN / "BASE").read_text(encoding="utf-8").strip()
    with tempfile.TemporaryDirectory() as name, tree_of(base, Path(name) / "tree") as then:
        commands = {"import click, rich, yaml": ("", ROOT, ("-c", "import click, rich, yaml"))}
        for tree, which in ((ROOT, "now"), (then, base[:8])):
            compileall.compile_dir(tree / "advisor", quiet=2)
            for what, flags in COMMANDS.items():
                commands[f"advise {what}, {which}"] = (what, tree, ("-m", "advisor", *flags))
        for other in OTHERS:
            if program := shutil.which(other[0], path=str(Path(sys.executable).parent)):
                commands[" ".join(other)] = ("--help", ROOT, (program, *other[1:]))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(RUNS + 1):
            for label, (_, tree, command) in commands.items():
                path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
                done = run_process([sys.executable, *command], env={"PYTHONPATH": path})
                if run:  # the first one fills caches
                    seconds[label].append(done.cpu_s)
    return [
        Row(label, tuple(found), "s", group=commands[label][0]) for label, found in seconds.items()
    ]
