"""Full fine-tuning: every weight gets a gradient."""

from __future__ import annotations

from advisor.estimate.run import Run


def trainable_params(run: Run) -> int:
    """All parameters of the model."""
    return run.dims.params
