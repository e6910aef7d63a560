"""Whether this machine has the devices that the plan was made for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from msgspec.structs import replace

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.files import free_path
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import format_gib
from advisor.launch.call import Call
from advisor.plan.model import Plan
from advisor.probe.software import cuda_problem
from advisor.record.smaller import key_path

PHASE = "machine"
VISIBLE = "CUDA_VISIBLE_DEVICES (ROCm: HIP_VISIBLE_DEVICES)"
RUN, PACK = "advise run", "advise export --to bundle"  # they take ./plan.yaml unnamed
ALIKE = 0.02  # of the memory: boards of one kind report a little more or less


def check(call: Call) -> Checked:
    """Devices that are missing or unusable, and the settings for fewer GPUs than the plan wants."""
    plan, hardware, chosen = call.run.plan, call.machine, call.gpus.gpus
    run, pack = _lines(call)
    found = device_faults(plan, hardware, chosen, run=run, pack=pack)
    uneven = uneven_gpus_warning(plan, chosen)
    there = len(hardware.gpus)
    usable = hardware.kind == plan.launch.device and there and plan.launch.nodes == 1
    if usable and plan.launch.processes > there:
        again = f"{VISIBLE} may hide some; with about as many rows a step, in more time:"
        hint = f"{again}\n    {run} {settings_for(there, call)}"
        found[0] = replace(found[0], hint=hint)
    return Checked(lacking=found, warnings=[uneven] if uneven else [])


def _lines(call: Call) -> tuple[str, str]:
    """The lines that run and that pack the plan: of its file, or of the answers that made it."""
    if flags := call.options.flags:
        plan = free_path()
        return f"advise run {flags}", (
            f"advise {flags} --plan {plan}\n    advise export {plan} --to bundle"
        )
    path = shlex.quote(str(call.run.path))
    return f"advise run {path}", f"advise export {path} --to bundle"


def settings_for(gpus: int, call: Call) -> str:
    """The words for a command line that share the plan out over fewer GPUs."""
    launch, words = call.run.plan.launch, [f"--set launch.processes={gpus}"]
    if gpus == 1 and launch.strategy is not None:
        words.append("--set launch.strategy=null")
    if gpus == 1 and launch.offload:
        words.append("--set launch.offload=false")
    for entry in call.left:
        accum = max(1, round(entry.stage.grad_accum * launch.processes / gpus))
        words.append(f"--set {key_path(entry, 'grad_accum')}={accum}")
    return " ".join(dict.fromkeys(words))  # several tasks share a stage


def device_missing(
    plan: Plan, hardware: Hardware, *, run: str = RUN, pack: str = PACK
) -> Fault | None:
    """That this machine has no device of the plan's kind, or too few; None if it has.

    Args:
        run: The line that runs the plan.
        pack: The lines that pack it.
    """
    device, processes = plan.launch.device, plan.launch.processes
    if device == "cpu":
        return None
    if hardware.kind != device:
        name = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU"}.get(device, "an Apple GPU")
        notes = f" ({'; '.join(hardware.notes)})" if hardware.notes else ""
        here = hardware.gpus[0].name if hardware.gpus else f"no usable GPU{notes}"
        return Fault(
            what=f"the plan is for {name} (launch.device: {device}), and this machine has {here}",
            allowed="`advise probe` shows what there is",
            hint=f"take it to a machine that has one:\n    {pack}\n"
            f"  or train it on the CPU, much slower:\n    {run} --set launch.device=cpu",
        )
    there = len(hardware.gpus)
    if processes <= there:
        return None
    each = " on each machine" if plan.launch.nodes > 1 else ""
    return Fault(
        where="launch.processes",
        what=f"the plan wants {processes} processes{each}, one per GPU, and {there} can be used"
        f" here: {processes - there} too few",
        hint=f"{VISIBLE} may hide some",
    )


def device_faults(
    plan: Plan, hardware: Hardware, chosen: Sequence[Gpu] = (), *, run: str = RUN, pack: str = PACK
) -> list[Fault]:
    """What keeps the plan's processes from the device that it names.

    Args:
        chosen: The GPUs of the run; default: all.
        run: The line that runs the plan.
        pack: The lines that pack it.
    """
    missing = device_missing(plan, hardware, run=run, pack=pack)
    found = [] if missing is None else [missing]
    if plan.launch.device == "cpu" or hardware.kind != plan.launch.device:
        return found
    problem = cuda_problem(replace(hardware, gpus=tuple(chosen)) if chosen else hardware)
    if problem is not None:
        what, _, install = problem.partition(" Install: ")
        hint = install or "see above; --set launch.device=cpu trains on the CPU"
        found.append(Fault(what=what, hint=hint))
    return found


def uneven_gpus_warning(plan: Plan, chosen: Sequence[Gpu]) -> str:
    """A warning if the GPUs of one training are not alike; empty if they are."""
    names = list(dict.fromkeys(gpu.name for gpu in chosen))
    known = [gpu.memory_total_bytes for gpu in chosen if gpu.memory_total_bytes is not None]
    uneven = bool(known) and min(known) < (1 - ALIKE) * max(known)
    if plan.launch.processes < 2 or (len(names) < 2 and not uneven):
        return ""
    held = f" with {format_gib(min(known))}" if known else ""
    return (
        f"the GPUs of this run are not alike ({', '.join(names)}): every process needs the same"
        f" memory, so the smallest{held} decides what fits, and the slowest sets the pace"
    )
