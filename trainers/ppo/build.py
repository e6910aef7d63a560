"""What a PPO stage trains with, from its plan: the faults of its keys, the reward, and everything
that updates need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import Fault, InputError
from advisor.plan.vllm import unservable
from trainers.job.job import Job
from trainers.job.types import Device, Tokenizer
from trainers.keep.checkpoint_store import fingerprint
from trainers.ppo.steps import PPOArguments
from trainers.rewards.sources import (
    NOTHING_SCORES,
    build_rewards,
    model_folders,
    parts_of,
    reward_faults,
    reward_files,
)
from trainers.rollouts.vllm_engine import engine_of, open_rollouts
from trainers.rows import Prepared
from trainers.rows.conversation import Prompt
from trainers.step import settings
from trainers.step.trained_dtype import train_in_float32
from trainers.updates import Update

if TYPE_CHECKING:
    from trainers.ppo.roles import Roles
    from trainers.ppo.update import PPO

ARGUMENTS = tuple(field.name for field in fields(PPOArguments))
SHORTEST_PROMPT = 8  # tokens that response_tokens has to leave of seq_len


def faults(job: Job) -> list[Fault]:
    """What in the stage cannot be done, or would have no effect."""
    stage, options, at = job.stage, job.options, f"stage {job.stage.name}:"
    found = [*reward_faults(job), *unservable(job.stage, job.options)]
    if stage.options.get("dropout"):
        why = (
            "PPO compares probabilities before and after a step, which dropout would change at"
            " random"
        )
        found.append(Fault(where=at, what=f"{at} 'dropout' has no effect: {why}", hint="remove it"))
    if options["kl_horizon"] is not None and options["kl_target"] is None:
        found.append(
            Fault(
                where=at,
                what=(
                    f"{at} 'kl_horizon' has no effect: without kl_target the KL coefficient is"
                    " fixed"
                ),
                hint="set kl_target, or remove it",
            )
        )
    if options["minibatches"] > stage.grad_accum:
        what = (
            f"{at} minibatches {options['minibatches']} are more than the {stage.grad_accum}"
            " batches of an update (grad_accum)"
        )
        found.append(Fault(where=at, what=what, allowed=f"1 to {stage.grad_accum}"))
    if options["response_tokens"] + SHORTEST_PROMPT > stage.seq_len:
        what = (
            f"{at} response_tokens {options['response_tokens']} leave no room for a prompt within"
            f" seq_len {stage.seq_len}"
        )
        found.append(Fault(where=at, what=what, hint="raise seq_len, or lower response_tokens"))
    if job.plan.launch.strategy not in (None, "ddp"):
        found.append(
            Fault(
                where=at,
                what=f"{at} PPO in several processes needs the whole model in each",
                allowed="launch.strategy: ddp; objectives grpo and rloo also train with fsdp",
            )
        )
    try:
        PPOArguments(**{key: stage.trl[key] for key in stage.trl if key in ARGUMENTS})
    except ValueError as error:
        found.append(Fault(where=at, what=f"{at} trl: {error}", hint="correct it, or remove it"))
    return found


def reward_model_folder(job: Job, prompts: Sequence[Prompt]) -> Path | None:
    """The folder of the first reward model, which becomes a role; None if there is none.

    Raises InputError if nothing gives a reward.
    """
    if not parts_of(job, prompts):
        raise InputError(
            "nothing gives the answers a reward",
            where=f"stage {job.stage.name}",
            allowed=f"a stage with objective rm before it; {NOTHING_SCORES}",
        )
    folders = model_folders(job, prompts)
    return folders[0] if folders else None


def reward_fingerprint(job: Job, prompts: Sequence[Prompt]) -> str:
    """A digest of what gives the reward, for checkpoints to depend on."""
    from trainers.ppo.roles import weights_fingerprint

    models = [weights_fingerprint(folder) for folder in model_folders(job, prompts)]
    if len(models) == 1 and not reward_files(job):
        return models[0]
    return fingerprint([*models, *(file.read_text("utf-8") for file in reward_files(job))])


def build(
    job: Job,
    device: Device,
    update: Update,
    tokenizer: Tokenizer,
    data: Prepared[Prompt],
    folder: Path | None,
) -> tuple[PPO, list[str], list[str]]:
    """(everything that updates need, notes to show, stop tokens that had to be added).

    Raises InputError if the reward or the model does not fit the stage.

    Args:
        job: The stage to train.
        device: Of the models.
        update: The stage's update scheme.
        tokenizer: Of the policy.
        data: The prompts.
        folder: Of the reward model among the roles; None: verifiers or functions give the reward.
    """
    import torch

    from trainers.ppo.math import KLCoefficient
    from trainers.ppo.roles import POLICY, VALUE, build_roles
    from trainers.ppo.steps import make_optimizer
    from trainers.ppo.update import PPO, PPOSettings
    from trainers.rollouts.transformers_engine import AT_ONCE, TransformersEngine, stop_ids
    from trainers.start.loading import check_vocabulary, enable_stop_tokens

    options, stage = job.options, job.stage
    server = open_rollouts(job)
    torch.manual_seed(stage.seed)
    prompts = (*data.train, *data.holdout)
    rewards = (
        build_rewards(job, tokenizer, prompts, device, scored_elsewhere=folder)
        if folder is None or len(parts_of(job, prompts)) > 1
        else None
    )
    roles, notes = build_roles(
        job,
        device,
        update,
        tokenizer,
        folder,
        [SimpleNamespace(input_ids=row.prompt_ids) for row in data.train],
    )
    policy = roles.parts[POLICY].model
    check_vocabulary(policy, tokenizer, (*data.train, *data.holdout))
    added = enable_stop_tokens(policy, tokenizer, set(data.turn_ends))
    without_dropout(roles)
    for model in roles.models():
        train_in_float32(model)
    if stage.gradient_checkpointing:
        roles.recompute()
    for model in roles.models():
        # Libraries recompute activations in training mode only; without dropout nothing else
        # differs.
        model.train(stage.gradient_checkpointing)
    torch.manual_seed(stage.seed + process_rank())
    dtype = settings.autocast_dtype(job, device)
    arguments = PPOArguments(**stage.trl)

    def autocast() -> Any:
        """The context of forward passes."""
        return torch.autocast(device.type, getattr(torch, dtype)) if dtype else nullcontext()

    local = TransformersEngine(
        lambda: roles.use(POLICY),
        pad_id=tokenizer.pad_token_id,
        models=roles.models,
        trained=sum(
            one.numel() for role in (POLICY, VALUE) for one in roles.trained(role).values()
        ),
        least=max(AT_ONCE, stage.micro_batch_size),
        room=stage.micro_batch_size / job.entry.stage.micro_batch_size,
        autocast=autocast,
    )
    ppo = PPO(
        roles=roles,
        settings=replace(PPOSettings.of(job), max_grad_norm=float(arguments.max_grad_norm)),
        kl_coefficient=KLCoefficient(
            options["kl_coef"], options["kl_target"], options["kl_horizon"] or KLCoefficient.horizon
        ),
        optimizer=make_optimizer(stage, options, roles, arguments),
        tokenizer=tokenizer,
        stops=stop_ids(policy),
        device=device,
        autocast=autocast,
        engine=engine_of(job, server, local, lambda: roles.use(POLICY)),
        local=local,
        rewards=rewards,
        scaler=torch.amp.GradScaler(device.type) if dtype == "float16" else None,
        mean=mean_over_processes() if settings.world_size() > 1 else None,
    )
    return ppo, notes, added


def process_rank() -> int:
    """The rank of this process among all of the run."""
    return int(os.environ.get("RANK", "0"))


def without_dropout(roles: Roles) -> None:
    """Switch off every dropout: only the step may change the probability of a token."""
    import torch

    for model in roles.models():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0


def mean_over_processes() -> Callable[[Any], Any]:
    """A function that returns a tensor's mean over all processes of the run."""
    import torch.distributed as dist

    def mean(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor / dist.get_world_size()

    return mean
