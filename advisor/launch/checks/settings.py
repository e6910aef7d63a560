"""Whether the processes, number formats and optimizers of the plan go with this machine."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.launch.call import Call, lacks_bfloat16
from advisor.methods import update
from advisor.plan.checks import launch_faults, optimizer_faults
from advisor.record.smaller import key_path

PHASE = "plan"


def check(call: Call) -> Checked:
    """Settings that no run on this machine can have."""
    plan = call.run.plan
    device = "cuda" if plan.launch.device == "rocm" else plan.launch.device
    stages = {entry.stage.name: entry.stage for entry in call.left}.values()
    optimizers = [fault for stage in stages for fault in optimizer_faults(stage, device)]
    return Checked(bad=[*launch_faults(plan), *_dtype_faults(call), *optimizers])


def _dtype_faults(call: Call) -> Iterator[Fault]:
    """Stages in bfloat16 on a GPU that is too old for it."""
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
