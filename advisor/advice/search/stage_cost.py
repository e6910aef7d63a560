"""What one stage costs with given settings: the bridge from a situation and plan keys to the
estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from advisor.advice.search.packing import padded_length
from advisor.advice.search.rows import task_settings
from advisor.advice.search.settings import StageCase
from advisor.advice.types import Chosen, values_of
from advisor.estimate import estimate, hardware_machine, time_estimate
from advisor.estimate.reading import tokens_read
from advisor.estimate.stages import stage_spec, with_rows
from advisor.estimate.types import Estimate, RunSpec
from advisor.estimate.whole_time import HELD_OUT_ROWS, Looked
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
    situation, spec = case.situation, _run_spec(case, plain)
    if passes is None:
        passes = _passes(plain)
    tokens, rows = amounts_to_read(case, spec, epochs=passes.over_trained)
    tasks = max(1, len(case.profiles))  # each is measured by itself
    found = estimate(
        spec,
        situation.model,
        situation.hardware,
        tokens_total=tokens,
        rows_total=rows,
        padded_length=padded_length(spec, case.profile, grouped=bool(plain.get("group_by_length"))),
        looked=_looked(case, spec, (tokens, rows), passes) if tokens else None,
        past=situation.past,
    )
    if tasks == 1 or found.times is None:
        return found
    once = may_share_base(case.objective, case.update)
    return replace(found, times=found.times.in_parts(tasks, loads_once=once))


def pace_of_row(case: StageCase, plain: Mapping[str, Any]) -> float | None:
    """Seconds for a row of an optimizer step on one device, with these values of plan keys; None if
    the speed of the device or the dimensions of the model are not known.
    """
    shape, machine = case.situation.model, hardware_machine(case.situation.hardware)
    if shape is None or machine is None:
        return None
    spec = _run_spec(case, plain)
    tokens, rows = amounts_to_read(case, spec, epochs=1.0)
    found = time_estimate(
        spec,
        shape,
        machine,
        tokens_total=tokens,
        rows_total=rows,
        padded_length=padded_length(spec, case.profile, grouped=bool(plain.get("group_by_length"))),
    )
    return None if found is None else found.step_s / (spec.micro_batch_size * spec.grad_accum)


def _run_spec(case: StageCase, plain: Mapping[str, Any]) -> RunSpec:
    situation, quantization = case.situation, case.composition.quantization
    if (teacher := situation.teacher) is not None:
        own_base = (
            situation.model is not None
            and teacher.id == situation.model.id
            and case.is_module
            and quantization is None
        )
        plain = {**plain, "teacher_params": 0 if own_base else teacher.params}
    axes = (case.objective, case.update, quantization)
    spec = stage_spec(*axes, plain, gpus=case.cards, sharding=plain.get("sharding"))
    tokens = None if case.profile is None else case.profile.tokens
    return with_rows(spec, tokens, situation.model, cpu=case.on_cpu)


def _looked(
    case: StageCase, spec: RunSpec, amounts: tuple[int, int | None], passes: Passes
) -> Looked:
    """What a stage is measured on: of each task as many rows."""
    (tokens, rows), tasks = amounts, max(1, len(case.profiles))
    stats = case.profile.tokens if case.profile is not None else None
    request = stats.request_mean if stats is not None else None
    known = rows and passes.over_trained
    each = tokens / rows / case.method.sequences_per_row if rows else spec.seq_len
    return Looked(
        rows=rows / passes.over_trained * passes.held / tasks if rows and known else HELD_OUT_ROWS,
        row_tokens=min(float(spec.seq_len), each),
        answer_tokens=stats.mean - request if stats is not None and request else None,
        all_rows=rows / passes.over_trained * (1 + passes.held) / tasks if rows and known else 0.0,
    )


def amounts_to_read(
    case: StageCase, spec: RunSpec, *, epochs: float
) -> tuple[int | None, int | None]:
    """Tokens and rows read over all epochs, of all tasks together and without the rows that are
    held out; each None where neither the data nor an answer tells.
    """
    profiles, answers = case.profiles, case.situation.answers
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
        mean, share = tokens_read(
            profile.tokens,
            objective=spec.objective,
            seq_len=spec.seq_len,
            truncation="stop",
            packing=spec.packing,
            response_tokens=spec.options.get("response_tokens"),
        )
        rows_read = profile.rows * share * epochs
        read_tokens, read_rows = read_tokens + rows_read * mean, read_rows + rows_read
    return max(1, round(read_tokens)), max(1, round(read_rows))
