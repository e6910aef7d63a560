"""Whether this machine has the devices that the plan was made for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.ground.types import Gpu, Hardware, as_free_now
from advisor.ground.units import format_gib
from advisor.launch.call import Call
from advisor.launch.expected import StageEstimator
from advisor.plan.checks import can_share
from advisor.plan.entries import Entry
from advisor.plan.model import Plan, Stage
from advisor.probe.software import cuda_problem
from advisor.record.smaller import Change, as_settings, combine, smallest_that_fits
from advisor.record.stage import Expected

PHASE = "machine"
VISIBLE = "CUDA_VISIBLE_DEVICES (ROCm: HIP_VISIBLE_DEVICES)"
ALIKE = 0.02  # of the memory: boards of one kind report a little more or less
FITS = ("fits", "tight")


def check(call: Call) -> Checked:
    """Devices that are missing or unusable, and what a plan for more GPUs would take here."""
    plan, hardware, chosen = call.run.plan, call.machine, call.gpus.gpus
    found = device_faults(plan, hardware, chosen)
    uneven = uneven_gpus_warning(plan, chosen)
    usable = hardware.kind == plan.launch.device and hardware.gpus and plan.launch.nodes == 1
    if usable and plan.launch.processes > len(hardware.gpus) and call.left:
        here = estimate_on_fewer(replace(call.estimator, hardware=as_free_now(hardware)), call.left)
        path = shlex.quote(str(call.run.path))
        hint = f"{VISIBLE} may hide some; advise run {path} {here.settings}"
        if not here.settings:
            hint = found[0].hint
        found[0] = replace(found[0], allowed=here.words, hint=hint)
    return Checked(lacking=found, warnings=[uneven] if uneven else [])


def device_missing(plan: Plan, hardware: Hardware) -> Fault | None:
    """That this machine has no device of the plan's kind, or too few; None if it has."""
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
            hint="take it to a machine that has one: advise export PLAN --to bundle; or train it on"
            " the CPU: --set launch.device=cpu (much slower)",
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


def device_faults(plan: Plan, hardware: Hardware, chosen: Sequence[Gpu] = ()) -> list[Fault]:
    """What keeps the plan's processes from the device that it names.

    Args:
        chosen: The GPUs of the run; default: all.
    """
    missing = device_missing(plan, hardware)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FewerGpus:
    """What the plan would take on the GPUs that are here."""

    words: str  # "on 1 GPU it would fit: 9.1 GiB of 24.0 GiB, and take about twice as long"
    settings: str  # for the command line; empty if nothing of ours fits


def estimate_on_fewer(planned: StageEstimator, todo: Sequence[Entry]) -> FewerGpus:
    """What the same training with as many rows a step takes on all GPUs of this machine.

    Args:
        planned: Estimates the plan as it is, on the whole machine.
    """
    plan, count = planned.plan, len(planned.hardware.gpus)
    gpus = "1 GPU" if count == 1 else f"{count} GPUs"
    strategy = None if count == 1 else plan.launch.strategy
    offload = plan.launch.offload and strategy is not None
    launch = replace(plan.launch, processes=count, strategy=strategy, offload=offload)
    fewer = replace(planned, plan=replace(plan, launch=launch))
    words = ["--set launch.processes=" + str(count)]
    if strategy != plan.launch.strategy:
        words.append("--set launch.strategy=null")
    if offload != plan.launch.offload:
        words.append("--set launch.offload=false")

    def expected(entry: Entry, stage: Stage) -> Expected:
        return fewer.expect(replace(entry, stage=stage))

    changes, found = dict[str, str](), list[tuple[Entry, Expected]]()
    for entry in todo:
        # More accumulation, so that a step reads as many rows, or as nearly as it divides.
        accum = max(1, round(entry.stage.grad_accum * plan.launch.processes / count))
        change = Change({"grad_accum": accum}, "as many rows a step on fewer GPUs")
        need = expected(entry, change.applied(entry.stage))
        if need.fits not in (*FITS, "unknown"):
            smaller = smallest_that_fits(
                change.applied(entry.stage),
                lambda stage, entry=entry: (  # type: ignore[misc]
                    can_share(fewer.plan, stage) and expected(entry, stage).fits in FITS
                ),
            )
            if smaller is None:
                here = f"on {gpus} {_needs(need, entry)}: it does not fit"
                return FewerGpus(words=here, settings="")
            change = combine([change, smaller])
            need = expected(entry, change.applied(entry.stage))
        changes[entry.stage.name] = as_settings(entry, change)
        found.append((entry, need))
    entry, fullest = max(found, key=lambda one: one[1].need_bytes or 0)
    longer = f"about {plan.launch.processes / count:.2g} times as long"
    what = f"{_needs(fullest, entry)}: it fits, and takes {longer}"
    what = what if fullest.need_bytes else longer
    return FewerGpus(words=f"on {gpus} {what}", settings=" ".join((*words, *changes.values())))


def _needs(found: Expected, entry: Entry) -> str:
    need, limit = found.need_bytes, found.limit_bytes
    if need is None or limit is None:
        return f"stage {entry.name}"
    return f"stage {entry.name} needs about {format_gib(need)} of {format_gib(limit)}"
