"""What training changed: the model before it, and the saved result after it. One process does this
alone, with a model of its own, so that nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import waiting
from advisor.methods import methods
from advisor.record.files import TrainedStage
from advisor.record.run import DONE, RESULT, StageResult
from advisor.record.stage import Check, Evaluation
from advisor.record.verdict import Verdict
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.job.files import write_json
from trainers.job.job import Job, label
from trainers.job.process import AFTER_STEPS, EVALUATING
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.records import (
    dependency,
    forget_trained,
    read_trained,
    together,
    without_handover,
)
from trainers.keep.results import load_saved
from trainers.keep.resuming import evaluated
from trainers.say.progress import AFTER, BEFORE, JUDGING_ALONE, Parts, say, tell
from trainers.stage.build import BuiltStage, build_stage
from trainers.stage.load import LoadedStage
from trainers.stage.training import Trained, plain_model


class Before(NamedTuple):
    """The model before training."""

    probe: Probe
    answer: Any  # to the probe
    evaluator: Evaluator | None  # which has evaluated it


def measure_before(built: BuiltStage) -> Before:
    """Ask and evaluate the model before its first step."""
    job, loaded, trainer = built.job, built.loaded, built.trainer
    loaded.parts.begin(BEFORE)
    probe = loaded.objective.probe(job, loaded.data, loaded.tokenizer)
    answer = probe.answer(trainer.model)
    evaluator = (
        loaded.objective.evaluator(
            Subject(job, trainer, loaded.data, evaluated(built.store, loaded.data))
        )
        if job.judge
        else None
    )
    job.enter(EVALUATING)
    if evaluator is not None:
        # A new prefix starts from a prompt, which changes answers before any training: the
        # comparison is with the model as it came.
        changed = methods().update(job.stage.update).changes_at_start and not built.continues
        with trainer.model.disable_adapter() if changed else nullcontext():
            evaluator.evaluate_base()
    return Before(probe, answer, evaluator)


def judge_here(built: BuiltStage, before: Before, trained: Trained) -> None:
    """Check what was saved, compare before and after, and write result.json.

    Raises TrainingFailed if the result is not the trained model, or has no effect.
    """
    with waiting("checking the saved result"):
        checks = check_saved(
            built.job, trained.model, built.job.output, before.probe, before.answer
        )
    finish(built.loaded, trained.result, checks, before.evaluator)
    if built.job.process.bases is not None:
        built.job.process.bases.release(trained.model)


def judge_saved(loaded: LoadedStage) -> None:
    """Do the same with what other processes have trained and saved: their record says what they
    know of it. If they trained something else than the plan says now, the record is removed.

    Raises TrainingFailed if the result is not the trained model, or has no effect.
    """
    job, output = loaded.job, loaded.job.output
    found = found_trained(job)
    if found is None:
        return
    record, answer = found
    built = build_stage(loaded, processes=record.processes)
    if not belongs(job, record, built.store):
        return
    before = measure_before(built)
    loaded.parts.begin(AFTER, text=JUDGING_ALONE)
    with waiting("loading the saved result"):
        load_saved(built.trainer.accelerator.unwrap_model(built.trainer.model), output)
    model = plain_model(built.trainer)
    try:
        with waiting("checking the saved result"):
            checks = check_saved(
                job, model, output, before.probe, before.answer,
                trained=answer, answered_in=record.answered_in,
            )  # fmt: skip
    except TrainingFailed:
        forget_trained(output)  # the next attempt saves the result again
        raise
    finish(loaded, without_handover(record), checks, before.evaluator)
    forget_trained(output)
    if job.process.bases is not None:
        job.process.bases.release(model)


def found_trained(job: Job) -> tuple[TrainedStage, Any] | None:
    """(what the training left, the trained model's answer). A record that cannot be read is
    removed, so that the result is saved again: None.
    """
    job.process.stop.costs = AFTER_STEPS
    found = read_trained(job.output)
    if found is None:
        tell(job, "the record of the training cannot be read: the result is saved again")
        forget_trained(job.output)
    return found


def belongs(job: Job, record: TrainedStage, store: CheckpointStore) -> bool:
    """Whether this is what was trained; if not, the record is removed, so that it is trained."""
    is_ours = record.depends_on == dependency(store)
    if not is_ours:
        tell(job, "what was trained is not what the plan says now: it is trained again")
        forget_trained(job.output)
    return is_ours


def finish(
    loaded: LoadedStage, trained: StageResult, checks: Sequence[Check], evaluator: Evaluator | None
) -> None:
    """Evaluate the trained model, say what was found, and write result.json.

    Args:
        trained: What the training said of it.
        checks: Of what was saved.
        evaluator: Has evaluated the model before training; None: nothing is compared.
    """
    loaded.job.enter(EVALUATING)
    if evaluator is not None:
        evaluator.evaluate_tuned()
    found = compared(evaluator)
    every = [*checks, *trained.checks, *found.checks]
    conclude(loaded.job, trained, every, found, loaded.parts)


class Compared(NamedTuple):
    """The model before training and after it."""

    evaluation: Evaluation | None = None
    verdict: tuple[str, str] | None = None
    checks: Sequence[Check] = ()


def compared(evaluator: Evaluator | None) -> Compared:
    """What the evaluator found, once it has measured both; nothing without one."""
    if evaluator is None:
        return Compared()
    return Compared(evaluator.record(), evaluator.verdict(), evaluator.checks())


def conclude(
    job: Job, trained: StageResult, checks: Sequence[Check], found: Compared, parts: Parts
) -> None:
    """Say what was found, and write result.json.

    Args:
        job: The stage.
        trained: What the training said of it.
        checks: All of them.
        found: Before and after.
        parts: The clock of this process.
    """
    for check in checks:
        say(f"{label(job)}: {'ok' if check.ok else 'WARNING'}: {check.text}")
    times = together(trained.times, parts.times())
    result = replace(
        trained,
        status=DONE,
        duration_s=times.total_s,
        times=times,
        evaluation=found.evaluation,
        checks=tuple(checks),
        verdict=stage_verdict(checks, found.verdict),
    )
    write_json(job.output / RESULT, result.to_dict())


def stage_verdict(checks: Sequence[Check], compared: tuple[str, str] | None) -> Verdict:
    """The verdict on a stage: of its checks, and of the evaluation if there was one."""
    word, text = compared or (None, None)
    return Verdict(ok=all(check.ok for check in checks), word=word, text=text)
