"""Bottleneck adapters: small layers in each block of a frozen model (see advisor.peft_adapter)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.errors import InputError
from advisor.peft_adapter import BottleneckConfig, UnsupportedModel, find_places
from advisor.plan.model import Stage
from trainers.job import Model
from trainers.updates import COMMON_KEYS, task_type

PLAN_KEYS: Mapping[str, str] = {
    **COMMON_KEYS,
    "bottleneck": "bottleneck",
    "placement": "placement",
    "dropout": "dropout",
    "base_hidden_size": "model",
    "base_layers": "model",
}


def config_class() -> type | None:
    """Our own BottleneckConfig."""
    return BottleneckConfig


def peft_config(stage: Stage, options: Mapping[str, Any], model: Model) -> Any:
    """The BottleneckConfig of the stage. Raises InputError if the model has no place for it."""
    config = BottleneckConfig(
        bottleneck=options["bottleneck"],
        placement=options["placement"],
        dropout=options["dropout"],
        task_type=task_type(model),
        **stage.peft,
    )
    try:
        find_places(model, config.placement, config.layers)
    except UnsupportedModel as error:
        raise InputError(
            str(error),
            where=f"stage {stage.name}",
            hint="another placement may fit; update: lora fits every architecture",
        ) from None
    return config
