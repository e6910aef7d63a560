"""Full fine-tuning: every weight of the model is trained."""

from __future__ import annotations

from advisor.ground.errors import Fault
from advisor.plan.model import Stage


def faults(stage: Stage) -> list[Fault]:
    """A quantised base cannot be trained, nor can bare 16-bit floats without their scale."""
    found = []
    if stage.quantization is not None:
        found.append(
            Fault(
                where=f"stage {stage.name}",
                what=(
                    f"quantization {stage.quantization} needs a frozen base,"
                    " and update full trains the weights themselves"
                ),
                allowed="update: lora",
            )
        )
    if stage.weights_dtype == "float16":
        found.append(
            Fault(
                where=f"stage {stage.name}",
                what=("float16 weights cannot be trained in place: their gradients underflow"),
                allowed="weights_dtype: bfloat16, or float32 with precision: mixed",
            )
        )
    return found
