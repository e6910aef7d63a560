"""The prompts, the learning rate and the optimizer of an update; each depends on the plan and the
number of the update alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from advisor.plan.model import Stage
from trainers.ppo.roles import POLICY, VALUE, Roles

Item = TypeVar("Item")


def prompts_of_update(
    step: int, prompts: Sequence[Item], *, size: int, seed: int, rank: int = 0, world: int = 1
) -> list[Item]:
    """The prompts of one update: the next of an endless stream of all prompts, shuffled anew each
    time.

    Args:
        step: The number of the update, from 0.
        prompts: All prompts.
        size: Prompts per update and process.
        seed: Of the order.
        rank: Of this process.
        world: The number of processes.
    """
    import torch

    first = (step * world + rank) * size
    orders: dict[int, list[int]] = {}
    found: list[Item] = []
    for place in range(first, first + size):
        epoch, within = divmod(place, len(prompts))
        if epoch not in orders:
            orders[epoch] = torch.randperm(
                len(prompts), generator=torch.Generator().manual_seed(seed + epoch)
            ).tolist()
        found.append(prompts[orders[epoch][within]])
    return found


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


def set_rates(optimizer: Any, share: float) -> None:
    """Set each group to this share of its own learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * share


def make_optimizer(stage: Stage, options: Mapping[str, Any], roles: Roles) -> Any:
    """The plan's optimizer over the parameters of policy and value, one group each, so that each is
    clipped by its own norm.
    """
    import torch

    rates = {
        POLICY: stage.learning_rate,
        VALUE: options["value_learning_rate"] or stage.learning_rate,
    }
    groups: list[dict[str, Any]] = []
    for role, rate in rates.items():
        parameters = [parameter.requires_grad_(True) for parameter in roles.trained(role).values()]
        groups.append(
            {
                "params": parameters,
                "lr": rate,
                "full_rate": rate,
                "role": role,
                "weight_decay": stage.weight_decay,
            }
        )
    name = stage.optimizer
    if name in ("adamw", "adamw_fused"):
        return torch.optim.AdamW(groups, fused=name == "adamw_fused")
    if name == "sgd":
        return torch.optim.SGD(groups)
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, scale_parameter=False, relative_step=False)
    import bitsandbytes

    kind = {
        "adamw_8bit": "AdamW8bit",
        "paged_adamw": "PagedAdamW32bit",
        "paged_adamw_8bit": "PagedAdamW8bit",
    }[name]
    return getattr(bitsandbytes.optim, kind)(groups)
