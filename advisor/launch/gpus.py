"""Which GPUs a run takes, and how its trainers come to see them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import format_gib
from advisor.plan.entries import Entry
from advisor.plan.model import Plan

CUDA_LIST, CUDA_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
HIP_LIST = "HIP_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenGpus:
    """The GPUs of a run."""

    gpus: tuple[Gpu, ...] = ()
    # Variables for the trainers' environment; None: unset it. Empty: whatever is visible.
    environment: Mapping[str, str | None] = field(default_factory=dict)
    why: str = ""  # empty if there was no choice
    # The same for a vLLM server that is started: the GPUs that are left over, or those of training.
    server: Mapping[str, str | None] = field(default_factory=dict)


def choose_gpus(
    plan: Plan, todo: Sequence[Entry], hardware: Hardware, environ: Mapping[str, str]
) -> ChosenGpus:
    """The GPUs with most free memory among those that can run the plan, one for each process.

    Args:
        environ: This process's environment, which may show a part of the GPUs alone.
    """
    if plan.launch.device not in ("cuda", "rocm") or hardware.kind != plan.launch.device:
        return ChosenGpus()
    places = range(len(hardware.gpus))
    unfit = {place: why for place in places if (why := _why_unfit(place, todo, hardware))}
    order = sorted(
        places, key=lambda place: (place in unfit, -(hardware.gpus[place].memory_free_bytes or 0))
    )
    processes = plan.launch.processes
    taken = sorted(order[:processes])
    more = plan.launch.vllm.gpus if plan.launch.vllm is not None else 0
    served = sorted(order[processes : processes + more]) if more else taken
    return ChosenGpus(
        gpus=tuple(hardware.gpus[place] for place in taken),
        environment=_environment(taken, hardware, environ),
        why=_why(taken, unfit, hardware),
        server=_environment(served, hardware, environ),
    )


def lacks_bfloat16(entry: Entry, gpu: Gpu) -> bool:
    """Whether the entry needs bfloat16 and the GPU has none."""
    return entry.stage.weights_dtype == "bfloat16" and gpu.bf16 is False


def _why_unfit(place: int, todo: Sequence[Entry], hardware: Hardware) -> str:
    """Why a GPU cannot run the plan; empty if nothing speaks against it."""
    from advisor.probe.software import cuda_problem

    gpu = hardware.gpus[place]
    if any(lacks_bfloat16(entry, gpu) for entry in todo):
        return "has no bfloat16"
    if cuda_problem(replace(hardware, gpus=(gpu,))) is not None:
        return "cannot be used by the installed PyTorch"
    return ""


def _environment(
    taken: Sequence[int], hardware: Hardware, environ: Mapping[str, str]
) -> dict[str, str | None]:
    """What makes the trainers see these GPUs alone.

    By UUID if NVIDIA's driver tells it. Else by number: numbers count among the GPUs that the
    user's own list shows, so the words of that list are kept.
    """
    gpus = [hardware.gpus[place] for place in taken]
    numbers = [str(gpu.index) for gpu in gpus if gpu.index is not None]
    if hardware.kind == "rocm":
        # HIP reads this before CUDA_VISIBLE_DEVICES, which could contradict it. A list in
        # ROCR_VISIBLE_DEVICES stays: the numbers count among the devices that it leaves.
        known = len(numbers) == len(gpus)
        return {HIP_LIST: ",".join(numbers), CUDA_LIST: None} if known and gpus else {}
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid]
    if gpus and len(uuids) == len(gpus):
        return {CUDA_LIST: ",".join(uuids)}
    own = [word.strip() for word in environ.get(CUDA_LIST, "").split(",") if word.strip()]
    if own and len(own) >= len(hardware.gpus):
        return {CUDA_LIST: ",".join(own[place] for place in taken)}
    if gpus and not own and len(numbers) == len(gpus):
        # The driver numbers by slot; CUDA would put the fastest first.
        return {CUDA_LIST: ",".join(numbers), CUDA_ORDER: "PCI_BUS_ID"}
    return {}


def gpu_words(gpu: Gpu, place: int) -> str:
    """'GPU 3 (NVIDIA H100 80GB HBM3)'."""
    return f"GPU {place if gpu.index is None else gpu.index} ({gpu.name})"


def _why(taken: Sequence[int], unfit: Mapping[int, str], hardware: Hardware) -> str:
    if not taken or len(taken) == len(hardware.gpus):
        return ""
    all_gpus = hardware.gpus
    names = ", ".join(gpu_words(all_gpus[place], place) for place in taken)
    free = [all_gpus[place].memory_free_bytes for place in taken]
    rest = [
        gpu.memory_free_bytes or 0
        for place, gpu in enumerate(all_gpus)
        if place not in taken and place not in unfit
    ]
    known = [size for size in free if size is not None]
    if not known or len(known) < len(free):
        why = "the first of those that are visible"
    elif rest and format_gib(max(rest)) == format_gib(min(known)):
        why = f"{format_gib(min(known))} free, as much as on any other"
    else:
        least = "at least " if len(known) > 1 else ""
        why = f"{least}{format_gib(min(known))} free, the most of {len(all_gpus)} GPUs"
    left = "; ".join(
        f"{gpu_words(all_gpus[place], place)} {reason}"
        for place, reason in unfit.items()
        if place not in taken
    )
    return f"{names}: {why}{f'; {left}' if left else ''}"
