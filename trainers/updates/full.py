"""Full fine-tuning: every weight of the model is trained."""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.plan.model import Stage


def faults(stage: Stage) -> list[Fault]:
    """Bare 16-bit floats cannot be trained without their scale."""
    if stage.weights_dtype != "float16":
        return []
    what = "float16 weights cannot be trained in place: their gradients underflow"
    return [
        Fault(
            where=f"stage {stage.name}",
            what=what,
            allowed="weights_dtype: bfloat16, or float32 with precision: mixed",
        )
    ]
