"""NVIDIA cards through NVML (pynvml): what is plugged in, what is free, and what this process may
use of it.

Whatever NVML cannot say is a None or a note: no driver, a driver without a card, a library that
does not fit the kernel module, functions a card or an old driver lacks, missing permissions. pynvml
costs 25 ms to import, so it is imported only where the driver's library can be loaded.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.types import Gpu, GpuProcess, GpuSpec, Hardware
from advisor.probe.catalogue import interconnect_of, match_probed
from advisor.probe.system import (
    ROOT,
    VISIBLE,
    has_battery,
    hidden_note,
    is_among,
    keep_free,
    keep_ram_free,
    kept_free_note,
    read_or_empty,
)

LIBRARY = "libnvidia-ml.so.1"
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"


def probe_nvidia(
    system: Hardware, environ: Mapping[str, str] | None = None, *, root: Path = ROOT
) -> Hardware:
    """The NVIDIA devices this process may use; what went wrong is a note.

    GPUs that share memory with the CPU (Jetson, GB10) report none: the system's memory counts.
    """
    nothing = Hardware(kind="cuda", origin="probed")
    if sys.platform == "darwin":
        return nothing
    problem = _library_problem(root)
    if problem is not None:
        return replace(nothing, notes=(problem,) if problem else ())
    try:
        import pynvml
    except ImportError as error:
        note = "an NVIDIA driver is there, but the Python package nvidia-ml-py cannot be imported"
        return replace(nothing, notes=(f"{note} ({error})",))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return replace(nothing, notes=(_why_not(pynvml, error, root),))
    nvml = _Nvml(pynvml, system, root)
    try:
        return nvml.facts(os.environ if environ is None else environ)
    finally:
        nvml.ask(pynvml.nvmlShutdown)


def _library_problem(root: Path) -> str | None:
    """Why the driver's library does not load: "" without an NVIDIA GPU; None if it loads."""
    if sys.platform == "win32":
        return None  # pynvml knows where Windows keeps it
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
        return None
    except OSError as error:
        if "No such file" not in str(error):
            return f"the NVIDIA driver library is broken: {error}"
    model = read_or_empty(root / "proc/device-tree/model").strip("\0 ")
    if (root / "proc/driver/nvidia/version").exists():
        return (
            f"the NVIDIA kernel driver is loaded, but its library {LIBRARY} is not installed here"
            " (in a container: start it with the GPUs passed through)"
        )
    if (root / "usr/lib/wsl/lib" / LIBRARY).exists():
        return (
            "the driver library lies in /usr/lib/wsl/lib and is not found: add that folder to"
            " LD_LIBRARY_PATH to use the card"
        )
    if "NVIDIA" in model:  # a Jetson whose system brings no NVML
        return (
            f"{model}: its GPU cannot be asked without {LIBRARY}; name it yourself to plan for it"
        )
    slots = _plugged_in(root)
    return f"an NVIDIA card is plugged in ({slots}), but no NVIDIA driver is installed" * bool(
        slots
    )


def _plugged_in(root: Path) -> str:
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return ", ".join(
        device.name
        for device in devices
        if read_or_empty(device / "vendor") == NVIDIA_VENDOR
        and read_or_empty(device / "class").startswith(DISPLAY_CLASS)
    )


def _why_not(pynvml: Any, error: Any, root: Path) -> str:
    slots = _plugged_in(root)
    seen = f" (card in {slots})" if slots else ", and no NVIDIA card is seen"
    known = {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: f"driver is installed but not loaded{seen}",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "driver was updated while its old kernel module is still loaded: restart the machine"
        ),
        pynvml.NVML_ERROR_NO_PERMISSION: (
            "driver refuses this user access to the card (permissions of /dev/nvidia*)"
        ),
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "driver is too old to be asked about its cards",
    }
    otherwise = f"driver cannot be asked about its cards: {error}"
    return f"the NVIDIA {known.get(getattr(error, 'value', None), otherwise)}"


def process_name(pid: int, root: Path) -> str:
    """The name of a program; "" in a container, where the driver's numbers mean others."""
    on_the_machine = read_or_empty(root / "proc/1/comm") in ("systemd", "init")
    return read_or_empty(root / f"proc/{pid}/comm") if on_the_machine else ""


class _Nvml:
    """One conversation with an initialised NVML."""

    def __init__(self, pynvml: Any, system: Hardware, root: Path) -> None:
        self.nvml, self.system, self.root = pynvml, system, root
        mismatch = getattr(pynvml, "NVMLLibraryMismatchError", pynvml.NVMLError)
        self.errors = (pynvml.NVMLError, mismatch, UnicodeDecodeError)
        self.notes: list[str] = []

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except self.errors:
            return None

    def facts(self, environ: Mapping[str, str]) -> Hardware:
        nvml = self.nvml
        driver = self.ask(nvml.nvmlSystemGetDriverVersion)
        cuda = self.ask(nvml.nvmlSystemGetCudaDriverVersion)  # 12040 is 12.4
        count = self.ask(nvml.nvmlDeviceGetCount)
        found = ((index, self.handle(index)) for index in range(count or 0))
        handles = {index: handle for index, handle in found if handle is not None}
        boards = [self.board(index, handle) for index, handle in handles.items()]
        if count == 0:
            self.notes.append("an NVIDIA driver is loaded, but it has no card")
        elif count is None:
            self.notes.append("the NVIDIA driver does not say how many cards it has")
        gpus, hidden = usable(boards, environ)
        self.notes.extend(dict.fromkeys(kept_free_note(gpu) for gpu in gpus if gpu.kept_free_bytes))
        whole = {gpu.index for gpu in gpus if gpu.mig_profile is None}
        used = [handle for index, handle in handles.items() if index in whole]
        return Hardware(
            kind="cuda",
            origin="probed",
            gpus=gpus,
            driver_version=driver,
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            interconnect=self.interconnect(used, gpus),
            notes=(*self.notes, *hidden),
        )

    def handle(self, index: int) -> Any:
        try:
            return self.nvml.nvmlDeviceGetHandleByIndex(index)
        except self.errors as error:
            self.notes.append(f"GPU {index} does not answer ({error}): it is left out")
            return None

    def board(self, index: int, handle: Any) -> GpuBoard:
        gpu = self.gpu(index, handle)
        # Absent on cards that cannot be cut.
        mode = self.ask(self.nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != self.nvml.NVML_DEVICE_MIG_ENABLE:
            return GpuBoard(gpu=gpu)
        found = (
            self.ask(self.nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
            for slot in range(self.ask(self.nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
        )
        return GpuBoard(
            gpu=gpu,
            mig_enabled=True,
            slices=tuple(self.slice(gpu, device) for device in found if device is not None),
        )

    def gpu(self, index: int, handle: Any) -> Gpu:
        name = self.ask(self.nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU (no name reported)"
        total, free, shares_ram = self.memory(handle, f"GPU {index} ({name})")
        capability = self.ask(self.nvml.nvmlDeviceGetCudaComputeCapability, handle)
        found = Gpu(
            name=name,
            memory_total_bytes=total,
            memory_free_bytes=free,
            shares_ram=shares_ram,
            compute_capability=capability,
            bf16=None if capability is None else capability >= (8, 0),
            uuid=self.ask(self.nvml.nvmlDeviceGetUUID, handle),
            index=index,
            spec=match_probed(name, total),
            **self.others(handle),
        )
        if shares_ram:
            return keep_ram_free(found)
        # A display is connected, or the GPU holds memory for one.
        asked = (self.nvml.nvmlDeviceGetDisplayActive, self.nvml.nvmlDeviceGetDisplayMode)
        has_display = self.nvml.NVML_FEATURE_ENABLED in [self.ask(one, handle) for one in asked]
        return keep_free(found, has_display=has_display, has_battery=has_battery(self.root))

    def slice(self, parent: Gpu, handle: Any) -> Gpu:
        """One MIG device: its own memory and profile, its parent's chip, no catalogue entry."""
        name = self.ask(self.nvml.nvmlDeviceGetName, handle) or parent.name
        total, free, _ = self.memory(handle, name)
        attributes = self.ask(self.nvml.nvmlDeviceGetAttributes, handle)
        if total is None and attributes is not None:
            total = attributes.memorySizeMB * 2**20
        written = re.search(r"MIG (\S+)", name)
        profile = written[1] if written else "MIG"
        if attributes is not None and not written:
            size = round(attributes.memorySizeMB / 1024)
            profile = f"{attributes.gpuInstanceSliceCount}g.{size}gb"
        return replace(
            parent,
            name=name if written else f"{name} MIG {profile}",
            memory_total_bytes=total,
            memory_free_bytes=free,
            kept_free_bytes=0,
            kept_free_because="",
            uuid=self.ask(self.nvml.nvmlDeviceGetUUID, handle),
            mig_profile=profile,
            spec=None,
            **self.others(handle),
        )

    def memory(self, handle: Any, whose: str) -> tuple[int | None, int | None, bool]:
        try:
            memory = self.nvml.nvmlDeviceGetMemoryInfo(handle)
        except self.errors as error:
            if getattr(error, "value", None) == self.nvml.NVML_ERROR_NOT_SUPPORTED:
                self.notes.append(
                    f"{whose}: the driver reports no memory, as on boards where CPU and GPU share"
                    " it; the system's memory counts"
                )
                return self.system.ram_total_bytes, self.system.ram_free_bytes, True
            self.notes.append(f"{whose}: its memory is not known ({error})")
            return None, None, False
        if not memory.total:
            self.notes.append(f"{whose}: its memory is not known (the driver says 0)")
            return None, None, False
        return int(memory.total), int(memory.free), False

    def others(self, handle: Any) -> dict[str, Any]:
        """The other programs on the GPU as a Gpu has them, those with most memory first; their
        memory is None where the driver hides it (Windows, some containers).
        """
        lists = [
            self.ask(self.nvml.nvmlDeviceGetComputeRunningProcesses, handle),
            self.ask(self.nvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
        ]
        if lists[0] is None and hasattr(self.nvml, "nvmlDeviceGetComputeRunningProcesses_v2"):
            lists = [self.ask(self.nvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)]
        if lists[0] is None:
            return {"other_processes_bytes": None, "other_processes": ()}
        held: dict[int, int | None] = {}  # one process may be listed for compute and for graphics
        for process in (process for listed in lists for process in listed or ()):
            held[process.pid] = process.usedGpuMemory
        held.pop(os.getpid(), None)
        sizes = list(held.values())
        by_size = sorted(held.items(), key=lambda item: -(item[1] or 0))
        programs = (
            GpuProcess(pid=pid, name=process_name(pid, self.root), memory_bytes=size)
            for pid, size in by_size
        )
        return {
            "other_processes_bytes": None if None in sizes else sum(size or 0 for size in sizes),
            "other_processes": tuple(programs),
        }

    def interconnect(self, handles: list[Any], gpus: tuple[Gpu, ...]) -> str | None:
        """How the GPUs reach each other or, if it is one, its machine; NVLink if all have it."""
        if not handles:
            return None
        links = [self.active_links(handle) for handle in handles] if len(handles) > 1 else []
        if links and min(links) > 0:
            return _nvlink_text(min(links), gpus[0].spec)
        joined = sum(count > 0 for count in links)
        partly = f"; NVLink on {joined} of {len(links)} cards" if joined else ""
        # The slowest slot counts. The current generation falls when a card idles, its width does
        # not.
        generation = self.least(self.nvml.nvmlDeviceGetMaxPcieLinkGeneration, handles)
        width = self.least(self.nvml.nvmlDeviceGetCurrPcieLinkWidth, handles)
        if not generation:
            return partly.removeprefix("; ") or None
        return f"PCIe {generation}{f' x{width}' if width else ''}{partly}"

    def least(self, function: Callable[..., Any], handles: list[Any]) -> Any:
        return min(filter(None, (self.ask(function, handle) for handle in handles)), default=None)

    def active_links(self, handle: Any) -> int:
        count = getattr(self.nvml, "NVML_NVLINK_MAX_LINKS", 18)
        states = (
            self.ask(self.nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(count)
        )
        return sum(state == 1 for state in takewhile(lambda state: state is not None, states))


def _nvlink_text(links: int, spec: GpuSpec | None) -> str:
    known = interconnect_of(spec) if spec is not None else None
    name = known if known and known.startswith("NVLink") else "NVLink"
    return f"{name} ({links} active link{'s' if links > 1 else ''} per card)"


# --------------------------------------------------------------------------- what may be used


class GpuBoard(Struct, frozen=True, kw_only=True):
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
    value = environ.get(VISIBLE)
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
    return tuple(chosen), (*notes, *ended, *more, *hidden_note(unused, f"{VISIBLE}={value}"))


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
            ended = f"{VISIBLE}={value}: '{entry}' names no device, so the list ends there"
            notes += [ended] if entry not in ("", "-1") or chosen else []
            break
        if is_among(device, chosen):
            return [], [f"{VISIBLE}={value}: '{entry}' repeats a device, so CUDA shows none"]
        chosen.append(device)
        by_index = by_index or not entry.startswith(("GPU-", "MIG-"))
    differ = len({board.gpu.name for board in boards}) > 1 and len(chosen) < len(boards)
    if by_index and differ and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        notes.append(
            f"{VISIBLE}={value}: the cards differ and CUDA numbers the fastest first, this list by"
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
