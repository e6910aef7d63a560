"""Plan -> Run: checks the machine, starts one child process a stage, watches it, and writes what
came of it.
"""

from advisor.launch.folder import Run
from advisor.launch.run import run_plan

__all__ = ["Run", "run_plan"]
