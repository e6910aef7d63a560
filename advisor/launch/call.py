"""One call of `advise run`, once its folder is known to be of this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import extras
from advisor.ground.resources import trainers_root
from advisor.ground.types import Gpu, Hardware, ModelShape
from advisor.launch.earlier import find_record
from advisor.launch.folder import is_done
from advisor.launch.inputs import Inputs
from advisor.launch.machines import Said, versions
from advisor.launch.preflight import PreflightResult, run_preflight
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import OnEnd, Say
from advisor.plan.entries import Entry
from advisor.plan.write import plan_digest
from advisor.record.content import digest_of
from advisor.record.files import try_read_part
from advisor.record.run import DRY_RUN, DryRun, DryRunRecord, Run, RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What is to be done, and what is known before anything is checked."""

    run: PlanRun
    selected: list[Entry]
    only: str | None
    dry_run: bool
    judge: bool
    hardware: Hardware | None  # None: to be probed
    say: Say
    trainers: Path | None  # the folder that holds the package; None: the installed one
    on_end: OnEnd | None

    @property
    def package_folder(self) -> Path:
        """The folder that holds the package `trainers`."""
        return self.trainers or trainers_root()

    def left(self, record: RunRecord | None) -> list[Entry]:
        """Of the selected entries, those that are still to be trained: what is done needs no
        trainer, data or disk any more.
        """
        return [
            entry
            for entry in self.selected
            if self.dry_run or not is_done(record, entry.name, self.run.folder)
        ]

    def preflight(
        self, left: Sequence[Entry], machine: Hardware, shape: ModelShape | None, *, leads: bool
    ) -> PreflightResult:
        """What this machine says to the run. Raises InputError and MachineNotReady."""
        return run_preflight(
            self.run.plan,
            self.run.path,
            self.run.folder,
            left,
            hardware=machine,
            shape=shape,
            trainers=self.package_folder,
            dry_run=self.dry_run or not leads,  # one machine starts servers and asks
            check_extras=lambda: [one.check(self) for one in extras().values() if leads],
        )

    def report(self, inputs: Inputs, machine: Hardware, gpus: Sequence[Gpu]) -> Said:
        """What has to be the same on every machine of the run."""
        given = {
            "the plan": plan_digest(self.run.plan),
            "--only": self.only,
            "--max-steps": self.run.max_steps,
            "--dry-run": self.dry_run,
            "--no-judge": not self.judge,
        }
        held = {name: digest_of(files) for name, files in inputs.items()}
        return {"given": given | held, "versions": versions(machine.software, gpus)}

    def outcome(self, node: int) -> Run | DryRun:
        """What machine 0 has written into the folder, as another machine of the run sees it."""
        folder = self.run.folder
        if self.dry_run and (measured := try_read_part(DryRunRecord, folder / DRY_RUN)) is not None:
            return DryRun(folder=folder, record=measured, node=node)
        if (record := find_record(self.run)) is not None:
            return Run(folder=folder, record=record, node=node)
        raise MachineNotReady(f"machine 0 has finished, and its result is not seen in {folder}")
