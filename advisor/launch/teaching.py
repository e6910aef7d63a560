"""What a finished stage, or its dry run, teaches later estimates: a line of the file of past runs.

The line holds what the formula alone says of what really ran: the largest micro-batch that was
seen, not the longest row of the whole file, which a short run may never meet. What a run did not
measure it does not teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from advisor.estimate.past.runs import PastRun, Reading, family_of, machine_name
from advisor.estimate.types import RunSpec
from advisor.ground.errors import AdviseError
from advisor.ground.types import Hardware, ModelShape
from advisor.ground.version import __version__
from advisor.launch.expected import counted_peaks
from advisor.launch.folder import now
from advisor.launch.record_keeper import Say
from advisor.methods import objective
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.record.stage import Adjustment, Expected, Measured
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
        self._note(entry, measured, steps=steps or 0, step_s=by_formula if timed else None)

    def measured(self, entry: Entry, measured: Measured | None) -> None:
        """Note a dry run of a stage: all of its steps had the longest rows."""
        if measured is None or self.shape is None:
            return
        spec = as_it_ran(run_spec(self.plan, entry.stage), measured)
        step_s = None if spec is None else _step_s(spec, self.shape, self.hardware)
        self._note(entry, measured, steps=None, step_s=step_s)

    def _note(
        self, entry: Entry, measured: Measured, *, steps: int | None, step_s: float | None
    ) -> None:
        """Write the line of a stage, unless nothing of it can be compared.

        Args:
            steps: None: a dry run.
            step_s: A step of it by the formula alone; None: its time teaches nothing.
        """
        from advisor.situation.past_runs import note_past_run, past_runs_path

        shape, machine, stage = self.shape, machine_name(self.hardware), entry.stage
        if past_runs_path() is None or shape is None or machine is None:
            return
        try:
            planned = run_spec(self.plan, stage)
            spec = as_it_ran(planned, measured)
            memory = () if spec is None else _readings(spec, shape, self.hardware, measured)
        except AdviseError:  # a plan from elsewhere that no estimate takes
            return
        timed = step_s is not None and measured.step_s is not None
        if not memory and not timed:
            return
        run = PastRun(
            at=now(),
            kind="dry_run" if steps is None else "run",
            advise_version=__version__,
            machine=machine,
            family=family_of(shape),
            params=shape.params,
            objective=stage.objective,
            update=stage.update,
            quantization=stage.quantization,
            sharding=planned.sharding,
            steps=steps,
            memory=memory,
            expected_step_s=step_s if timed else None,
            measured_step_s=measured.step_s if timed else None,
        )
        if problem := note_past_run(run):
            self.say(f"warning: {problem}")


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
            found.append(Reading(counter=counter, expected_bytes=expected, measured_bytes=peak))
    return tuple(found)


def _step_s(spec: RunSpec, shape: ModelShape, hardware: Hardware) -> float | None:
    """Seconds of a step by the formula, of rows that are all as long as the longest."""
    from advisor.estimate import hardware_machine, time_estimate

    machine = hardware_machine(hardware)
    if machine is None:
        return None
    time = time_estimate(replace(spec, seq_len=spec.longest_tokens), shape, machine)
    return None if time is None else time.step_s
