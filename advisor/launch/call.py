"""One call of `advise run`, once its folder is known to be of this run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.extras import Checked, extras
from advisor.ground.types import Hardware, ModelShape
from advisor.launch.gpus import choose_gpus
from advisor.launch.input_digests import InputContent
from advisor.launch.nodes_report import Report, report_of
from advisor.launch.preflight import PreflightResult, run_preflight
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import OnEnd, Say
from advisor.plan.entries import Entry
from advisor.plan.record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What is to be done, and what is known before anything is checked."""

    run: PlanRun
    selected: list[Entry]
    left: list[Entry]  # of the selected ones, those that are still to be trained
    record: RunRecord | None
    only: str | None
    max_steps: int | None
    dry_run: bool
    judge: bool
    machine: Hardware
    say: Say
    package_folder: Path
    on_end: OnEnd | None

    def preflight(self, shape: ModelShape | None, *, leads: bool = True) -> PreflightResult:
        """What this machine says to the run. Raises InputError and MachineNotReady."""
        return run_preflight(
            self.run.plan,
            self.run.path,
            self.run.folder,
            self.left,
            hardware=self.machine,
            shape=shape,
            trainers=self.package_folder,
            dry_run=self.dry_run or not leads,  # one machine starts servers, judges and asks
            judge=self.judge and leads,
            check_extras=self._check_extras if leads else list,
        )

    def _check_extras(self) -> list[Checked]:
        return [extra.check(self) for extra in extras().values()]

    def report(self) -> Report:
        """What this machine tells the others."""
        plan = self.run.plan
        return report_of(
            digest=self.run.digests["plan"],
            command={
                "--only": self.only,
                "--max-steps": self.max_steps,
                "--dry-run": self.dry_run,
                "--no-judge": not self.judge,
            },
            hardware=self.machine,
            gpus=choose_gpus(plan, self.left, self.machine, os.environ).gpus,
        )

    def inputs_here(self) -> dict[str, InputContent]:
        """What the stages that are left read."""
        if self.record is not None:
            self.run.inputs.remember(self.record)
        return self.run.inputs.of_entries(self.left)
