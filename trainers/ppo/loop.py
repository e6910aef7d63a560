"""A PPO stage: prompts, roles, updates with checkpoints and guards, evaluation on held-out prompts,
result.json.

A step of the plan (max_steps, save_steps, warmup) is an update: micro_batch_size x grad_accum
prompts are answered once, and the answers are used for ppo_epochs epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from advisor.ground.progress import board, waiting
from advisor.plan.evaluation_record import Check
from advisor.plan.record import DONE, RESULT, ResolvedSettings, StageResult
from trainers.evaluation.saved_result import Probe, check_saved
from trainers.frame import checkpoints, settings, stopping
from trainers.frame.files import write_json
from trainers.frame.fused_layers import fused_in
from trainers.frame.job import Job, label
from trainers.frame.judging import stage_verdict
from trainers.frame.loaded_stage import rows_at_once
from trainers.frame.machine import MemoryMeter, is_main_process, wait_for_all
from trainers.frame.opening import describe, open_stage
from trainers.frame.out_of_memory import EVALUATING, LOADING, SAVING, TRAINING, enter
from trainers.frame.parts import AFTER, BEFORE, LOAD, TRAIN, Parts
from trainers.frame.resuming import evaluated, last_checkpoint, open_store
from trainers.frame.rows import prepare_rows
from trainers.frame.stopping import end_if_asked, request
from trainers.frame.telling import say
from trainers.frame.trained_dtype import round_to_base
from trainers.frame.training import rounding_checks
from trainers.frame.types import Tokenizer
from trainers.ppo.build import build, faults, reward_fingerprint, reward_model_folder
from trainers.ppo.steps import PPOArguments
from trainers.prepare import Prepared
from trainers.prepare.prepared import rows_digest
from trainers.prepare.prompts import PROMPTS, Prompt
from trainers.prepare.template import template_record
from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.sources import source_note
from trainers.rewards.watch import missing_checks, reward_checks, reward_records, stage_lines

if TYPE_CHECKING:
    from trainers.ppo.run import PPORun
    from trainers.ppo.update import PPO


def train(job: Job) -> None:
    """Train the stage, or measure two updates of it, and write the result into its folder.

    Raises InputError for a plan or data that cannot be trained on, MachineNotReady for what the
    machine lacks, and TrainingFailed if training goes wrong or has no effect.
    """
    with Parts(label(job), shown=is_main_process(), folder=job.run) as parts:
        _train(job, parts)


def _train(job: Job, parts: Parts) -> None:
    """What `train` says, with the clock of the stage."""
    parts.begin(LOAD)
    enter(job, LOADING)
    request.doing = stopping.LOADING
    versions, device, threads, update = open_stage(job, lambda: PPOArguments, faults)
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from trainers.frame.attention import with_attention
    from trainers.frame.loading import load_tokenizer
    from trainers.frame.metrics_file import cut_metrics, unreadable_lines
    from trainers.ppo.heldout import HeldOutEvaluator
    from trainers.ppo.run import PPORun
    from trainers.ppo.saving import load_checkpoint

    shown = is_main_process()
    job = with_attention(job, device)
    tokenizer = load_tokenizer(job)
    data = prepare_rows(
        job, tokenizer, PROMPTS, seq_len=job.stage.seq_len - job.options["response_tokens"]
    )
    if shown:
        for line in describe(data):
            say(f"{label(job)}: {line}")
    folder = reward_model_folder(job, (*data.train, *data.holdout))
    note = source_note(job, (*data.train, *data.holdout))
    memory = MemoryMeter(device)
    board.memory = memory.in_use
    ppo, notes, added = build(job, device, update, tokenizer, data, folder)
    if shown:
        for message in [note, *notes]:
            say(f"{label(job)}: {message}")
    run = PPORun(job, ppo, data, memory, shown=shown)
    if job.dry_run:
        enter(job, TRAINING)
        run.measure(versions)
        return

    run.store = store = open_store(
        job, versions, steps=run.steps, rows=rows_digest(data.train),
        model=ppo.roles.parts["policy"].model,
        more={"reward": reward_fingerprint(job, (*data.train, *data.holdout))},
    )  # fmt: skip
    resume = last_checkpoint(job, store)
    request.doing = stopping.BEFORE
    parts.begin(BEFORE)
    probe = Probe(row=probe_row(data.train, tokenizer), pad_id=tokenizer.pad_token_id)
    with ppo.roles.use("policy") as policy:
        before = probe.answer(policy)
    enter(job, EVALUATING)
    if job.judge and shown:
        run.evaluator = HeldOutEvaluator(job, ppo, data.holdout, evaluated(store, data))
        run.evaluator.evaluate_base()
    wait_for_all()  # the main process has evaluated the base alone
    first = 0
    if resume is not None:
        load_checkpoint(resume[0], ppo)
        first = resume[1]["step"]
    if shown:
        _, dropped = cut_metrics(run.metrics, stage=job.stage.name, task=job.task, after=first)
        if dropped:
            say(f"{label(job)}: {unreadable_lines(dropped)}")
        run.lines = run.written_lines()
        run.watch.see_earlier(run.lines)
        ppo.rollout_log = RolloutLog.of(job, run.steps, engine=ppo.engine.name)
        if resume is not None:
            say(
                f"{label(job)}: resuming after update {first} of {run.steps}, learning rate"
                f" {resume[1]['learning_rate']:.3g}, {resume[1]['epoch']:.2f} times through the"
                " prompts"
            )
    memory.reset()
    ppo.rows_at_once = rows_at_once(job)
    enter(job, TRAINING)
    parts.begin(TRAIN)
    with closing(ppo.engine):
        run.run_updates(first)
    parts.begin(AFTER)
    end_if_asked(run.stopped_at, run.steps)
    if not shown:
        return
    about = {
        "threads": threads,
        "stop_tokens_added": added,
        "reward": note,
        "template": template_record(tokenizer),
    }
    finish(job, run, tokenizer, probe, before, data, versions, about, parts)


def probe_row(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Any:
    """The row for the checks on the saved result: a prompt of medium length and an end token."""
    chosen = sorted(prompts, key=lambda row: row.tokens)[len(prompts) // 2]
    ids = [*chosen.prompt_ids, tokenizer.eos_token_id]
    return SimpleNamespace(input_ids=ids, labels=ids, tokens=len(ids), learned=1)


# --------------------------------------------------------------------------- afterwards


def finish(
    job: Job,
    run: PPORun,
    tokenizer: Tokenizer,
    probe: Probe,
    before: Any,
    data: Prepared[Prompt],
    versions: Mapping[str, str],
    about: Mapping[str, Any],
    parts: Parts,
) -> None:
    """Save the policy, check the saved result, compare, and write result.json.

    Raises TrainingFailed if the result is not the trained policy, or has no effect.

    Args:
        job: The stage.
        run: Its updates, done.
        tokenizer: To save with the policy.
        probe: The row for the checks.
        before: The answer to the probe before training.
        data: The prompts, for their counts.
        versions: Of the libraries.
        about: Further values for the record of what was used.
        parts: The clock of the stage.
    """
    ppo, evaluator, measured = run.ppo, run.evaluator, run.measured()
    enter(job, EVALUATING)
    if evaluator is not None:
        evaluator.evaluate_tuned()
    enter(job, SAVING)
    used = resolved_settings(job, ppo, about)
    policy = ppo.roles.only_policy()
    round_to_base(policy)
    policy.eval()
    with waiting("saving the result"):
        files = checkpoints.save_result(policy, tokenizer, job.output)
    with waiting("checking the saved result"):
        checks: list[Check] = check_saved(job, policy, job.output, probe, before)
    evaluation, verdict = None, None
    if evaluator is not None:
        evaluation, verdict = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
    checks += [Check(name, False, text) for name, text in run.warnings.items()]
    lines = stage_lines(run.metrics, stage=job.stage.name, task=job.task)
    rewards = reward_records(lines, ppo.reward_parts)
    checks += [*reward_checks(rewards, ppo.reward_parts), *missing_checks(lines, ppo.reward_parts)]
    checks += run.watch.checks()
    checks += rounding_checks(job)
    for check in checks:
        say(f"{label(job)}: {'ok' if check.ok else 'WARNING'}: {check.text}")
    times = parts.times()
    result = StageResult(
        status=DONE,
        steps=run.steps,
        loss_first=run.lines[0]["loss"] if run.lines else None,
        loss_last=run.lines[-1]["loss"] if run.lines else None,
        reward_first=run.lines[0]["reward"] if run.lines else None,
        reward_last=run.lines[-1]["reward"] if run.lines else None,
        duration_s=times.total_s,
        measured=measured,
        times=times,
        data=data.counts(),
        evaluation=evaluation,
        rewards=rewards or None,
        checks=tuple(checks),
        verdict=stage_verdict(checks, verdict),
        files=files,
        versions=versions,
        resolved=used,
    )
    write_json(job.output / RESULT, result.to_dict())


def resolved_settings(job: Job, ppo: PPO, about: Mapping[str, Any]) -> ResolvedSettings:
    """Every value that was really used, defaults included."""
    stage, roles = job.stage, ppo.roles
    trained = {
        role: sum(parameter.numel() for parameter in roles.trained(role).values())
        for role in ("policy", "value")
    }
    model = roles.parts["policy"].model
    adapter = model.peft_config["default"].to_dict() if roles.shared else None
    keys = (
        "optimizer",
        "learning_rate",
        "scheduler",
        "warmup",
        "micro_batch_size",
        "grad_accum",
        "seed",
    )
    return ResolvedSettings(
        model=job.base_model,
        start_from=None if job.start is None else str(job.start),
        device=str(ppo.device),
        threads=about["threads"],
        weights_dtype=stage.weights_dtype,
        autocast=settings.autocast_dtype(job, ppo.device),
        quantization=stage.quantization,
        double_quantization=(
            stage.double_quantization is not False if stage.quantization == "nf4" else None
        ),
        attention=stage.attention,
        kernels=fused_in(ppo.roles.parts["policy"].model),
        seq_len=stage.seq_len,
        truncation=stage.truncation,
        holdout=stage.holdout,
        **about["template"],
        options=job.options,
        trainable_parameters=trained["policy"],
        stop_tokens_added=tuple(about["stop_tokens_added"]),
        peft=adapter,
        extra={
            "reward": about["reward"],
            **{key: getattr(stage, key) for key in keys},
            **asdict(PPOArguments(**stage.trl).for_optimizer(stage.optimizer)),
            "prompts_an_update": stage.effective_batch_size * settings.world_size(),
            "value_parameters": trained["value"],
            "one_base": roles.shared,
        },
    )
