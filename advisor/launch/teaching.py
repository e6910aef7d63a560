"""What a finished stage, or its dry run, teaches later estimates: a line of the file of past runs.

The line holds what the formula alone says of what really ran: the largest micro-batch that was
seen, not the longest row of the whole file, which a short run may never meet. What a run did not
measure it does not teach.
"""

from __future__ import annotations

from msgspec.structs import replace

from advisor.estimate import hardware_machine, time_estimate
from advisor.estimate.past_runs import PastRun, Reading, family_of, machine_name
from advisor.estimate.run import Run
from advisor.ground.errors import AdviseError
from advisor.ground.version import __version__
from advisor.launch.call import Call
from advisor.launch.expected import StageEstimator
from advisor.launch.folder import now
from advisor.plan.entries import Entry
from advisor.record.run import StageResult
from advisor.record.stage import Measured
from advisor.situation.of_plan import plan_run
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
    _note(call, entry, measured)


def _note(
    call: Call,
    entry: Entry,
    measured: Measured,
    *,
    step_s: float | None = None,
    steps: int | None = None,
) -> None:
    """Write the line of a stage, unless nothing of it can be compared.

    Args:
        step_s: A step of it by the formula alone; None: its time teaches nothing.
        steps: None: a dry run.
    """
    shape, machine, stage = call.shape, machine_name(call.used), entry.stage
    if past_runs_path() is None or shape is None or machine is None:
        return
    memory: tuple[Reading, ...] = ()
    try:
        planned = plan_run(call.run.plan, stage, shape, call.used)
        ran = run_as_measured(planned, measured)
        if ran is not None:
            memory = _readings(call.estimator, ran, measured)
        if ran is not None and steps is None and (speeds := hardware_machine(call.used)):
            longest = replace(ran, stage=replace(ran.stage, seq_len=ran.longest_tokens))
            time = time_estimate(longest, speeds)
            step_s = None if time is None else time.step_s
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
        sharding=planned.device.sharding,
        steps=steps,
        memory=memory,
        expected_step_s=step_s if is_timed else None,
        measured_step_s=measured.step_s if is_timed else None,
    )
    if problem := note_past_run(run):
        call.options.say(f"warning: {problem}")


def run_as_measured(run: Run, measured: Measured) -> Run | None:
    """The run with rows as long as those of the largest micro-batch that was seen; None if that is
    not known. A stage that writes its answers makes them as long as seq_len says.
    """
    if run.objective.generates or run.stage.packing:
        return run
    if measured.largest_batch_tokens is None:
        return None
    longest = max(1, -(-measured.largest_batch_tokens // run.sequences))
    return replace(run, rows=replace(run.rows, lengths=((longest, 1),)))


def _readings(estimator: StageEstimator, run: Run, measured: Measured) -> tuple[Reading, ...]:
    read = {str(measured.counter): measured.peak_bytes, "reserved": measured.reserved_bytes}
    found = []
    for counter, peak in read.items():
        asked = "reserved" if counter == "reserved" else "allocated"
        _, expected = estimator.counted_peaks(run, asked)
        if peak and expected:
            found.append(Reading(counter=counter, expected_bytes=expected, measured_bytes=peak))
    return tuple(found)
