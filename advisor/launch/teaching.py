"""What a finished stage, or its dry run, teaches later estimates: a line of the file of past runs.

The line holds what the formula alone says of what really ran: the micro-batch it came to and the
largest one it saw, not the longest row of the whole file, which a short run may never meet. What a
run did not measure it does not teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from advisor.estimate.past.formula_stamp import formula_stamp
from advisor.estimate.past.runs import FORMAT, PastRun, Reading, device_of, family_of, settings_of
from advisor.estimate.types import RunSpec
from advisor.ground.errors import AdviseError
from advisor.ground.types import Hardware, ModelShape
from advisor.ground.version import __version__
from advisor.launch.expected import counted_peaks
from advisor.launch.folder import now
from advisor.launch.record_keeper import Say
from advisor.methods import objective
from advisor.plan.entries import Entry
from advisor.plan.measured_record import Expected, Measured
from advisor.plan.model import Plan
from advisor.plan.record import Adjustment
from advisor.situation.of_plan import run_spec

FEWEST_STEPS = 3  # the first is slower, and one alone says little


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """Notes what the stages of one call of `advise run` measured."""

    plan: Plan
    hardware: Hardware  # what the plan uses of the machine
    shape: ModelShape | None
    expected: Mapping[str, Expected]
    say: Say

    def trained(
        self,
        entry: Entry,
        measured: Measured | None,
        *,
        steps: int | None,
        adjusted: tuple[Adjustment, ...] = (),
        versions: Mapping[str, str | None],
    ) -> None:
        """Note a stage that was trained; one that changed its micro-batch midway says nothing."""
        if measured is None or adjusted:
            return
        expected = self.expected.get(entry.name) or Expected()
        by_formula = expected.step_s
        if expected.learned is not None and expected.learned.formula_step_s is not None:
            by_formula = expected.learned.formula_step_s
        # Of rows that nobody has counted, such as those of the hub, a step is that of the longest.
        is_counted = expected.duration_s is not None or entry.stage.packing
        timed = is_counted and (steps or 0) >= FEWEST_STEPS
        self._note(entry, "run", measured, versions, step_s=by_formula if timed else None)

    def measured(
        self, entry: Entry, measured: Measured | None, *, versions: Mapping[str, str | None]
    ) -> None:
        """Note a dry run of a stage: all of its steps had the longest rows."""
        if measured is None or self.shape is None:
            return
        spec = as_it_ran(run_spec(self.plan, entry.stage), measured)
        step_s = None if spec is None else _step_s(spec, self.shape, self.hardware)
        self._note(entry, "dry_run", measured, versions, step_s=step_s)

    def _note(
        self,
        entry: Entry,
        kind: Literal["run", "dry_run"],
        measured: Measured,
        versions: Mapping[str, str | None],
        *,
        step_s: float | None,
    ) -> None:
        from advisor.situation.past_runs import note_past_run, past_runs_path

        if past_runs_path() is None:
            return
        try:
            run = past_run(
                self.plan,
                entry,
                self.shape,
                self.hardware,
                measured,
                kind=kind,
                step_s=step_s,
                versions=versions,
            )
        except AdviseError:  # a plan from elsewhere that no estimate takes
            return
        if run is not None and (problem := note_past_run(run)):
            self.say(f"warning: {problem}")


def past_run(
    plan: Plan,
    entry: Entry,
    shape: ModelShape | None,
    hardware: Hardware,
    measured: Measured,
    *,
    kind: Literal["run", "dry_run"],
    step_s: float | None,
    versions: Mapping[str, str | None],
) -> PastRun | None:
    """The line of a stage; None where nothing of it could be compared.

    Args:
        step_s: A step of it by the formula alone; None: its time teaches nothing.
    """
    device = device_of(hardware)
    if shape is None or device.machine is None:
        return None
    spec = as_it_ran(run_spec(plan, entry.stage), measured)
    memory = () if spec is None else _readings(spec, shape, hardware, measured)
    timed = step_s is not None and measured.step_s is not None
    if not memory and not timed:
        return None
    return PastRun(
        format=FORMAT,
        at=now(),
        kind=kind,
        advise_version=__version__,
        formula=formula_stamp(),
        machine=device.machine,
        driver=hardware.driver_version if hardware.gpus else None,
        torch=versions.get("torch") or device.torch,
        family=family_of(shape),
        params=shape.params,
        objective=entry.stage.objective,
        update=entry.stage.update,
        quantization=entry.stage.quantization,
        sharding=run_spec(plan, entry.stage).sharding,
        settings=settings_of(spec or run_spec(plan, entry.stage)),
        memory=memory,
        expected_step_s=step_s if timed else None,
        measured_step_s=measured.step_s if timed else None,
    )


def as_it_ran(spec: RunSpec, measured: Measured) -> RunSpec | None:
    """The spec with rows as long as those of the largest micro-batch that was seen; None where that
    is not known. A stage that writes its answers makes them as long as seq_len says.
    """
    if objective(spec.objective).generates or spec.packing:
        return spec
    if measured.largest_batch_tokens is None:
        return None
    rows = spec.micro_batch_size * objective(spec.objective).sequences_per_row
    longest = max(1, -(-measured.largest_batch_tokens // rows))
    return replace(spec, lengths=((longest, 1),))


def _readings(
    spec: RunSpec, shape: ModelShape, hardware: Hardware, measured: Measured
) -> tuple[Reading, ...]:
    """Each counter that was read, with what the formula says of it."""
    read = {str(measured.counter): measured.peak_bytes}
    if measured.reserved_bytes is not None:
        read["reserved"] = measured.reserved_bytes
    found = []
    for counter, peak in read.items():
        asked = "reserved" if counter == "reserved" else "allocated"
        _, expected = counted_peaks(spec, shape, hardware, counter=asked)
        if peak and expected:
            reading = Reading(counter=counter, expected_bytes=expected, measured_bytes=peak)
            found.append(reading)
    return tuple(found)


def _step_s(spec: RunSpec, shape: ModelShape, hardware: Hardware) -> float | None:
    """Seconds of a step by the formula, of rows that are all as long as the longest."""
    from advisor.estimate import hardware_machine, time_estimate

    machine = hardware_machine(hardware)
    if machine is None:
        return None
    spec = replace(spec, seq_len=spec.longest_tokens)
    time = time_estimate(spec, shape, machine)
    return None if time is None else time.step_s
