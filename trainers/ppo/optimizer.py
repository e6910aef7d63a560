"""The optimizer of PPO, over policy and value, and the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from advisor.methods.optimizers import optimizer
from advisor.plan.model import Stage
from trainers.ppo.roles import POLICY, VALUE, RoleModel, Roles
from trainers.step.make_optimizer import make


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
    """Set each group to this share of its own learning rate."""
    for group in stepper.param_groups:
        group["lr"] = group["full_rate"] * share


@dataclass(frozen=True, kw_only=True)
class PPOArguments:
    """What `trl:` may set in a PPO stage, by the names and with the defaults of transformers.

    Raises ValueError for a value that no optimizer takes.
    """

    max_grad_norm: float = 1.0
    adam_beta1: float | None = None  # None: the optimizer's own, 0.9 for most
    adam_beta2: float | None = None  # 0.999 for most
    adam_epsilon: float = 1e-8
    optim_args: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "adam_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number above 0")
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 to below 1")

    def for_optimizer(self, name: str) -> PPOArguments:
        """These, with the betas of the optimizer where `trl:` sets none."""
        usual = optimizer(name).betas or (0.9, 0.999)
        return replace(
            self,
            adam_beta1=usual[0] if self.adam_beta1 is None else self.adam_beta1,
            adam_beta2=usual[1] if self.adam_beta2 is None else self.adam_beta2,
        )


@dataclass(frozen=True, kw_only=True)
class TrainerArguments(PPOArguments):
    """With what callbacks and evaluations ask of a trainer."""

    fp16: bool  # gradients are scaled, so that an infinite one only costs its step
    per_device_train_batch_size: int


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
        decayed, trained = decayed_parameters(roles.parts[role]), roles.trained(role).values()
        for decay in dict.fromkeys((stage.weight_decay, 0.0)):
            chosen = [
                one.requires_grad_(True)
                for one in trained
                if (stage.weight_decay if id(one) in decayed else 0.0) == decay
            ]
            groups.append({"params": chosen, "weight_decay": decay, **own})
    given: Any = arguments.for_optimizer(stage.optimizer)
    models = {id(model): model for model in (roles.parts[role].model for role in (POLICY, VALUE))}
    return make(
        stage, groups, list(models.values()),
        betas=(given.adam_beta1, given.adam_beta2), eps=given.adam_epsilon,
    )  # fmt: skip


def decayed_parameters(part: RoleModel) -> set[int]:
    """The identities of a role's parameters that are neither norms nor biases."""
    from transformers import Trainer

    found: set[int] = set()
    for module in (part.model, part.head):
        if module is not None:
            names = set(Trainer.get_decay_parameter_names(cast(Any, None), module))
            found |= {id(one) for name, one in module.named_parameters() if name in names}
    return found
