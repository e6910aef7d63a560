"""What one stage costs with given settings: the bridge from a situation and plan keys to the
estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from advisor.advice.batching import padded_length
from advisor.estimate import estimate, hardware_machine, time_estimate
from advisor.estimate.reading import tokens_read
from advisor.estimate.stages import stage_spec, with_rows
from advisor.estimate.types import Estimate, RunSpec
from advisor.estimate.whole_time import HELD_OUT_ROWS, Looked
from advisor.ground.types import DataProfile
from advisor.methods import may_share_base, methods
from advisor.plan.model import Stage
from advisor.situation.types import Situation


class Passes(NamedTuple):
    """How often a row is read, of all tasks together."""

    over_trained: float  # epochs, times the share that is trained on
    held: float  # the share that is held out

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Passes:
        """Those of one set of settings."""
        held = float(plain.get("holdout", Stage.holdout))
        return cls(float(plain.get("epochs", Stage.epochs)) * (1 - held), held)


def stage_estimate(
    situation: Situation,
    objective: str,
    update: str,
    quantization: str | None,
    plain: Mapping[str, Any],
    strategy: str | None,
    passes: Passes | None = None,
) -> Estimate:
    """Memory, time and money of a stage with these values of plan keys.

    Args:
        strategy: How several GPUs share the work; None for one device.
        passes: Those of all tasks, if they differ from what the values say.
    """
    spec = _run_spec(situation, objective, update, quantization, plain, strategy)
    if passes is None:
        passes = Passes.of(plain)
    tokens, rows = amounts_to_read(situation, spec, epochs=passes.over_trained)
    tasks = max(1, len(profiles_of(situation, objective)))  # each is measured by itself
    found = estimate(
        spec,
        situation.model,
        situation.hardware,
        tokens_total=tokens,
        rows_total=rows,
        padded_length=padded_length(
            spec, profile_of(situation, objective), grouped=bool(plain.get("group_by_length"))
        ),
        looked=_looked(situation, spec, tokens, rows, passes, tasks) if tokens else None,
        past=situation.past,
    )
    if tasks == 1 or found.times is None:
        return found
    once = may_share_base(objective, update)
    return replace(found, times=found.times.in_parts(tasks, loads_once=once))


def pace_by(
    situation: Situation,
    objective: str,
    update: str,
    quantization: str | None,
    strategy: str | None,
) -> Callable[[Mapping[str, Any]], float | None]:
    """Plan keys -> seconds for a row of an optimizer step on one device; None where the speed of
    the device or the dimensions of the model are not known.
    """
    shape, machine = situation.model, hardware_machine(situation.hardware)

    def pace(plain: Mapping[str, Any]) -> float | None:
        if shape is None or machine is None:
            return None
        spec = _run_spec(situation, objective, update, quantization, plain, strategy)
        tokens, rows = amounts_to_read(situation, spec, epochs=1.0)
        found = time_estimate(
            spec,
            shape,
            machine,
            tokens_total=tokens,
            rows_total=rows,
            padded_length=padded_length(
                spec, profile_of(situation, objective), grouped=bool(plain.get("group_by_length"))
            ),
        )
        return None if found is None else found.step_s / (spec.micro_batch_size * spec.grad_accum)

    return pace


def _run_spec(
    situation: Situation,
    objective: str,
    update: str,
    quantization: str | None,
    plain: Mapping[str, Any],
    strategy: str | None,
) -> RunSpec:
    if (teacher := situation.teacher) is not None:
        own_base = (
            situation.model is not None
            and teacher.id == situation.model.id
            and methods().update(update).is_module
            and quantization is None
        )
        plain = {**plain, "teacher_params": 0 if own_base else teacher.params}
    spec = stage_spec(
        objective,
        update,
        quantization,
        plain,
        gpus=max(1, len(situation.hardware.gpus)),
        sharding=strategy,
    )
    profile = profile_of(situation, objective)
    return with_rows(
        spec,
        None if profile is None else profile.tokens,
        situation.model,
        cpu=situation.hardware.kind == "cpu",
    )


def _looked(
    situation: Situation, spec: RunSpec, tokens: int, rows: int | None, passes: Passes, tasks: int
) -> Looked:
    """What a stage is measured on: of each task as many rows."""
    profile = profile_of(situation, spec.objective)
    stats = profile.tokens if profile is not None else None
    request = stats.request_mean if stats is not None else None
    return Looked(
        rows=rows / passes.over_trained * passes.held / tasks
        if rows and passes.over_trained
        else HELD_OUT_ROWS,
        row_tokens=min(
            float(spec.seq_len),
            tokens / rows / methods().objective(spec.objective).sequences_per_row
            if rows
            else spec.seq_len,
        ),
        answer_tokens=stats.mean - request if stats is not None and request else None,
        all_rows=rows / passes.over_trained * (1 + passes.held) / tasks
        if rows and passes.over_trained
        else 0.0,
    )


def profile_of(situation: Situation, objective: str = "") -> DataProfile | None:
    """The data whose rows decide a stage's lengths: of several tasks those with the longest row."""
    return max(
        profiles_of(situation, objective),
        key=lambda profile: profile.tokens.longest if profile.tokens else 0,
        default=None,
    )


def profiles_of(situation: Situation, objective: str) -> Sequence[DataProfile]:
    """What a stage reads: each task's own data, or examples beside a corpus for the stage that
    learns from examples.
    """
    if (
        objective == "sft"
        and situation.examples is not None
        and situation.data is not None
        and situation.data.kind == "raw_text"
    ):
        return [situation.examples]
    if situation.data is not None:
        return [situation.data]
    return [profile for profile in situation.tasks.values() if profile.tokens is not None]


def amounts_to_read(
    situation: Situation, spec: RunSpec, *, epochs: float
) -> tuple[int | None, int | None]:
    """Tokens and rows read over all epochs, of all tasks together and without the rows that are
    held out; each None where neither the data nor an answer tells.
    """
    profiles, answers = profiles_of(situation, spec.objective), situation.answers
    if not profiles or profiles[0].tokens is None:
        tokens, rows = (
            answers.value("data_tokens"),
            (answers.value("data_rows") if not profiles else profiles[0].rows),
        )
        return None if tokens is None else int(tokens * epochs), (
            None if rows is None else int(rows * epochs)
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
