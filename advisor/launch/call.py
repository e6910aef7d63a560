"""One call of `advise run`: what was asked for, and what is known of plan and machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from advisor.estimate.past.runs import PastRuns
from advisor.ground.resources import trainers_root
from advisor.ground.types import Hardware, ModelShape, as_free_now
from advisor.launch.data import CheckedData, check_data
from advisor.launch.expected import StageEstimator
from advisor.launch.folder import is_done
from advisor.launch.gpus import ChosenGpus, choose_gpus
from advisor.launch.prepare import Options, PlanRun
from advisor.plan.entries import Entry
from advisor.probe import probe
from advisor.record.run import RunRecord
from advisor.record.stage import Expected
from advisor.situation.of_plan import device_hardware, plan_shape
from advisor.situation.past_runs import read_past_runs


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is to be done. What is known of the machine is looked up when it is first asked for."""

    run: PlanRun
    options: Options
    selected: Sequence[Entry]  # the trainings that --only names
    record: RunRecord | None = None  # what earlier calls have left
    node: int = 0  # the number of this machine, in a run on several

    @cached_property
    def left(self) -> list[Entry]:
        """Selected trainings that are not done: what is done needs no trainer, data or disk."""
        folder, again = self.run.folder, self.options.dry_run
        return [
            entry
            for entry in self.selected
            if again or not is_done(self.record, entry.name, folder)
        ]

    @property
    def starts_servers(self) -> bool:
        """Whether this machine starts servers and asks others, which one of several does."""
        return self.node == 0

    @property
    def package_folder(self) -> Path:
        """The folder that holds the package `trainers`."""
        return self.options.trainers or trainers_root()

    @cached_property
    def machine(self) -> Hardware:
        """The whole machine."""
        return self.options.hardware or probe()

    @cached_property
    def gpus(self) -> ChosenGpus:
        """The GPUs of this run, one for each process; none if the plan uses none."""
        return choose_gpus(self.run.plan, self.left, self.machine, os.environ)

    @cached_property
    def used(self) -> Hardware:
        """The part of the machine that the run uses."""
        return device_hardware(self.run.plan, self.machine, self.gpus.gpus)

    @cached_property
    def shape(self) -> ModelShape | None:
        """The shape of the plan's model; None if it is not known."""
        return plan_shape(self.run.plan, self.run.path)

    @cached_property
    def data(self) -> CheckedData:
        """What the data of the trainings is."""
        return check_data(self.run, self.left)

    @cached_property
    def past(self) -> tuple[PastRuns, tuple[str, ...]]:
        """(earlier runs, warnings about their file)."""
        return read_past_runs()

    @cached_property
    def estimator(self) -> StageEstimator:
        """Estimates stages on the part of the machine that the run uses."""
        return StageEstimator(
            plan=self.run.plan,
            shape=self.shape,
            hardware=self.used,
            past=self.past[0],
            profiles=self.data.profiles,
            max_steps=self.options.max_steps,
            judge=self.options.judge,
        )

    @cached_property
    def expected(self) -> Mapping[str, Expected]:
        """Name of a training -> what it is expected to need of what is free now."""
        free = replace(self.estimator, hardware=as_free_now(self.used))
        return {entry.name: free.expect(entry) for entry in self.run.entries}
