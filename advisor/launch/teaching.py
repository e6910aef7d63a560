"""What a finished stage, or its dry run, teaches later estimates: a line of the file of past runs.

The line holds what the formula alone says of what really ran: the largest micro-batch that was
seen, not the longest row of the whole file, which a short run may never meet. What a run did not
measure it does not teach.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate.past.runs import PastRun, Reading, family_of, machine_name
from advisor.estimate.types import RunSpec
from advisor.ground.errors import AdviseError
from advisor.ground.version import __version__
from advisor.launch.call import Call
from advisor.launch.expected import StageEstimator
from advisor.launch.folder import now
from advisor.methods import objective
from advisor.plan.entries import Entry
from advisor.record.run import StageResult
from advisor.record.stage import Measured
from advisor.situation.of_plan import run_spec
from advisor.situation.past_runs import note_past_run, past_runs_path

FEWEST_STEPS = 3  # the first is slower, and one alone says little


def note_training(call: Call, entry: Entry, result: StageResult) -> None:
    """Note a stage that was trained with one micro-batch from beginning to end."""
    if result.measured is None:
        return
    expected, steps = call.expected[entry.name], result.steps or 0
    by_formula = expected.step_s
    if expected.learned is not None and expected.learned.formula_step_s is not None:
        by_formula = expected.learned.formula_step_s
    # Of rows that nobody has counted, such as those of the hub, a step is that of the longest.
    is_counted = expected.duration_s is not None or entry.stage.packing
    is_timed = is_counted and steps >= FEWEST_STEPS
    _note(call, entry, result.measured, step_s=by_formula if is_timed else None, steps=steps)


def note_dry_run(call: Call, entry: Entry, measured: Measured) -> None:
    """Note a dry run of a stage: all of its steps had the longest rows."""
    spec = as_it_ran(run_spec(call.run.plan, entry.stage), measured)
    step_s = None if spec is None else call.estimator.longest_step_s(spec)
    _note(call, entry, measured, step_s=step_s)


def _note(
    call: Call, entry: Entry, measured: Measured, *, step_s: float | None, steps: int | None = None
) -> None:
    """Write the line of a stage, unless nothing of it can be compared.

    Args:
        step_s: A step of it by the formula alone; None: its time teaches nothing.
        steps: None: a dry run.
    """
    shape, machine, stage = call.shape, machine_name(call.used), entry.stage
    if past_runs_path() is None or shape is None or machine is None:
        return
    try:
        planned = run_spec(call.run.plan, stage)
        spec = as_it_ran(planned, measured)
        memory = () if spec is None else _readings(call.estimator, spec, measured)
    except AdviseError:  # a plan from elsewhere that no estimate takes
        return
    is_timed = step_s is not None and measured.step_s is not None
    if not memory and not is_timed:
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
        expected_step_s=step_s if is_timed else None,
        measured_step_s=measured.step_s if is_timed else None,
    )
    if problem := note_past_run(run):
        call.options.say(f"warning: {problem}")


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


def _readings(estimator: StageEstimator, spec: RunSpec, measured: Measured) -> tuple[Reading, ...]:
    """Each counter that was read, with what the formula says of it."""
    read = {str(measured.counter): measured.peak_bytes, "reserved": measured.reserved_bytes}
    found = []
    for counter, peak in read.items():
        asked = "reserved" if counter == "reserved" else "allocated"
        _, expected = estimator.counted_peaks(spec, asked)
        if peak and expected:
            found.append(Reading(counter=counter, expected_bytes=expected, measured_bytes=peak))
    return tuple(found)
