"""Full fine-tuning: every weight gets a gradient."""

from __future__ import annotations

from advisor.estimate.model.dims import Dims
from advisor.estimate.types import RunSpec


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """All parameters of the model."""
    return dims.params
