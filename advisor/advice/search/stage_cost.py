"""What one stage costs with given settings: the bridge from a situation and plan keys to the
estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from advisor.advice.search.rows import task_settings
from advisor.advice.search.settings import StageCase
from advisor.advice.types import Chosen, values_of
from advisor.estimate import NO_MODEL, estimate, hardware_machine, time_estimate
from advisor.estimate.padding import tokens_read
from advisor.estimate.run import Device, Rows, Run, stage_of
from advisor.estimate.types import Estimate
from advisor.estimate.whole_time import HELD_OUT_ROWS, EvaluationRows
from advisor.methods import may_share_base
from advisor.plan.model import Stage


class Passes(NamedTuple):
    """How often a row is read, of all tasks together."""

    over_trained: float  # epochs, times the share that is trained on
    held: float  # the share that is held out


def passes_of(case: StageCase, settings: Mapping[str, Chosen]) -> Passes:
    """How often these settings read a row; of several tasks each has epochs of its own."""
    if len(case.profiles) < 2:
        return _passes(values_of(settings))
    tasks = [
        (profile.rows, _passes(values_of(read.settings))) for profile, read in task_settings(case)
    ]
    rows = sum(count for count, _ in tasks) or 1
    return Passes(
        sum(count * each.over_trained for count, each in tasks) / rows,
        sum(count * each.held for count, each in tasks) / rows,
    )


def _passes(plain: Mapping[str, Any]) -> Passes:
    held = float(plain.get("holdout", Stage.holdout))
    return Passes(float(plain.get("epochs", Stage.epochs)) * (1 - held), held)


def stage_estimate(
    case: StageCase, plain: Mapping[str, Any], passes: Passes | None = None
) -> Estimate:
    """Memory, time and money of a stage with these values of plan keys.

    Args:
        passes: Those of all tasks, if they differ from what the values say.
    """
    if passes is None:
        passes = _passes(plain)
    run = _run(case, plain, epochs=passes.over_trained)
    if run is None:
        return NO_MODEL
    situation, tasks = case.situation, max(1, len(case.profiles))  # each is measured by itself
    evaluated = _evaluation_rows(case, run, passes) if run.rows.tokens_total else None
    found = estimate(run, situation.hardware, evaluated=evaluated, past=situation.past)
    if tasks == 1 or found.times is None:
        return found
    once = may_share_base(case.objective, case.update)
    return replace(found, times=found.times.in_parts(tasks, loads_once=once))


def pace_of_row(case: StageCase, plain: Mapping[str, Any]) -> float | None:
    """Seconds for a row of an optimizer step on one device; None: not known."""
    run, machine = _run(case, plain, epochs=1.0), hardware_machine(case.situation.hardware)
    found = None if run is None or machine is None else time_estimate(run, machine)
    return None if run is None or found is None else found.step_s / run.stage.effective_batch_size


def _run(case: StageCase, plain: Mapping[str, Any], *, epochs: float) -> Run | None:
    """What the estimate is about; None if nothing is known of the model."""
    model, teacher = case.situation.model, case.situation.teacher
    quantization, profile = case.composition.quantization, case.profile
    if model is None:
        return None
    axes = {"objective": case.objective, "update": case.update, "quantization": quantization}
    of_teacher = {}
    if teacher is not None:
        own_base = teacher.id == model.id and case.is_module and quantization is None
        of_teacher = {"teacher_params": 0 if own_base else teacher.params}
    stage = stage_of({**plain, **of_teacher, **axes})
    hardware, offloads = case.situation.hardware, bool(plain.get("offload"))
    device = Device.of(hardware, case.cards, plain.get("sharding"), offloads=offloads)
    tokens, rows = amounts_to_read(case, stage, epochs=epochs)
    read = Rows(
        stats=None if profile is None else profile.tokens,
        in_epoch=None if profile is None else profile.rows,
        tokens_total=tokens,
        rows_total=rows,
    )
    return Run(stage=stage, model=model, device=device, rows=read)


def _evaluation_rows(case: StageCase, run: Run, passes: Passes) -> EvaluationRows:
    """What a stage is measured on: of each task as many rows."""
    rows, tokens, tasks = run.rows.rows_total, run.rows.tokens_total, max(1, len(case.profiles))
    stats = case.profile.tokens if case.profile is not None else None
    request = stats.request_mean if stats is not None else None
    known = rows and passes.over_trained
    each = float(run.stage.seq_len)
    if rows and tokens:
        each = min(each, tokens / rows / case.method.sequences_per_row)
    return EvaluationRows(
        rows=rows / passes.over_trained * passes.held / tasks if rows and known else HELD_OUT_ROWS,
        row_tokens=each,
        answer_tokens=stats.mean - request if stats is not None and request else None,
        all_rows=rows / passes.over_trained * (1 + passes.held) / tasks if rows and known else 0.0,
    )


def amounts_to_read(
    case: StageCase, stage: Stage, *, epochs: float
) -> tuple[int | None, int | None]:
    """Tokens and rows read over all epochs, of all tasks; None: not known."""
    profiles, answers = case.profiles, case.situation.answers
    if stage.truncation != "stop":
        stage = replace(stage, truncation="stop")
    if not profiles or profiles[0].tokens is None:
        tokens = answers.value("data_tokens")
        rows = profiles[0].rows if profiles else answers.value("data_rows")
        return (
            None if tokens is None else int(tokens * epochs),
            None if rows is None else int(rows * epochs),
        )
    read_tokens = read_rows = 0.0
    for profile in profiles:
        assert profile.tokens is not None
        mean, share = tokens_read(profile.tokens, stage)
        rows_read = profile.rows * share * epochs
        read_tokens, read_rows = read_tokens + rows_read * mean, read_rows + rows_read
    return max(1, round(read_tokens)), max(1, round(read_rows))
