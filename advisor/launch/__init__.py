"""Plan -> Run: checks the machine, starts a child process a stage, writes what came of it."""

from advisor.launch.prepare import Options
from advisor.launch.run import run_plan
from advisor.record.run import DryRun, FinishedRun

__all__ = ["DryRun", "FinishedRun", "Options", "run_plan"]
