"""How long a person waits for help and for advice, beside the help of tools that import torch
first.
"""

import shutil
import sys
from pathlib import Path

from benchmarks.measuring import Row, in_turn

TITLE = "cold start of whole commands, 10 runs in turn"


def measure() -> list[Row]:
    scripts = Path(sys.executable).parent
    advise = str(scripts / "advise")
    commands = {
        "advise --json (scenario 1, RTX 4090, 8B)": [
            advise,
            "--json",
            "--task",
            "customer_service",
            "--budget",
            "low",
            "--gpu",
            "RTX 4090",
            "--model",
            "Qwen/Qwen3-8B",
        ],
        "advise --help": [advise, "--help"],
    }
    for name, command in (
        ("accelerate estimate-memory --help", ["accelerate", "estimate-memory", "--help"]),
        ("trl sft --help", ["trl", "sft", "--help"]),
    ):
        program = scripts / command[0]
        if shutil.which(str(program)):
            commands[name] = [str(program), *command[1:]]
    return in_turn(commands, runs=10)
