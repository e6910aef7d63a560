"""The frame that objectives train in. What an objective does its own way stands in objective.py.

| module | part of a stage |
| --- | --- |
| load.py, build.py | libraries, rows and model; then the trainer |
| training.py | the steps and the saved result, in all processes of the run |
| judging.py | the model before training, the saved result, result.json |

One process does all of it. Several processes train, and leave the rest to one process of its own
that `advise run` starts when they are done: none of them runs a model while others wait.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainers.job.job import JUDGE, TRAIN, Job, label
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.job.process import BEFORE_STEPS, TRAINING
from trainers.keep.records import dependency, forget_trained, keep_trained
from trainers.keep.resuming import last_checkpoint
from trainers.say.progress import Parts
from trainers.stage.build import BuiltStage, build_stage
from trainers.stage.dry_run import measure
from trainers.stage.judging import judge_here, judge_saved, measure_before
from trainers.stage.load import LoadedStage, load_stage
from trainers.stage.objective import Objective
from trainers.stage.training import Resume, train_steps
from trainers.step import settings
from trainers.step.before_dividing import make_divisible
from trainers.step.sharding import casts_weights, is_sharded


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
            train_and_judge(loaded)


def train_and_judge(loaded: LoadedStage) -> None:
    """The whole stage in this process: the model before training is the one that is trained."""
    built, resume = begin_training(loaded)
    before = measure_before(built)
    judge_here(built, before, train_steps(built, resume))


def train_alone(loaded: LoadedStage) -> None:
    """The training alone; all processes of the run ask the trained model one row, which the saved
    one has to answer in the same way.
    """
    if is_main_process():
        forget_trained(loaded.job.output)
    built, resume = begin_training(loaded)
    trained = train_steps(built, resume)
    probe = loaded.objective.probe(built.job, loaded.data, loaded.tokenizer)
    answer = probe.answer(trained.model)
    if is_main_process():
        keep_trained(
            built.job.output, replace(trained.result, times=loaded.parts.times()), answer,
            processes=process_count(), depends_on=dependency(built.store),
            answered_in=answered_in(built),
        )  # fmt: skip
    wait_for_all()  # nobody leaves before it is written


def answered_in(built: BuiltStage) -> str | None:
    """The dtype that FSDP casts weights to; None if the model computes as anybody would load it."""
    if not casts_weights(built.job):
        return None
    return settings.autocast_dtype(built.job, built.loaded.opened.device)


def begin_training(loaded: LoadedStage) -> tuple[BuiltStage, Resume]:
    """The stage with its trainer, and the checkpoint to resume from."""
    built = build_stage(loaded, processes=process_count())
    if is_sharded(loaded.job):
        make_divisible(built.trainer.model, mixed=loaded.job.stage.precision == "mixed")
    resume = last_checkpoint(built.job, built.store)
    built.job.process.stop.costs = BEFORE_STEPS
    return built, resume
