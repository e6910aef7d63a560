"""The real model that the benchmarks train."""

import os
import subprocess
import sys

from advisor.ground.resources import trainers_root


def demo_model() -> str:
    """The folder of the model, fetched once."""
    environment = {**os.environ, "PYTHONPATH": str(trainers_root()), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-P", "-m", "trainers.tools.demo_model"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return done.stdout.strip().splitlines()[-1]
