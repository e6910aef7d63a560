"""Whether transformers can load the model as each stage asks."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.estimate.model.architecture import NO_SDPA, WRITTEN_OUT, why_not_loadable
from advisor.estimate.targets import WITH_EXPERTS
from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.types import ModelShape
from advisor.launch.call import Call
from advisor.methods import update
from advisor.plan.model import Stage

PHASE = "plan"


def check(call: Call) -> Checked:
    """Quantisation, attention and modules that a model, if it is known, does not have."""
    if call.shape is None:
        return Checked()
    return Checked(
        bad=[
            Fault(where=f"stage {entry.name}", what=what, allowed=allowed, hint=hint)
            for entry in call.left
            for what, allowed, hint in _faults(entry.stage, call.shape)
        ]
    )


def _faults(stage: Stage, shape: ModelShape) -> Iterator[tuple[str, str, str]]:
    """(what is wrong, what is allowed, the next step) of each fault."""
    reason = why_not_loadable(
        shape.stored, trains_all=not update(stage.update).is_module, quantization=stage.quantization
    )
    if reason:
        wanted = f"quantization {stage.quantization}" if stage.quantization else stage.update
        what = f"{wanted} does not go with {shape.id}: {reason}"
        if shape.stored in WRITTEN_OUT:
            hint = "`advise estimate` shows what 2 bytes a weight need"
            yield what, "quantization: null", hint
        else:
            hint = "name the model that the checkpoint was made from"
            yield what, "update: lora with quantization: null", hint
    if stage.attention == "sdpa" and shape.architecture in NO_SDPA:
        what = f"transformers has no sdpa attention for {shape.architecture} models"
        yield what, "attention: eager", ""
    is_dense = shape.origin != "size" and not shape.is_mixture  # "size": a guess by its name
    if stage.options.get("target_modules") == WITH_EXPERTS and is_dense:
        what = f"target_modules: {WITH_EXPERTS} needs a mixture of experts, and {shape.id} is none"
        yield what, "target_modules: all-linear, or a list of names", ""
