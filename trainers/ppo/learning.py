"""What an update of PPO learns from its answers: a few gradient steps of policy and value. What
steps, and how fast.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end, M batches of a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers import Trainer

from advisor.ground.progress import waiting
from advisor.methods.optimizers import optimizer
from advisor.plan.model import Stage
from trainers.job import Device
from trainers.job.machine import process_count
from trainers.ppo import math as formulas
from trainers.ppo.roles import POLICY, VALUE, Roles
from trainers.ppo.rollout import Batch, gather_answers
from trainers.step.make_optimizer import make


@dataclass(frozen=True, kw_only=True)
class Experience:
    batches: Sequence[Batch]
    old_RT: Any  # log-probabilities under the policy that generated the answers
    values_RT: Any  # before the update
    advantages_RT: Any  # whitened
    returns_RT: Any  # what the values should be


@dataclass(kw_only=True)
class Learner:
    """Takes the gradient steps."""

    roles: Roles
    options: Mapping[str, Any]  # of the stage
    max_grad_norm: float
    optimizer: Any
    device: Device
    autocast: Callable[[], Any]
    scaler: Any  # of the gradients in float16; else it does nothing

    def learn(self, experience: Experience) -> dict[str, float]:
        """The epochs over the answers; the means of what their steps showed."""
        seen: list[dict[str, float]] = []
        norms: list[Any] = []  # of the gradients, left on the device until the update is done
        stopped = False
        passes = 2 * self.options["ppo_epochs"] * len(experience.batches)
        with waiting("learning from the answers", total=passes, unit="passes") as passed:
            for minibatch in self.minibatches(experience.batches):
                found = self.gradients(experience, minibatch, passed)
                stopped = found["step_kl"] > self.options["step_kl_limit"] and bool(seen)
                if stopped:
                    self.optimizer.zero_grad(set_to_none=True)
                    break
                norms.append(self.step())
                seen.append(found)
        for found, norm in zip(seen, torch.stack(norms).tolist(), strict=True):
            found["grad_norm"] = norm
        means = {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
        return means | {"inner_steps": len(seen), "stopped_early": float(stopped)}

    def minibatches(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """The minibatches of all epochs. Batches keep their rows, so that the first ratios are
        exactly 1; only their order changes. Those that memory has room for stay together as they
        were planned.
        """
        groups = [[*group] for _, group in groupby(batches, key=lambda batch: batch.planned)]
        share = -(-len(groups) // min(self.options["minibatches"], len(groups)))
        for _ in range(self.options["ppo_epochs"]):
            order = torch.randperm(len(groups)).tolist()
            for start in range(0, len(groups), share):
                yield [one for place in order[start : start + share] for one in groups[place]]

    def gradients(
        self, experience: Experience, minibatch: Sequence[Batch], passed: Callable[[], None]
    ) -> dict[str, float]:
        """Compute the gradients of one minibatch; its losses and how far the policy has moved.

        Policy and value share no trained weight, so each has its own backward pass: only one graph
        is held at a time.

        Args:
            passed: Called after each pass of a batch.
        """
        tokens: Any = float(sum(len(batch.targets_N) for batch in minibatch))
        if process_count() > 1:
            # Gradients are averaged over the processes, so each divides by the mean.
            tokens = mean_over_processes(torch.tensor(tokens, device=self.device))

        def passes(look: Callable[..., tuple[Any, ...]]) -> Any:
            """The sums over all batches of what one pass of each shows, its loss first."""
            found = []
            for batch in minibatch:
                loss, *others = look(experience, batch, tokens)
                self.scaler.scale(loss).backward()
                found.append(torch.stack([loss.detach(), *others]).float())
                passed()
            return torch.stack(found).sum(0)

        policy_loss, clipped, moved = passes(self._policy_pass)
        (value_loss,) = passes(self._value_pass)
        # Read from the device once.
        return self.averaged(
            {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "clip_fraction": clipped / tokens,
                "step_kl": moved / tokens,
            }
        )

    def _policy_pass(self, experience: Experience, batch: Batch, tokens: Any) -> tuple[Any, ...]:
        """(loss, how many ratios were clipped, the KL to the policy that generated the answers,
        summed over tokens).
        """
        old_N = gather_answers(experience.old_RT, batch)
        with self.autocast():
            new_N, _ = self.roles.log_probs(POLICY, batch, self.options["temperature"])
        advantages_N = gather_answers(experience.advantages_RT, batch)
        losses_N, _, clipped_N = formulas.policy_losses(
            new_N, old_N, advantages_N, self.options["clip_range"]
        )
        moved = formulas.approximate_kl(new_N.detach(), old_N).sum()
        return losses_N.sum() / tokens, clipped_N.sum(), moved

    def _value_pass(self, experience: Experience, batch: Batch, tokens: Any) -> tuple[Any]:
        with self.autocast():
            values_N = self.roles.values(batch)
        old_N, returns_N = (
            gather_answers(table, batch) for table in (experience.values_RT, experience.returns_RT)
        )
        losses_N = formulas.value_losses(
            values_N, old_N, returns_N, self.options["value_clip_range"]
        )
        return (losses_N.sum() / tokens,)

    def averaged(self, numbers: Mapping[str, Any]) -> dict[str, float]:
        """Numbers, or tensors of one number, averaged over all processes."""
        table = torch.stack(
            [
                torch.as_tensor(one, dtype=torch.float32, device=self.device)
                for one in numbers.values()
            ]
        )
        return dict(zip(numbers, mean_over_processes(table).tolist(), strict=True))

    def step(self) -> Any:
        """Take the step; the policy's gradient norm before clipping, on the device."""
        if process_count() > 1:  # all gradients are on their way before the first is waited for
            trained = [one for group in self.optimizer.param_groups for one in group["params"]]
            gradients = [one.grad for one in trained if one.grad is not None]
            for sent in [dist.all_reduce(one, async_op=True) for one in gradients]:
                sent.wait()
            for one in gradients:
                one.div_(dist.get_world_size())
        self.scaler.unscale_(self.optimizer)
        # Policy and value are clipped by a norm of their own each.
        norm, _ = (
            torch.nn.utils.clip_grad_norm_(
                list(self.roles.trained(role).values()), self.max_grad_norm
            )
            for role in (POLICY, VALUE)
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.float()


def mean_over_processes(tensor: Any) -> Any:
    """The tensor's mean over all processes of the run."""
    if process_count() == 1:
        return tensor
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


# --------------------------------------------------------------------------- what steps


def rate_share(step: int, steps: int, *, warmup: float, scheduler: str) -> float:
    """The share of the learning rate for an update: never 0, which would waste its answers.

    Args:
        step: The number of the update, from 0.
        warmup: Share of the steps, as in the plan.
    """
    warm = math.ceil(warmup * steps) if scheduler != "constant" else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if scheduler in ("constant", "constant_with_warmup"):
        return 1.0
    left = (steps - step) / max(1, steps - warm)
    return left if scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def set_rates(stepper: Any, share: float) -> None:
    for group in stepper.param_groups:
        group["lr"] = group["full_rate"] * share


@dataclass(frozen=True, kw_only=True)
class PPOArguments:
    """What `trl:` may set in a PPO stage, by the names and with the defaults of transformers.

    Raises ValueError for a value that no optimizer takes.
    """

    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    optim_args: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "adam_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number above 0")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class TrainerArguments(PPOArguments):
    """With what callbacks and evaluations ask of a trainer."""

    fp16: bool  # gradients are scaled, so that an infinite one only costs its step
    per_device_train_batch_size: int


def chosen_arguments(stage: Stage) -> dict[str, Any]:
    """What `trl:` sets, and the betas of the stage's optimizer where it sets none."""
    usual = zip(("adam_beta1", "adam_beta2"), optimizer(stage.optimizer).betas or (), strict=False)
    return {**dict(usual), **stage.trl}


def make_optimizer(
    stage: Stage, options: Mapping[str, Any], roles: Roles, arguments: PPOArguments
) -> Any:
    """The plan's optimizer over the parameters of policy and value.

    Norms and biases have no weight decay, as under transformers' Trainer.

    Args:
        stage: Names it.
        options: Of the objective.
        roles: What trains.
        arguments: What `trl:` sets.
    """
    groups: list[dict[str, Any]] = []
    for role, rate in (
        (POLICY, stage.learning_rate),
        (VALUE, options["value_learning_rate"] or stage.learning_rate),
    ):
        own = {"lr": rate, "full_rate": rate, "role": role}
        whole = Trainer.get_decay_parameter_names(cast(Any, None), roles.parts[role].model)
        decayed = {*whole, "head.weight"}
        for decay in dict.fromkeys((stage.weight_decay, 0.0)):
            chosen = [
                one.requires_grad_(True)
                for name, one in roles.trained(role).items()
                if (stage.weight_decay if name in decayed else 0.0) == decay
            ]
            groups.append({"params": chosen, "weight_decay": decay, **own})
    models = {id(model): model for model in (roles.parts[role].model for role in (POLICY, VALUE))}
    return make(
        stage, groups, list(models.values()),
        betas=(arguments.adam_beta1, arguments.adam_beta2), eps=arguments.adam_epsilon,
    )  # fmt: skip
