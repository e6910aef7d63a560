"""Whether this machine has the device that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.ground.errors import Fault
from advisor.ground.types import DataProfile, Gpu, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.launch.expected import expect_stage
from advisor.launch.gpus import lacks_bfloat16
from advisor.methods import update
from advisor.plan.checks import goes_with
from advisor.plan.entries import Entry
from advisor.plan.model import Plan, Stage
from advisor.record.smaller import Change, as_settings, key_path, smallest_that_fits, together
from advisor.record.stage import Expected

VISIBLE = "CUDA_VISIBLE_DEVICES (ROCm: HIP_VISIBLE_DEVICES)"
ALIKE = 0.02  # of the memory: boards of one kind report a little more or less


def device_missing(plan: Plan, hardware: Hardware) -> Fault | None:
    """That this machine has no device of the plan's kind, or too few; None if it has."""
    device, processes = plan.launch.device, plan.launch.processes
    if device == "cpu":
        return None
    if hardware.kind != device:
        name = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU"}.get(device, "an Apple GPU")
        notes = f" ({'; '.join(hardware.notes)})" if hardware.notes and not hardware.gpus else ""
        here = (
            f"this machine has {hardware.gpus[0].name}"
            if hardware.gpus
            else f"this machine has no usable GPU{notes}"
        )
        return Fault(
            what=f"the plan is for {name} (launch.device: {device}), and {here}",
            allowed="`advise probe` shows what there is",
            hint=(
                "take it to a machine that has one: advise export PLAN --to bundle; or train it on"
                " the CPU: --set launch.device=cpu (much slower)"
            ),
        )
    there = len(hardware.gpus)
    if processes > there:
        each = " on each machine" if plan.launch.nodes > 1 else ""
        return Fault(
            where="launch.processes",
            what=(
                f"the plan wants {processes} processes{each}, one per GPU, and {there} can be used"
                f" here: {processes - there} too few"
            ),
            hint=f"{VISIBLE} may hide some",
        )
    return None


def differing_gpus(plan: Plan, chosen: Sequence[Gpu]) -> str:
    """A warning where the GPUs of one training are not alike; empty where they are, or one trains
    alone.
    """
    sizes = [gpu.memory_total_bytes for gpu in chosen]
    names = list(dict.fromkeys(gpu.name for gpu in chosen))
    known = [size for size in sizes if size is not None]
    uneven = bool(known) and min(known) < (1 - ALIKE) * max(known)
    if plan.launch.processes < 2 or (len(names) < 2 and not uneven):
        return ""
    held = f" with {format_gib(min(known))}" if known else ""
    return (
        f"the GPUs of this run are not alike ({', '.join(names)}): every process needs the same"
        f" memory, so the smallest{held} decides what fits, and the slowest sets the pace"
    )


def device_faults(plan: Plan, hardware: Hardware, chosen: Sequence[Gpu] = ()) -> list[Fault]:
    """What keeps the plan's processes from the device that it names.

    Args:
        chosen: The GPUs of the run; default: all.
    """
    from advisor.probe.software import cuda_problem

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


FITS = ("fits", "tight")


@dataclass(frozen=True, kw_only=True, slots=True)
class OnFewer:
    """What the plan would take on the GPUs that are here."""

    words: str  # "on 1 GPU it would fit: 9.1 GiB of 24.0 GiB, and take about twice as long"
    settings: str  # for the command line; empty where nothing of ours fits


def on_fewer(
    plan: Plan,
    todo: Sequence[Entry],
    shape: ModelShape | None,
    hardware: Hardware,
    profiles: Mapping[str, DataProfile],
) -> OnFewer:
    """What the same training with as many rows a step takes on all GPUs of this machine."""
    count = len(hardware.gpus)
    gpus = "1 GPU" if count == 1 else f"{count} GPUs"
    strategy = None if count == 1 else plan.launch.strategy
    offload = plan.launch.offload and strategy is not None
    launch = replace(plan.launch, processes=count, strategy=strategy, offload=offload)
    fewer = replace(plan, launch=launch)
    words = ["--set launch.processes=" + str(count)]
    if strategy != plan.launch.strategy:
        words.append("--set launch.strategy=null")
    if offload != plan.launch.offload:
        words.append("--set launch.offload=false")

    def expected(entry: Entry, stage: Stage) -> Expected:
        changed = replace(entry, stage=stage)
        return expect_stage(fewer, changed, shape, hardware, profile=profiles.get(entry.data.path))

    changes, fullest = dict[str, str](), None
    for entry in todo:
        rows = _as_many_rows(entry.stage, plan.launch.processes, count)
        found = expected(entry, rows.applied(entry.stage))
        if found.fits not in (*FITS, "unknown"):
            smaller = smallest_that_fits(
                rows.applied(entry.stage),
                lambda stage, entry=entry: (  # type: ignore[misc]
                    goes_with(fewer, stage) and expected(entry, stage).fits in FITS
                ),
            )
            if smaller is None:
                here = f"on {gpus} {_needs(found, entry)}: it does not fit"
                return OnFewer(words=here, settings="")
            rows = together([rows, smaller])
            found = expected(entry, rows.applied(entry.stage))
        changes[entry.stage.name] = as_settings(entry, rows)
        if fullest is None or (found.need_bytes or 0) > (fullest[0].need_bytes or 0):
            fullest = found, entry
    assert fullest is not None  # a run has an entry to train
    longer = f"about {plan.launch.processes / count:.2g} times as long"
    what = f"{_needs(*fullest)}: it fits, and takes {longer}" if fullest[0].need_bytes else longer
    return OnFewer(words=f"on {gpus} {what}", settings=" ".join((*words, *changes.values())))


def _as_many_rows(stage: Stage, wanted: int, there: int) -> Change:
    """More accumulation, so that a step reads as many rows on fewer GPUs, or as nearly as it
    divides.
    """
    accum = max(1, round(stage.grad_accum * wanted / there))
    return Change({"grad_accum": accum}, "as many rows a step on fewer GPUs")


def _needs(found: Expected, entry: Entry) -> str:
    need, limit = found.need_bytes, found.limit_bytes
    if need is None or limit is None:
        return f"stage {entry.name}"
    return f"stage {entry.name} needs about {format_gib(need)} of {format_gib(limit)}"
