"""A PPO stage: prompts, roles, updates with checkpoints and guards, evaluation on held-out prompts,
result.json.

A step of the plan (max_steps, save_steps, warmup) is an update: micro_batch_size x grad_accum
prompts are answered once, and the answers are used for ppo_epochs epochs.

As in trainers/stage/run.py, one process does all of it; several train, each with the whole model,
and one of its own judges what they saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.progress import waiting
from advisor.record.run import RUNNING, StageResult
from advisor.record.stage import Check
from trainers.evaluation.saved_result import check_saved
from trainers.job.job import JUDGE, TRAIN, Job, label
from trainers.job.machine import is_main_process, wait_for_all
from trainers.job.process import BEFORE_STEPS, SAVING, TRAINING
from trainers.keep import results
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.records import dependency, forget_trained, keep_trained, launch_record
from trainers.keep.resuming import last_checkpoint
from trainers.ppo.loaded import LoadedPPO, load_stage
from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.watch import missing_checks, reward_checks, reward_records, stage_lines
from trainers.say.progress import AFTER, SAVING_ALONE, Parts, tell
from trainers.say.progress import TRAIN as TRAINING_PART
from trainers.stage.training import rounding_checks
from trainers.step import settings

if TYPE_CHECKING:
    from trainers.ppo.heldout import HeldOutEvaluator
    from trainers.ppo.run import PPORun

Resume = tuple[Path, Mapping[str, Any]] | None  # the checkpoint, and its record


def train(job: Job) -> None:
    """Train the stage, or measure two updates of it, and write the result into its folder.

    Raises InputError for a plan or data that cannot be trained on, MachineNotReady for what the
    machine lacks, and TrainingFailed if training goes wrong or has no effect.
    """
    with Parts(label(job), shown=is_main_process(), folder=job.run) as parts:
        loaded = load_stage(job, parts)
        if job.dry_run:
            job.enter(TRAINING)
            run_of(loaded).measure(loaded.opened.versions)
        elif job.part == JUDGE:
            from trainers.ppo.judging import judge_saved

            judge_saved(loaded, parts)
        elif job.part == TRAIN:
            train_alone(loaded, parts)
        else:
            train_and_judge(loaded, parts)


def train_and_judge(loaded: LoadedPPO, parts: Parts) -> None:
    """The whole stage in this process."""
    from trainers.ppo import judging

    job = loaded.job
    store, resume = begin_training(loaded)
    before = judging.measure_before(loaded, store, parts)
    run = train_updates(loaded, store, resume, before.evaluator, parts)
    measured = run.measured()
    judging.evaluate_tuned(job, before.evaluator)
    policy, result = save_policy(loaded, run)
    with waiting("checking the saved result"):
        checks = check_saved(job, policy, job.output, before.probe, before.answer)
    judging.finish(job, replace(result, measured=measured), checks, before.evaluator, parts)


def train_alone(loaded: LoadedPPO, parts: Parts) -> None:
    """The training alone; the held-out prompts that are answered during it are shared out over all
    processes of the run.
    """
    from trainers.ppo import judging

    job = loaded.job
    if is_main_process():
        forget_trained(job.output)
    store, resume = begin_training(loaded)
    probe, evaluator = judging.probe_of(loaded), judging.evaluator_of(loaded, store)
    if evaluator is not None:
        evaluator.share_out()
    run = train_updates(loaded, store, resume, evaluator, parts)
    measured = run.measured()
    policy, result = save_policy(loaded, run)
    answer = probe.answer(policy)
    if is_main_process():
        keep_trained(
            job.output, replace(result, measured=measured, times=parts.times()), answer,
            processes=settings.world_size(), depends_on=dependency(store),
        )  # fmt: skip
    wait_for_all()  # nobody leaves before it is written


def begin_training(loaded: LoadedPPO) -> tuple[CheckpointStore, Resume]:
    """The stage's checkpoints, and the one to resume from."""
    store = loaded.open_store(processes=settings.world_size())
    resume = last_checkpoint(loaded.job, store)
    loaded.job.process.stop.costs = BEFORE_STEPS
    return store, resume


def run_of(loaded: LoadedPPO) -> PPORun:
    """The updates of the stage."""
    from trainers.ppo.run import PPORun

    return PPORun(loaded.job, loaded.ppo, loaded.data, loaded.memory, shown=is_main_process())


def train_updates(
    loaded: LoadedPPO,
    store: CheckpointStore,
    resume: Resume,
    evaluator: HeldOutEvaluator | None,
    parts: Parts,
) -> PPORun:
    """Train what is left of the stage.

    Raises Stopped if a process was asked to stop, and TrainingFailed if training went wrong.
    """
    from trainers.ppo.saving import load_checkpoint
    from trainers.say.metrics_file import cut_metrics, unreadable_lines

    job, ppo = loaded.job, loaded.ppo
    run = run_of(loaded)
    run.store, run.evaluator = store, evaluator
    first = 0
    if resume is not None:
        load_checkpoint(resume[0], ppo, seed=job.stage.seed)
        first = resume[1]["step"]
    if run.shown:
        _, dropped = cut_metrics(run.metrics, stage=job.stage.name, task=job.task, after=first)
        if dropped:
            tell(job, unreadable_lines(dropped))
    wait_for_all()  # the lines of later updates are cut off
    run.lines = run.written_lines()  # in all processes: their guards come to the same
    if run.shown:
        run.watch.see_earlier(run.lines)
        ppo.rollout_log = RolloutLog.of(job, run.steps, engine=ppo.engine.name)
        if resume is not None:
            tell(
                job,
                f"resuming after update {first} of {run.steps}, learning rate"
                f" {resume[1]['learning_rate']:.3g}, {resume[1]['epoch']:.2f} times through the"
                " prompts",
            )
    loaded.memory.reset()
    job.enter(TRAINING)
    parts.begin(TRAINING_PART)
    with closing(ppo.engine):
        run.run_updates(first)
    parts.begin(AFTER, text=SAVING_ALONE if job.part == TRAIN else None)
    job.process.stop.end_if_asked(run.stopped_at, run.steps)
    return run


def save_policy(loaded: LoadedPPO, run: PPORun) -> tuple[Any, StageResult]:
    """(the policy, saved; what is known of the stage without judging)."""
    from trainers.ppo.judging import plain_policy
    from trainers.ppo.resolved import resolved_settings

    job, ppo = loaded.job, loaded.ppo
    job.enter(SAVING)
    resolved = resolved_settings(loaded)
    policy = plain_policy(ppo)
    launch = launch_record(job, policy, loaded.memory)
    with waiting("saving the result"):
        files = results.save_result(policy, loaded.tokenizer, job.output)
    lines = stage_lines(run.metrics, stage=job.stage.name, task=job.task)
    rewards = reward_records(lines, ppo.reward_parts)
    checks = [Check(name, False, text) for name, text in run.warnings.items()]
    checks += [*reward_checks(rewards, ppo.reward_parts), *missing_checks(lines, ppo.reward_parts)]
    checks += run.watch.checks()
    result = StageResult(
        status=RUNNING,
        steps=run.steps,
        loss_first=run.lines[0]["loss"] if run.lines else None,
        loss_last=run.lines[-1]["loss"] if run.lines else None,
        reward_first=run.lines[0]["reward"] if run.lines else None,
        reward_last=run.lines[-1]["reward"] if run.lines else None,
        launch=launch,
        data=loaded.data.counts(),
        rewards=rewards or None,
        checks=(*checks, *rounding_checks(job)),
        files=files,
        versions=loaded.opened.versions,
        resolved=resolved,
    )
    return policy, result
