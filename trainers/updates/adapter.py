"""Bottleneck adapters: small layers in each block of a frozen model (see advisor.peft_adapter)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.errors import InputError
from advisor.peft_adapter import UnsupportedModel, find_places
from advisor.plan.model import Stage
from trainers.job import Model
from trainers.updates import COMMON_KEYS

PLAN_KEYS: Mapping[str, str] = {
    **COMMON_KEYS,
    "bottleneck": "bottleneck",
    "placement": "placement",
    "dropout": "dropout",
    "base_hidden_size": "model",
    "base_layers": "model",
}
CONFIG = "advisor.peft_adapter:BottleneckConfig"


def arguments(stage: Stage, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Size and place of the layers. Raises InputError if the model has no place for them."""
    try:
        find_places(model, options["placement"], stage.peft.get("layers"))
    except UnsupportedModel as error:
        raise InputError(
            str(error),
            where=f"stage {stage.name}",
            hint="another placement may fit; update: lora fits every architecture",
        ) from None
    return {name: options[name] for name in ("bottleneck", "placement", "dropout")}
