"""PPO as an objective: what the plan says, as everything that its loop needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from advisor.ground.errors import Fault
from trainers.evaluation.loss import held_out
from trainers.evaluation.pairs import TRIAL_PROMPTS
from trainers.job.job import JUDGE, Job
from trainers.job.machine import process_count, process_rank
from trainers.ppo.learning import (
    Learner,
    PPOArguments,
    TrainerArguments,
    chosen_arguments,
    make_optimizer,
)
from trainers.ppo.loop import LOGGED, PPOTrainer
from trainers.ppo.math import KLCoefficient
from trainers.ppo.roles import POLICY, VALUE, Roles, build_roles
from trainers.rewards.sources import model_folders, source_note
from trainers.rollouts.transformers_engine import AT_ONCE, TransformersEngine, stop_ids
from trainers.rollouts.vllm_engine import engine_of
from trainers.rows import Prepared
from trainers.rows.conversation import Prompt
from trainers.say.progress import tell
from trainers.stage.objective import Build, Opened, Rewarded
from trainers.step import settings
from trainers.step.trained_dtype import train_in_float32

# Keys of the stage that the loop reads, for the record.
RECORDED = (
    "optimizer", "learning_rate", "scheduler", "warmup", "micro_batch_size", "grad_accum", "seed",
)  # fmt: skip
MIDWAY_PROMPTS = 16  # held-out prompts that are answered during the run


class PPO(Rewarded):
    """Makes answers of the model likelier or less likely by their reward, against a value."""

    config = "trainers.ppo.learning:PPOArguments"
    trained_by = "trainers.ppo.loop:PPOTrainer"
    logged: Sequence[str] = LOGGED
    balances_experts = False
    resumes_itself = True
    measured_batches = None  # all prompts of an update are answered together
    roles: Roles
    data: Prepared[Prompt]

    def faults(self, job: Job) -> list[Fault]:
        stage, options, at = job.stage, job.options, f"stage {job.stage.name}:"
        found: list[tuple[str, str, str]] = []  # what, what is allowed, a hint
        if stage.options.get("dropout"):
            why = "PPO compares probabilities before and after a step, which dropout would change"
            found.append((f"'dropout' has no effect: {why} at random", "", "remove it"))
        if options["kl_horizon"] is not None and options["kl_target"] is None:
            why = "without kl_target the KL coefficient is fixed"
            found.append((f"'kl_horizon' has no effect: {why}", "", "set kl_target, or remove it"))
        if options["minibatches"] > stage.grad_accum:
            what = (
                f"minibatches {options['minibatches']} are more than the {stage.grad_accum} batches"
                " of an update (grad_accum)"
            )
            found.append((what, f"1 to {stage.grad_accum}", ""))
        own = [
            Fault(where=at, what=f"{at} {what}", allowed=right, hint=hint)
            for what, right, hint in found
        ]
        return [*super().faults(job), *own]

    def load(self, opened: Opened[Prompt]) -> Any:
        """The policy. Raises InputError if the reward or the model does not fit the stage."""
        job, self.data = opened.job, opened.data
        prompts = (*self.data.train, *self.data.holdout)
        folder = next(iter(model_folders(job, prompts)), None)  # the first one becomes a role
        torch.manual_seed(job.stage.seed)
        self.open_rewards(opened, scored_elsewhere=folder)
        self.roles, notes = build_roles(opened, folder)
        if job.part != JUDGE:
            for note in notes:
                tell(job, note)
        return self.roles.parts[POLICY].model

    def trainer(self, build: Build[Prompt]) -> Any:
        job, tokenizer, roles = build.job, build.tokenizer, self.roles
        stage, options = job.stage, job.options
        device = next(build.model.parameters()).device
        prepare(roles, recomputes=stage.gradient_checkpointing)
        torch.manual_seed(stage.seed + process_rank())
        dtype = settings.autocast_dtype(job, device)
        scales = dtype == "float16"
        args = TrainerArguments(
            **chosen_arguments(stage),
            fp16=scales,
            per_device_train_batch_size=stage.micro_batch_size,
        )

        policy = partial(roles.use, POLICY)
        autocast: Any = nullcontext
        if dtype:
            autocast = partial(torch.autocast, device.type, getattr(torch, dtype))
        local = TransformersEngine(
            policy,
            models=roles.models,
            least=max(AT_ONCE, stage.micro_batch_size),
            room=stage.micro_batch_size / job.entry.stage.micro_batch_size,
            autocast=autocast,
            # Of both roles, whichever was used last: a resumed run answers as many at once.
            trained=sum(
                one.numel() for role in (POLICY, VALUE) for one in roles.trained(role).values()
            ),
        )
        learner = Learner(
            roles=roles,
            options=options,
            max_grad_norm=float(args.max_grad_norm),
            optimizer=make_optimizer(stage, options, roles, args),
            device=device,
            autocast=autocast,
            scaler=torch.amp.GradScaler(device.type, enabled=scales),
        )
        horizon = options["kl_horizon"] or KLCoefficient.horizon
        trial = job.max_steps is not None
        held = held_out(self.data.holdout, limit=TRIAL_PROMPTS if trial else MIDWAY_PROMPTS)
        looks = held and job.judge and not job.dry_run
        built = PPOTrainer(
            job=job,
            args=args,
            steps=build.arguments["max_steps"],
            prompts=list(build.rows),
            learner=learner,
            kl_coefficient=KLCoefficient(options["kl_coef"], options["kl_target"], horizon),
            processing_class=tokenizer,
            stops=stop_ids(build.model),
            engine=engine_of(job, self.server, local, policy),
            local=local,
            rewards=self.rewards,
            held_out=held[process_rank() :: process_count()] if looks else None,
        )
        self.watch = built.watch
        roles.back_to_policy()
        return built

    def outcome(self, job: Job) -> dict[str, Any]:
        lines = self.watch.lines
        first, last = (lines[0]["reward"], lines[-1]["reward"]) if lines else (None, None)
        return {"reward_first": first, "reward_last": last, **super().outcome(job)}

    def resolved(self, job: Job) -> dict[str, Any]:
        stage, roles = job.stage, self.roles
        sizes = {
            role: sum(parameter.numel() for parameter in roles.trained(role).values())
            for role in (POLICY, VALUE)
        }
        extra = {
            "reward": source_note(job, (*self.data.train, *self.data.holdout)),
            **{key: getattr(stage, key) for key in RECORDED},
            **asdict(PPOArguments(**chosen_arguments(stage))),
            "prompts_an_update": stage.effective_batch_size * process_count(),
            "value_parameters": sizes[VALUE],
            "one_base": roles.shared,
        }
        return {"trainable_parameters": sizes[POLICY], "extra": extra}


def prepare(roles: Roles, *, recomputes: bool) -> None:
    """Make the models ready for training, without dropout: only the step may change the
    probability of a token.
    """
    for model in roles.models():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        train_in_float32(model)
    for role in (POLICY, VALUE) if recomputes else ():
        roles.parts[role].model.activation_checkpointing_enable({"use_reentrant": False})
    for model in roles.models():
        # Libraries recompute activations in training mode only; without dropout nothing else
        # differs.
        model.train(recomputes)
