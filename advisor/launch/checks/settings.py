"""Whether processes, number formats and optimizers go with this machine, and with the model."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.estimate.model.architecture import NO_SDPA, WRITTEN_OUT, why_not_loadable
from advisor.estimate.targets import WITH_EXPERTS
from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.types import FSDP, ModelShape
from advisor.launch.call import Call, lacks_bfloat16
from advisor.methods import update
from advisor.methods.model import NF4_BLOCK
from advisor.plan.checks import launch_faults, optimizer_faults
from advisor.plan.model import Stage
from advisor.record.smaller import key_path

PHASE = "plan"


def check(call: Call) -> Checked:
    """Settings that no run on this machine can have."""
    plan, divided = call.run.plan, call.run.plan.launch.strategy == FSDP
    device = "cuda" if plan.launch.device == "rocm" else plan.launch.device
    stages = {entry.stage.name: entry.stage for entry in call.left}.values()
    optimizers = [fault for stage in stages for fault in optimizer_faults(stage, device)]
    loading = [
        Fault(where=f"stage {entry.name}", what=what, allowed=allowed, hint=hint)
        for entry in call.left
        if call.shape is not None
        for what, allowed, hint in _loading_faults(entry.stage, call.shape, divided=divided)
    ]
    return Checked(bad=[*launch_faults(plan), *_dtype_faults(call), *optimizers, *loading])


def _dtype_faults(call: Call) -> Iterator[Fault]:
    for entry in call.left:
        old = next((gpu for gpu in call.gpus.gpus if lacks_bfloat16(entry, gpu)), None)
        if old is None:
            continue
        level = (
            f" (compute capability {'.'.join(map(str, old.compute_capability))}; from 8.0 on)"
            if old.compute_capability
            else ""
        )
        # Trained weights in float16 have no loss scaling; a module stays in float32 beside them.
        dtype = "float16" if update(entry.stage.update).is_module else "float32"
        dtype_at, precision_at = (key_path(entry, key) for key in ("weights_dtype", "precision"))
        yield Fault(
            where=f"stage {entry.name}",
            what=f"weights_dtype is bfloat16, and {old.name}{level} has none",
            allowed=f"weights_dtype: {dtype} with precision: mixed",
            hint=f"--set {dtype_at}={dtype} --set {precision_at}=mixed",
        )


def _loading_faults(
    stage: Stage, shape: ModelShape, *, divided: bool
) -> Iterator[tuple[str, str, str]]:
    """(what is wrong, what is allowed, the next step), of what transformers cannot load so."""
    reason = why_not_loadable(
        shape.stored,
        trains_all=not update(stage.update).is_module,
        quantization=stage.quantization,
        divided=divided and not stage.divides_base,
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
    widths = [shape.hidden_size, shape.expert_size or shape.intermediate_size]
    if (
        stage.quantization == "nf4"
        and shape.is_mixture
        and (stage.divides_base or not divided)  # else experts stay in 16 bit
        and any(one and one % NF4_BLOCK for one in widths)
    ):
        what = (
            f"the experts of {shape.id} cannot be packed in 4 bits: rows of"
            f" {' and '.join(map(str, widths))} numbers, and a block has {NF4_BLOCK}"
        )
        yield what, "quantization: null", ""
    if stage.attention == "sdpa" and shape.architecture in NO_SDPA:
        what = f"transformers has no sdpa attention for {shape.architecture} models"
        yield what, "attention: eager", ""
    is_dense = shape.origin != "size" and not shape.is_mixture  # "size": a guess by its name
    if stage.options.get("target_modules") == WITH_EXPERTS and is_dense:
        what = f"target_modules: {WITH_EXPERTS} needs a mixture of experts, and {shape.id} is none"
        yield what, "target_modules: all-linear, or a list of names", ""
