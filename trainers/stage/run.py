"""A stage, from its first check to its judged result. What an objective does its own way stands in
objective.py.

| module | part of a stage |
| --- | --- |
| load.py | libraries, rows and model, then the trainer |
| run.py | the model before training, the steps, the saved result, result.json; a dry run |

One process does all of it. Several processes train and save, so that a model whose weights are
spread over them can be trained, saved and asked, and leave the rest to one process of its own that
`advise run` starts when they are done: none of them runs a model while others wait.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, cast

from msgspec import structs

from advisor.ground.counting import counted
from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import waiting
from advisor.ground.units import format_duration, format_gib
from advisor.methods import methods
from advisor.record.run import DONE, DRY_RUN, RESULT, RUNNING, StageMeasurement, StageResult
from advisor.record.stage import Check, Measured
from advisor.record.verdict import Verdict
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.job import Model, Trainer
from trainers.job.files import write_json
from trainers.job.job import EVALUATING, JUDGE, SAVING, TRAINING, Job, label
from trainers.job.job import TRAIN as TRAIN_ALONE
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.keep.checkpoint_store import (
    Checkpoint,
    base_digest,
    fingerprint,
    last_checkpoint,
    resume_metrics,
)
from trainers.keep.held_out_curve import SHORT_RUN, HeldOutCurve, HeldOutLoss
from trainers.keep.results import (
    dependency,
    forget_trained,
    keep_trained,
    launch_record,
    load_saved,
    read_trained,
    resolved_settings,
    together,
)
from trainers.rows.conversation import PROMPTS
from trainers.rows.sequences import lengths
from trainers.say.progress import (
    AFTER,
    BEFORE,
    JUDGING_ALONE,
    LOAD,
    SAVING_ALONE,
    TRAIN,
    Parts,
    say,
    tell,
)
from trainers.stage.load import BuiltStage, LoadedStage, build_stage, build_trainer, load_stage
from trainers.stage.objective import Objective
from trainers.step import settings
from trainers.step.make_optimizer import rounding_warning
from trainers.step.sharding import casts_weights, is_sharded, make_divisible
from trainers.step.trained_dtype import round_to_base

DRY_STEPS = 2  # of a dry run


def trains(objective: type[Objective[Any]] | str) -> Callable[[Job], None]:
    """The function `train` of a recipe, of its class or of where that is, as "module:name"."""

    def objective_of(job: Job) -> Objective[Any]:
        found: Any = resolve_name(objective) if isinstance(objective, str) else objective
        return cast(Objective[Any], found.of(job))

    def trained(job: Job) -> None:
        """Train the stage, or measure two steps of it, and write the result into its folder."""
        train(job, objective_of(job))

    vars(trained)["objective_of"] = objective_of  # which stages before it ask
    return trained


def train(job: Job, objective: Objective[Any]) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder.

    Raises InputError for a plan or data that cannot be trained on, MachineNotReady for what the
    machine lacks, and TrainingFailed if training goes wrong or has no effect.
    """
    with Parts(label(job), shown=is_main_process(), folder=job.run) as parts:
        loaded = load_stage(job, objective, parts)
        if job.dry_run:
            job.enter(TRAINING)
            measure(loaded)
        elif job.part == JUDGE:
            judge_saved(loaded)
        elif job.part == TRAIN_ALONE:
            train_alone(loaded)
        else:
            built = build_stage(loaded, processes=process_count())
            before = measure_before(built)
            built.callback.watched = watched_of(built, before.evaluator)
            judge(built, before, *train_steps(built))


def train_alone(loaded: LoadedStage) -> None:
    """The training alone; all processes of the run ask the trained model one row, which the saved
    one has to answer in the same way.
    """
    job = loaded.job
    if is_main_process():
        forget_trained(job.output)
    built = build_stage(loaded, processes=process_count())
    model, result = train_steps(built)
    answer = loaded.objective.probe(job, loaded.data, loaded.tokenizer).answer(model)
    if is_main_process():
        # FSDP casts the weights that it computes with; others compute as anybody would load them.
        dtype = settings.autocast_dtype(job, loaded.device) if casts_weights(job) else None
        keep_trained(
            job.output, structs.replace(result, times=loaded.parts.times()), answer,
            processes=process_count(), depends_on=dependency(built.store), answered_in=dtype,
        )  # fmt: skip
    wait_for_all()  # nobody leaves before it is written


# --------------------------------------------------------------------------- what training changed


class Before(NamedTuple):
    """The model before training."""

    probe: Probe
    answer: Any  # to the probe
    evaluator: Evaluator | None  # which has evaluated it


def measure_before(built: BuiltStage) -> Before:
    """Ask and evaluate the model before its first step."""
    job, trainer = built.job, built.trainer
    built.parts.begin(BEFORE)
    probe = built.objective.probe(job, built.data, built.tokenizer)
    answer = probe.answer(trainer.model)
    known_by = fingerprint([built.store.digest, built.data.digest])
    subject = Subject(job, trainer, built.data, known_by, base=before_training(built))
    evaluator = built.objective.evaluator(subject) if job.judge else None
    job.enter(EVALUATING)
    if evaluator is not None:
        # A new prefix starts from a prompt, which changes answers before any training: the
        # comparison is with the model as it came.
        changed = methods().update(job.stage.update).changes_at_start and not built.continues
        with trainer.model.disable_adapter() if changed else nullcontext():
            evaluator.evaluate_base()
    return Before(probe, answer, evaluator)


def watched_of(built: BuiltStage, evaluator: Evaluator | None) -> Any:
    """The question whose answer is shown while it trains; None where nobody is to be asked: layers
    that are compiled would be compiled anew.
    """
    from trainers.keep.progress import Watched

    found = None if built.job.stage.compile else getattr(evaluator, "watched", lambda: None)()
    return Watched(*found) if found and built.objective.measures_loss else None


def before_training(built: BuiltStage) -> list[Any] | None:
    """What decides what is measured of the plan's model before training, beside the rows; None if
    it is another model (an earlier stage has trained it, keys for PEFT may change it), or if it is
    not known which commit of the hub it is.
    """
    job, stage = built.job, built.job.stage
    is_other = job.start is not None or stage.peft
    commit = getattr(built.model.config, "_commit_hash", None)
    if is_other or not (commit or Path(job.base_model).is_dir()):
        return None
    computing = ("torch", "transformers", *(["bitsandbytes"] if stage.quantization else []))
    minor = [built.versions[name].rsplit(".", 1)[0] for name in computing]
    keys = ("weights_dtype", "quantization", "double_quantization", "attention", "kernels")
    return [
        base_digest(job, built.model),
        *(getattr(stage, key) for key in keys),
        settings.autocast_dtype(job, built.device),
        built.device.type,
        *minor,
    ]


def judge_saved(loaded: LoadedStage) -> None:
    """Judge what other processes have trained and saved: their record says what they know of it. A
    record that cannot be read, or of something else than the plan says now, is removed, so that the
    stage is trained or saved again.

    Raises TrainingFailed if the result is not the trained model, or has no effect.
    """
    job, output = loaded.job, loaded.job.output
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
    known = {part.name: getattr(record, part.name) for part in structs.fields(StageResult)}
    model, result = plain_model(built.trainer), StageResult(**known)
    judge(loaded, before, model, result, trained=answer, answered_in=record.answered_in)
    forget_trained(output)


def judge(
    loaded: LoadedStage, before: Before, model: Model, result: StageResult, **answered: Any
) -> None:
    """Check what was saved, compare before and after, say what was found, and write result.json;
    `answered` is what `check_saved` needs of another process that has trained the model.

    Raises TrainingFailed if the result is not the trained model, or has no effect.
    """
    job, evaluator, evaluation, word, text = loaded.job, before.evaluator, None, None, None
    try:
        with waiting("checking the saved result"):
            checks = check_saved(job, model, job.output, before.probe, before.answer, **answered)
    except TrainingFailed:
        forget_trained(job.output)  # the next attempt saves the result again
        raise
    job.enter(EVALUATING)
    checks += result.checks
    if evaluator is not None:
        evaluator.evaluate_tuned()
        evaluation, (word, text) = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
    for check in checks:
        tell(job, None if check.ok else f"WARNING: {check.text}")  # the summary names the others
    times = together(result.times, loaded.parts.times())
    result = structs.replace(
        result,
        status=DONE,
        duration_s=times.total_s,
        times=times,
        evaluation=evaluation,
        checks=tuple(checks),
        verdict=Verdict(ok=all(check.ok for check in checks), word=word, text=text),
    )
    write_json(job.output / RESULT, result.to_dict())
    job.process.release(model)


# --------------------------------------------------------------------------- the steps


def train_steps(built: BuiltStage) -> tuple[Model, StageResult]:
    """Train what is left of the stage and save the result: (the model, what is known of it).

    Raises Stopped if a process was asked to stop, and TrainingFailed if training went wrong.
    """
    from trainers.keep.checkpoints import load_weights

    job, trainer, callback, objective = built.job, built.trainer, built.callback, built.objective
    curve: HeldOutCurve | None = callback.curve
    if is_sharded(job):
        make_divisible(trainer.model, mixed=job.stage.precision == "mixed")
    resume = last_checkpoint(job, built.store)
    if curve is not None:
        tell(job, curve.describe())
        measured_before = resume.record.get("held_out", ()) if resume is not None else ()
        curve.measured = [HeldOutLoss(*one) for one in measured_before]
    elif objective.measures_loss and built.data.holdout and job.judge:
        tell(job, f"held-out loss is measured before and after training alone: {SHORT_RUN}")
    if is_main_process():
        callback.losses, callback.earlier_s = resume_metrics(job, resume, built.steps)
    built.memory.reset()
    built.parts.begin(TRAIN)
    if resume is not None:
        callback.earlier = dict(resume.record.get("earlier", {}))
        built.parts.add({**callback.earlier.get("took_s", {}), TRAIN: callback.earlier_s})
    callback.took_s = {part: built.parts.took_s.get(part, 0.0) for part in (LOAD, BEFORE)}
    job.enter(TRAINING)
    _run_steps(built, resume)
    measured = measurement(built, callback)
    launch = launch_record(job, trainer.model, built.memory)
    built.parts.begin(AFTER, text=SAVING_ALONE if job.part == TRAIN_ALONE else None)
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
    resolved = structs.replace(
        resolved_settings(job, trainer, built.device, built.threads, built.stops),
        **objective.resolved(job),
    )
    model = plain_model(trainer)
    with waiting("saving the result"):
        files = objective.save(job, trainer, model, built.tokenizer)
    outcome = {"checks": (), **objective.outcome(job)}
    if warning := rounding_warning(job.stage):
        outcome["checks"] = (Check("updates_rounded_away", False, warning), *outcome["checks"])
    result = StageResult(
        status=RUNNING,
        steps=curve.last_step if curve is not None and curve.stopped else built.steps,
        loss_first=callback.losses[0] if callback.losses else None,
        loss_last=callback.losses[-1] if callback.losses else None,
        measured=measured,
        launch=launch,
        data=built.data.counts(),
        held_out=curve.record() if curve is not None else None,
        files=files,
        versions=dict(built.versions),
        resolved=resolved,
        **outcome,
    )
    return model, result


def _run_steps(built: BuiltStage, resume: Checkpoint | None) -> None:
    """Train the steps that are left; none, if the checkpoint is behind the last one."""
    from trainers.keep.checkpoints import Resuming, load_weights

    trainer, callback, itself = built.trainer, built.callback, built.objective.resumes_itself
    curve: HeldOutCurve | None = callback.curve
    stop = built.job.process.stop
    place = resume.path if resume is not None else None
    is_trained = resume is not None and (
        resume.step >= built.steps or (curve is not None and curve.stopped)
    )
    try:
        if place is not None and is_trained and not itself:
            if is_sharded(built.job) and built.job.stage.divides_base:  # a part alone is no model
                both = trainer.model, trainer.create_optimizer()
                trainer.model, trainer.optimizer = trainer.accelerator.prepare(*both)
            load_weights(trainer, place)
        else:
            if place is not None and not itself:
                trainer.add_callback(Resuming(trainer, place))
            with stop.in_steps():
                trainer.train(resume_from_checkpoint=str(place) if place else None)
    finally:
        callback.close()
    stop.end_if_asked(callback.stopped_at, built.steps)


def plain_model(trainer: Trainer) -> Any:
    """The trainer's model as anybody would load it: its own dtypes, no autocast, with its cache."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    # accelerate's own unwrapping (keep_fp32_wrapper=False) would also remove the forward of our
    # losses.
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
    round_to_base(model)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True
    return model


def measurement(loaded: LoadedStage, callback: Any) -> Measured:
    """What the run cost, for result.json."""
    memory = loaded.memory
    return Measured(
        peak_bytes=memory.peak_bytes(),
        counter=memory.counter,
        reserved_bytes=memory.reserved_bytes(),
        step_s=callback.step_s or None,
        tokens_per_s=callback.tokens / callback.train_s if callback.train_s else None,
        train_s=callback.all_train_s,
        **callback.all_tokens(),
    )


# --------------------------------------------------------------------------- a dry run


def measure(loaded: LoadedStage) -> None:
    """Write the memory and time of DRY_STEPS optimizer steps on the longest batch of the data, and
    of one evaluation batch, into the stage's folder.
    """
    from trainers.keep.progress import RunCallback

    job, memory, groups, objective = loaded.job, loaded.memory, loaded.sequences, loaded.objective
    stage, processes = job.stage, process_count()
    # The peak does not grow with more micro-batches: gradients exist from the first one on.
    micro_batches = min(stage.grad_accum, objective.measured_batches or stage.grad_accum)
    order = (-lengths(groups)).argsort(kind="stable")[: stage.micro_batch_size]
    batch = [groups[int(order[place % len(order)])] for place in range(stage.micro_batch_size)]
    watch = RunCallback(job, steps=DRY_STEPS, memory=memory)
    short = replace(
        job,
        entry=structs.replace(job.entry, stage=structs.replace(stage, grad_accum=micro_batches)),
    )
    trainer = build_trainer(
        replace(loaded, job=short),
        batch * micro_batches * DRY_STEPS * processes,
        steps=DRY_STEPS,
        callback=watch,
        held_out=[group[0] for group in batch] * processes if objective.measures_loss else [],
    )
    loaded.parts.close()  # it is loaded; the steps are a wait of their own
    try:
        trainer.train()
    finally:
        watch.close()
    training_bytes = memory.peak_bytes()
    evaluation_loss = trainer.evaluate()["eval_loss"] if objective.measures_loss else None
    if not is_main_process():
        return
    # A prompt stands with the longest answer that the stage lets the model write to it.
    answer = int(job.options["response_tokens"]) if objective.kind is PROMPTS else 0
    steps = settings.total_steps(job, len(groups), processes=processes)
    step_s = watch.step_times_s[-1] * stage.grad_accum / micro_batches
    peak = f"peak {format_gib(memory.peak_bytes())}"
    measured = structs.replace(
        measurement(loaded, watch),
        training_peak_bytes=training_bytes,
        baseline_bytes=memory.baseline_bytes,
        step_s=step_s,
        step_times_s=tuple(watch.step_times_s),
        micro_batches=micro_batches,
    )
    record = StageMeasurement(
        measured=measured,
        steps=steps,
        longest_batch_duration_s=step_s * steps,
        batch_tokens=sum(row.tokens + answer for group in batch for row in group),
        losses=tuple(watch.losses),
        evaluation_loss=evaluation_loss,
        data=loaded.data.counts(),
        versions=dict(loaded.versions),
    )
    write_json(job.output / DRY_RUN, record.to_dict())
    kind = (
        "allocated on the GPU"
        if memory.cuda is not None
        else "growth of resident memory from before the model was loaded"
    )
    say(
        f"{stage.name}: {peak} ({kind}), {step_s:.2f} s a step on"
        f" the longest batch, {counted(steps, 'step')}: at most {format_duration(step_s * steps)}"
    )
