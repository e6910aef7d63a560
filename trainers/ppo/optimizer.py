"""The optimizer of PPO, over policy and value, and the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.methods.optimizers import optimizer
from advisor.plan.model import Stage
from trainers.ppo.roles import POLICY, VALUE, Roles
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
        for name, allowed, ends in (
            ("max_grad_norm", "a number above 0", (0.0, math.inf)),
            ("adam_epsilon", "a number above 0", (0.0, math.inf)),
            ("adam_beta1", "a number from 0 to below 1", (-1e-9, 1.0)),
            ("adam_beta2", "a number from 0 to below 1", (-1e-9, 1.0)),
        ):
            value = getattr(self, name)
            if value is None and name.startswith("adam_beta"):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not ends[0] < value < ends[1]:
                raise ValueError(f"{name} is {value!r}, expected {allowed}")

    def for_optimizer(self, name: str) -> PPOArguments:
        """These, with the betas of the optimizer where `trl:` sets none."""
        usual = optimizer(name).betas or (0.9, 0.999)
        return replace(
            self,
            adam_beta1=usual[0] if self.adam_beta1 is None else self.adam_beta1,
            adam_beta2=usual[1] if self.adam_beta2 is None else self.adam_beta2,
        )


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
    rates = {
        POLICY: stage.learning_rate,
        VALUE: options["value_learning_rate"] or stage.learning_rate,
    }
    groups: list[dict[str, Any]] = []
    for role, rate in rates.items():
        without = undecayed(roles, role) if stage.weight_decay else set()
        parameters = [parameter.requires_grad_(True) for parameter in roles.trained(role).values()]
        for decay in (stage.weight_decay, 0.0) if without else (stage.weight_decay,):
            chosen = [
                one for one in parameters if not without or (id(one) in without) != bool(decay)
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "full_rate": rate,
                        "role": role,
                        "weight_decay": decay,
                    }
                )
    own = arguments.for_optimizer(stage.optimizer)
    assert own.adam_beta1 is not None
    assert own.adam_beta2 is not None
    models = [part.model for part in map(roles.parts.__getitem__, rates)]
    return make(
        stage,
        groups,
        list({id(one): one for one in models}.values()),
        betas=(float(own.adam_beta1), float(own.adam_beta2)),
        eps=float(own.adam_epsilon),
    )


# What transformers' Trainer.get_decay_parameter_names leaves out, by name.
NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def undecayed(roles: Roles, role: str) -> set[int]:
    """The identities of a role's norms and biases."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    part = roles.parts[role]
    found: set[int] = set()
    for model in (part.model, part.head):
        if model is not None:
            decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], list(NO_DECAY)))
            found |= {
                id(parameter) for name, parameter in model.named_parameters() if name not in decayed
            }
    return found
