"""One call of `advise run`, once its folder is known to be of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import Checked, extras
from advisor.ground.types import Gpu, Hardware, ModelShape
from advisor.launch.folder import find_record
from advisor.launch.input_digests import InputContent
from advisor.launch.machines import Said, versions
from advisor.launch.preflight import PreflightResult, run_preflight
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import OnEnd, Say
from advisor.plan.entries import Entry
from advisor.plan.record import DRY_RUN, DryRun, DryRunRecord, Run, RunRecord
from advisor.plan.record_files import try_read_part


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

    def report(self, inputs: Mapping[str, InputContent], gpus: Sequence[Gpu]) -> Said:
        """What has to be the same on every machine of the run."""
        given = {
            "the plan": self.run.digests["plan"],
            "--only": self.only,
            "--max-steps": self.max_steps,
            "--dry-run": self.dry_run,
            "--no-judge": not self.judge,
        }
        held = {name: content.digest for name, content in inputs.items()}
        return {"given": given | held, "versions": versions(self.machine.software, gpus)}

    def outcome(self, node: int) -> Run | DryRun:
        """What machine 0 has written into the folder, as another machine of the run sees it."""
        folder = self.run.folder
        if self.dry_run and (measured := try_read_part(DryRunRecord, folder / DRY_RUN)) is not None:
            return DryRun(folder=folder, record=measured, node=node)
        if (record := find_record(folder, self.run.identity)) is not None:
            return Run(folder=folder, record=record, node=node)
        raise MachineNotReady(f"machine 0 has finished, and its result is not seen in {folder}")

    def inputs_here(self) -> dict[str, InputContent]:
        """What the stages that are left read."""
        if self.record is not None:
            self.run.inputs.remember(self.record)
        return self.run.inputs.of_entries(self.left)
