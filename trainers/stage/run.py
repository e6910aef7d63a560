"""A stage, from its first check to its judged result. What an objective does its own way stands in
objective.py.

| module | part of a stage |
| --- | --- |
| load.py | libraries, rows and model, then the trainer |
| training.py | the steps and the saved result, in all processes of the run; a dry run |
| run.py | the model before training, the saved result, result.json |

One process does all of it. Several processes train, and leave the rest to one process of its own
that `advise run` starts when they are done: none of them runs a model while others wait.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pkgutil import resolve_name
from typing import Any, NamedTuple, cast

from msgspec.structs import replace

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import waiting
from advisor.methods import methods
from advisor.record.run import DONE, RESULT
from advisor.record.verdict import Verdict
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.job.files import write_json
from trainers.job.job import AFTER_STEPS, EVALUATING, JUDGE, TRAIN, TRAINING, Job, label
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.keep.checkpoint_store import fingerprint
from trainers.keep.results import (
    dependency,
    forget_trained,
    keep_trained,
    load_saved,
    read_trained,
    together,
    without_handover,
)
from trainers.say.progress import AFTER, BEFORE, JUDGING_ALONE, Parts, tell
from trainers.stage.load import BuiltStage, LoadedStage, build_stage, load_stage
from trainers.stage.objective import Objective
from trainers.stage.training import Trained, measure, plain_model, train_steps
from trainers.step import settings
from trainers.step.sharding import casts_weights


def trains(objective: type[Objective[Any]] | str) -> Callable[[Job], None]:
    """The function `train` of a recipe.

    Args:
        objective: Its class, or where that is, as "module:name".
    """

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
        elif job.part == TRAIN:
            train_alone(loaded)
        else:
            built = build_stage(loaded, processes=process_count())
            before = measure_before(built)
            judge(built, before, train_steps(built))


def train_alone(loaded: LoadedStage) -> None:
    """The training alone; all processes of the run ask the trained model one row, which the saved
    one has to answer in the same way.
    """
    job = loaded.job
    if is_main_process():
        forget_trained(job.output)
    built = build_stage(loaded, processes=process_count())
    trained = train_steps(built)
    answer = loaded.objective.probe(job, loaded.data, loaded.tokenizer).answer(trained.model)
    if is_main_process():
        # FSDP casts the weights that it computes with; others compute as anybody would load them.
        dtype = settings.autocast_dtype(job, loaded.device) if casts_weights(job) else None
        keep_trained(
            job.output, replace(trained.result, times=loaded.parts.times()), answer,
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
    subject = Subject(job, trainer, built.data, known_by)
    evaluator = built.objective.evaluator(subject) if job.judge else None
    job.enter(EVALUATING)
    if evaluator is not None:
        # A new prefix starts from a prompt, which changes answers before any training: the
        # comparison is with the model as it came.
        changed = methods().update(job.stage.update).changes_at_start and not built.continues
        with trainer.model.disable_adapter() if changed else nullcontext():
            evaluator.evaluate_base()
    return Before(probe, answer, evaluator)


def judge_saved(loaded: LoadedStage) -> None:
    """Judge what other processes have trained and saved: their record says what they know of it. A
    record that cannot be read, or of something else than the plan says now, is removed, so that the
    stage is trained or saved again.

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
    done = Trained(plain_model(built.trainer), without_handover(record))
    try:
        judge(loaded, before, done, trained=answer, answered_in=record.answered_in)
    except TrainingFailed:
        forget_trained(output)  # the next attempt saves the result again
        raise
    forget_trained(output)


def judge(loaded: LoadedStage, before: Before, done: Trained, **answered: Any) -> None:
    """Check what was saved, compare before and after, say what was found, and write result.json.

    Raises TrainingFailed if the result is not the trained model, or has no effect.

    Args:
        done: The trained model, and what the training said of it.
        answered: What `check_saved` needs of another process that has trained it.
    """
    job, evaluator, evaluation, word, text = loaded.job, before.evaluator, None, None, None
    with waiting("checking the saved result"):
        checks = check_saved(job, done.model, job.output, before.probe, before.answer, **answered)
    job.enter(EVALUATING)
    checks += done.result.checks
    if evaluator is not None:
        evaluator.evaluate_tuned()
        evaluation, (word, text) = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
    for check in checks:
        tell(job, f"{'ok' if check.ok else 'WARNING'}: {check.text}")
    times = together(done.result.times, loaded.parts.times())
    result = replace(
        done.result,
        status=DONE,
        duration_s=times.total_s,
        times=times,
        evaluation=evaluation,
        checks=tuple(checks),
        verdict=Verdict(ok=all(check.ok for check in checks), word=word, text=text),
    )
    write_json(job.output / RESULT, result.to_dict())
    job.process.release(done.model)
