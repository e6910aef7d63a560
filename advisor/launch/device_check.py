"""Whether this machine has the device that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from advisor.ground.errors import Fault
from advisor.ground.types import Gpu, Hardware
from advisor.launch.gpus import lacks_bfloat16
from advisor.methods import update
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.smaller import key_path


def device_faults(plan: Plan, hardware: Hardware, chosen: Sequence[Gpu] = ()) -> Iterable[Fault]:
    """What keeps the plan's processes from the device that it names.

    Args:
        plan: What is run.
        hardware: The machine.
        chosen: The GPUs of the run; default: all.
    """
    from advisor.probe.software import cuda_problem

    device, processes = plan.launch.device, plan.launch.processes
    name = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "mps": "an Apple GPU"}.get(
        device, "the CPU"
    )
    if device == "cpu":
        return
    notes = f" ({'; '.join(hardware.notes)})" if hardware.notes and not hardware.gpus else ""
    if hardware.kind != device:
        here = (
            f"this machine has {hardware.gpus[0].name}"
            if hardware.gpus
            else f"this machine has no usable GPU{notes}"
        )
        yield Fault(
            what=f"the plan is for {name} (launch.device: {device}), and {here}",
            allowed="`advise probe` shows what there is",
            hint=(
                "make a plan for this machine with `advise`, or train this one on the CPU: --set"
                " launch.device=cpu (much slower)"
            ),
        )
        return
    if processes > len(hardware.gpus):
        yield Fault(
            what=(
                f"the plan wants {processes} processes, one per GPU, and"
                f" {len(hardware.gpus)} can be used here"
            ),
            hint=(
                f"--set launch.processes={len(hardware.gpus)}, or check CUDA_VISIBLE_DEVICES"
                " (ROCm: HIP_VISIBLE_DEVICES)"
            ),
        )
    problem = cuda_problem(replace(hardware, gpus=tuple(chosen)) if chosen else hardware)
    if problem is not None:
        what, _, install = problem.partition(" Install: ")
        yield Fault(
            what=what, hint=install or "see above; --set launch.device=cpu trains on the CPU"
        )


def dtype_faults(todo: Sequence[Entry], gpus: Sequence[Gpu]) -> Iterable[Fault]:
    """Stages in bfloat16 on a GPU that is too old for it."""
    for entry in todo:
        old = next((gpu for gpu in gpus if lacks_bfloat16(entry, gpu)), None)
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
