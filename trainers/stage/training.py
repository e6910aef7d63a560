"""The training of a stage: its steps, and the saved result. Every process of the run does all of
it, so that a model whose weights are spread over them can be trained, saved and asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from advisor.ground.progress import waiting
from advisor.record.run import RUNNING, StageResult
from advisor.record.stage import Check, Measured
from trainers.job.job import TRAIN as TRAIN_ALONE
from trainers.job.job import Job
from trainers.job.machine import MemoryMeter, is_main_process, wait_for_all
from trainers.job.process import SAVING, TRAINING
from trainers.job.types import Model, Trainer
from trainers.keep.checkpoint_store import Checkpoint
from trainers.keep.held_out_curve import SHORT_RUN, HeldOutCurve, HeldOutLoss
from trainers.keep.records import launch_record, resolved_settings
from trainers.keep.resuming import resume_metrics
from trainers.keep.trackers import Trackers
from trainers.say.progress import AFTER, SAVING_ALONE, TRAIN, tell
from trainers.stage.build import BuiltStage
from trainers.step.make_optimizer import rounding_warning
from trainers.step.token_counting import Tokens
from trainers.step.trained_dtype import round_to_base

Resume = Checkpoint | None


@dataclass(frozen=True)
class Trained:
    """A trained and saved stage."""

    model: Model
    result: StageResult  # as far as it goes without judging


def train_steps(built: BuiltStage, resume: Resume) -> Trained:
    """Train what is left of the stage and save the result.

    Raises Stopped if a process was asked to stop, and TrainingFailed if training went wrong.
    """
    from trainers.keep.checkpoints import load_weights

    job, trainer, callback = built.job, built.trainer, built.callback
    loaded = built.loaded
    curve: HeldOutCurve | None = callback.curve
    say_curve(built, curve)
    if curve is not None and resume is not None:
        curve.measured = [HeldOutLoss(*one) for one in resume.record.get("held_out", ())]
    if is_main_process():
        callback.losses, callback.earlier_s = resume_metrics(job, resume, built.steps)
        callback.trackers = Trackers(job)
    loaded.memory.reset()
    loaded.parts.begin(TRAIN)
    job.enter(TRAINING)
    _run_steps(built, resume)
    measured = measurement(loaded.memory, callback, trainer.all_tokens())
    launch = launch_record(job, trainer.model, loaded.memory)
    loaded.parts.begin(AFTER, text=SAVING_ALONE if job.part == TRAIN_ALONE else None)
    job.enter(SAVING)
    if curve is not None:
        if curve.kept_step != curve.last_step:
            assert curve.kept_step is not None
            if is_main_process():  # it reads all that was written
                built.store.verified(curve.kept_step)
            wait_for_all()
            load_weights(trainer, built.store.place(curve.kept_step))
        for line in curve.record().sentences():
            tell(job, line)
    resolved = replace(
        resolved_settings(job, trainer, loaded.opened.device, loaded.opened.threads, loaded.stops),
        **loaded.objective.resolved(job),
    )
    model = plain_model(trainer)
    with waiting("saving the result"):
        files = loaded.objective.save(job, trainer, model, loaded.tokenizer)
    rewards, noticed = loaded.objective.about_rewards(job)
    result = StageResult(
        status=RUNNING,
        steps=curve.last_step if curve is not None and curve.stopped else built.steps,
        loss_first=callback.losses[0] if callback.losses else None,
        loss_last=callback.losses[-1] if callback.losses else None,
        measured=measured,
        launch=launch,
        data=loaded.data.counts(),
        held_out=curve.record() if curve is not None else None,
        rewards=rewards or None,
        checks=(*rounding_checks(job), *noticed),
        files=files,
        versions=dict(loaded.opened.versions),
        resolved=resolved,
        **loaded.objective.outcome(job),
    )
    return Trained(model, result)


def _run_steps(built: BuiltStage, resume: Resume) -> None:
    """Train the steps that are left; none, if the checkpoint is behind the last one."""
    from trainers.keep.checkpoints import Resuming, load_weights

    trainer, callback, itself = built.trainer, built.callback, built.loaded.objective.resumes_itself
    curve: HeldOutCurve | None = callback.curve
    place = resume.path if resume is not None else None
    is_trained = resume is not None and (
        resume.step >= built.steps or (curve is not None and curve.stopped)
    )
    try:
        if place is not None and is_trained and not itself:
            load_weights(trainer, place)
        else:
            if place is not None and not itself:
                trainer.add_callback(Resuming(trainer, place))
            with built.job.process.stop.finishing_steps():
                trainer.train(resume_from_checkpoint=str(place) if place else None)
    finally:
        callback.close()
    built.job.process.stop.end_if_asked(callback.stopped_at, built.steps)


def say_curve(built: BuiltStage, curve: HeldOutCurve | None) -> None:
    """Say what will be measured while the stage trains, or why nothing is."""
    job, loaded = built.job, built.loaded
    if curve is not None:
        tell(job, curve.describe())
    elif loaded.objective.measures_loss and loaded.data.holdout and job.judge:
        tell(job, f"held-out loss is measured before and after training alone: {SHORT_RUN}")


def plain_model(trainer: Trainer) -> Any:
    """The trainer's model as anybody would load it: its own dtypes, no autocast, with its cache."""
    model = without_autocast(trainer.accelerator.unwrap_model(trainer.model))
    round_to_base(model)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True
    return model


def without_autocast(model: Any) -> Any:
    """The model without accelerate's autocast around its forward, so that it is evaluated and
    checked as anybody would load it.

    accelerate's own unwrapping (keep_fp32_wrapper=False) would also remove the forward of our
    losses.
    """
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
    return model


def measurement(memory: MemoryMeter, callback: Any, tokens: Tokens) -> Measured:
    """What the run cost, for result.json."""
    return Measured(
        peak_bytes=memory.peak_bytes(),
        counter=memory.counter,
        reserved_bytes=memory.reserved_bytes(),
        step_s=callback.step_s or None,
        tokens_per_s=callback.tokens / callback.train_s if callback.train_s else None,
        train_s=callback.all_train_s,
        tokens=tokens.read,
        computed_tokens=tokens.computed,
        learned_tokens=tokens.learned,
        largest_batch_tokens=tokens.largest,
    )


def rounding_checks(job: Job) -> list[Check]:
    """A failed check where the weights' format rounds many updates away."""
    warning = rounding_warning(job.stage)
    return [Check("updates_rounded_away", False, warning)] if warning else []
