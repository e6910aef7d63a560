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
from advisor.record.run import DONE, RESULT, StageResult
from advisor.record.stage import Check
from advisor.record.verdict import Verdict
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.job.files import write_json
from trainers.job.process import AFTER_STEPS, EVALUATING
from trainers.keep.records import (
    dependency,
    forget_trained,
    read_trained,
    together,
    without_handover,
)
from trainers.keep.results import load_saved
from trainers.keep.resuming import evaluated
from trainers.say.progress import AFTER, BEFORE, JUDGING_ALONE, tell
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
    job = built.job
    with waiting("checking the saved result"):
        checks = check_saved(job, trained.model, job.output, before.probe, before.answer)
    finish(built.loaded, trained.result, checks, before.evaluator)
    if job.process.bases is not None:
        job.process.bases.release(trained.model)


def judge_saved(loaded: LoadedStage) -> None:
    """Do the same with what other processes have trained and saved: their record says what they
    know of it. A record that cannot be read, or of something else than the plan says now, is
    removed, so that the stage is trained or saved again.

    Raises TrainingFailed if the result is not the trained model, or has no effect.
    """
    job, output = loaded.job, loaded.job.output
    job.process.stop.costs = AFTER_STEPS
    found = read_trained(output)
    if found is None:
        tell(job, "the record of the training cannot be read: the result is saved again")
        forget_trained(output)
        return
    record, answer = found
    built = build_stage(loaded, processes=record.processes)
    if record.depends_on != dependency(built.store):
        tell(job, "what was trained is not what the plan says now: it is trained again")
        forget_trained(output)
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


def finish(
    loaded: LoadedStage, trained: StageResult, checks: Sequence[Check], evaluator: Evaluator | None
) -> None:
    """Evaluate the trained model, say what was found, and write result.json.

    Args:
        trained: What the training said of it.
        checks: Of what was saved.
        evaluator: Has evaluated the model before training; None: nothing is compared.
    """
    job, evaluation, word, text = loaded.job, None, None, None
    job.enter(EVALUATING)
    checks = [*checks, *trained.checks]
    if evaluator is not None:
        evaluator.evaluate_tuned()
        evaluation, (word, text) = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
    for check in checks:
        tell(job, f"{'ok' if check.ok else 'WARNING'}: {check.text}")
    times = together(trained.times, loaded.parts.times())
    result = replace(
        trained,
        status=DONE,
        duration_s=times.total_s,
        times=times,
        evaluation=evaluation,
        checks=tuple(checks),
        verdict=Verdict(ok=all(check.ok for check in checks), word=word, text=text),
    )
    write_json(job.output / RESULT, result.to_dict())
