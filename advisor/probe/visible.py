"""Which of a machine's devices this process may use: CUDA_VISIBLE_DEVICES and MIG, read as CUDA
reads them; of AMD devices ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES, as ROCm reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.ground.types import Gpu

VARIABLE = "CUDA_VISIBLE_DEVICES"
ROCR, HIP = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuBoard:
    """One GPU as NVML lists it, and its MIG devices where it is cut into slices."""

    gpu: Gpu
    mig_enabled: bool = False
    slices: tuple[Gpu, ...] = ()

    @property
    def first(self) -> Gpu | None:
        """What an index means: the GPU, or its first slice; None if it is cut into none."""
        return (self.slices[0] if self.slices else None) if self.mig_enabled else self.gpu


def usable(
    boards: Sequence[GpuBoard], environ: Mapping[str, str]
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The devices this process may use, in CUDA's order, and what is hidden and why."""
    value = environ.get(VARIABLE)
    notes = [
        f"{board.gpu.name} (GPU {board.gpu.index}) is in MIG mode and holds no slice: it cannot be"
        " used"
        for board in boards
        if board.mig_enabled and not board.slices
    ]
    if value is None:
        whole = (board.slices if board.mig_enabled else (board.gpu,) for board in boards)
        chosen, more = _one_slice([device for devices in whole for device in devices])
        return tuple(chosen), (*notes, *more)
    listed, ended = _listed(boards, value, environ)
    chosen, more = _one_slice(listed)
    unused = (
        (board.gpu.index, board.gpu)
        for board in boards
        if not any(device is board.gpu or device in board.slices for device in chosen)
    )
    return tuple(chosen), (*notes, *ended, *more, *_hidden(unused, f"{VARIABLE}={value}"))


def usable_amd(
    gpus: Sequence[Gpu], environ: Mapping[str, str]
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The AMD devices this process may use, with the index that HIP gives each, and what is hidden.

    ROCR_VISIBLE_DEVICES comes first; HIP_VISIBLE_DEVICES (without it, CUDA_VISIBLE_DEVICES) counts
    among those that are left (ROCm documentation, "GPU isolation techniques").
    """
    left, hidden = list(gpus), []
    for name in (ROCR, HIP if environ.get(HIP) else VARIABLE):
        if environ.get(name):
            chosen = _numbered(left, environ[name])
            others = [pair for pair in enumerate(left) if not _is_among(pair[1], chosen)]
            hidden += _hidden(others, f"{name}={environ[name]}")
            left = chosen
        if name == ROCR:
            left = [replace(gpu, index=index) for index, gpu in enumerate(left)]
    return tuple(left), tuple(hidden)


def _numbered(gpus: Sequence[Gpu], value: str) -> list[Gpu]:
    """The devices that a list of numbers or UUIDs names, up to the first word that names none."""
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry.isdigit():
            found = gpus[int(entry) : int(entry) + 1]
        else:
            found = [gpu for gpu in gpus if entry and gpu.uuid == entry]
        if not found or _is_among(found[0], chosen):
            break
        chosen.append(found[0])
    return chosen


def _is_among(gpu: Gpu, gpus: Iterable[Gpu]) -> bool:
    return any(gpu is other for other in gpus)  # two GPUs may be equal


def _hidden(gpus: Iterable[tuple[int | None, Gpu]], setting: str) -> list[str]:
    names = ", ".join(f"GPU {index} ({gpu.name})" for index, gpu in gpus)
    return [f"hidden by {setting}: {names}"] if names else []


def _listed(
    boards: Sequence[GpuBoard], value: str, environ: Mapping[str, str]
) -> tuple[list[Gpu], list[str]]:
    """The devices a list names: CUDA ends it at an unknown entry and refuses a repetition."""
    chosen: list[Gpu] = []
    notes: list[str] = []
    by_index = False
    for entry in (part.strip() for part in value.split(",")):
        device = _resolved(boards, entry)
        if device is None:
            ended = f"{VARIABLE}={value}: '{entry}' names no device, so the list ends there"
            notes += [ended] if entry not in ("", "-1") or chosen else []
            break
        if _is_among(device, chosen):
            return [], [f"{VARIABLE}={value}: '{entry}' repeats a device, so CUDA shows none"]
        chosen.append(device)
        by_index = by_index or not entry.startswith(("GPU-", "MIG-"))
    differ = len({board.gpu.name for board in boards}) > 1 and len(chosen) < len(boards)
    if by_index and differ and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        notes.append(
            f"{VARIABLE}={value}: the cards differ and CUDA numbers the fastest first, this list by"
            " the slot, so another card may be meant; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name the"
            " card by its UUID"
        )
    return chosen, notes


def _resolved(boards: Sequence[GpuBoard], entry: str) -> Gpu | None:
    if entry.startswith("MIG-"):
        return _by_uuid([device for board in boards for device in board.slices], entry)
    if entry.startswith("GPU-"):
        gpu = _by_uuid([board.gpu for board in boards], entry)
        return next((board.first for board in boards if board.gpu is gpu), None)
    number = re.match(r"\+?(\d+)", entry)  # CUDA reads digits and ignores what follows
    index = int(number[1]) if number else -1
    return next((board.first for board in boards if board.gpu.index == index), None)


def _by_uuid(devices: Sequence[Gpu], entry: str) -> Gpu | None:
    """The device whose UUID begins with the entry, if there is exactly one."""
    found = [device for device in devices if (device.uuid or "").startswith(entry)]
    return found[0] if len(found) == 1 else None


def _one_slice(chosen: Sequence[Gpu]) -> tuple[list[Gpu], list[str]]:
    """One process sees one MIG slice and no whole GPU beside it (NVIDIA MIG user guide)."""
    slices = [device for device in chosen if device.mig_profile is not None]
    if not slices or len(chosen) == 1:
        return list(chosen), []
    return slices[:1], [
        f"CUDA shows a process one MIG slice and nothing beside it: {slices[0].name} is used,"
        f" {len(chosen) - 1} more cannot be"
    ]
