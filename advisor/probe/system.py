"""The machine without its NVIDIA GPUs: cores, memory and disk this process may use, Apple and AMD
devices, and the memory that advice leaves free.

A container or batch job often gets less than the machine has, so affinity and cgroup limits (v1 and
v2) count, not the totals. Every function takes the folder that stands for `/`, which is how
recorded machines are tested.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from msgspec.structs import replace

from advisor.ground.files import free_bytes
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, KIB, format_gib
from advisor.probe.catalogue import gpu_entry, load_catalogue, match_probed
from advisor.probe.gpu_files import cuda_facts
from advisor.probe.software import installed_versions, torch_build

ROOT = Path("/")
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))  # as Linux names them; the last on Arm
BF16_LINES = ("flags", "Features")
NO_LIMIT = 2**60  # cgroup v1 writes a huge number for "no limit"
AMD_VENDOR = "4098"  # 0x1002
VISIBLE = "CUDA_VISIBLE_DEVICES"  # read by ROCm as well
ROCR, HIP = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
INTEGRATED_BELOW = 4 * GIB  # graphics inside a processor own a few hundred MiB


def probe_system(folder: Path, root: Path = ROOT) -> Hardware:
    """The machine as one without cards: cores, memory, free disk below `folder`, within the limits
    that hold for this process, and the packages it has for training.
    """
    cores, core_note = usable_cores(root)
    total, free, memory_note = usable_memory(root)
    notes = [note for note in (core_note, memory_note) if note]
    if "microsoft" in read_or_empty(root / "proc/sys/kernel/osrelease").lower():
        notes.append("WSL2: memory is what Windows gives it, and the card is driven from Windows")
    if sys.platform == "darwin":
        notes.append("macOS: tested on Linux only")
    build = torch_build()
    return Hardware(
        kind="cpu",
        origin="probed",
        cpu_model=processor(root),
        cpu_cores=cores,
        cpu_bf16=multiplies_bf16(root),
        ram_total_bytes=total,
        ram_free_bytes=free,
        ram_kept_free_bytes=kept_of_ram(total),
        disk_free_bytes=free_disk(folder),
        software=installed_versions(),
        notes=tuple(notes),
        torch_target=None if build is None else build.target,
    )


# --------------------------------------------------------------------------- cores, memory, disk


def usable_cores(root: Path = ROOT) -> tuple[int | None, str | None]:
    """Cores by affinity and cgroup quota, at least one, and a note if the quota limits them."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    quotas = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    if quotas and (cores is None or min(quotas) < cores):
        note = f"a CPU quota of {min(quotas):g} cores holds for this process"
        return max(1, int(min(quotas))), note
    return cores, None


def processor(root: Path = ROOT) -> str | None:
    """The processor's name in /proc/cpuinfo, on Arm its numbers; None if neither is there."""
    numbers: dict[str, str] = {}
    for name, words in _stated(root / "proc/cpuinfo"):
        if name in ("model name", "Model") and words:
            return " ".join(words.split())
        if name in ("CPU implementer", "CPU part") and words:
            numbers.setdefault(name, words)
    return " ".join(f"{name} {words}" for name, words in numbers.items()) or None


def multiplies_bf16(root: Path = ROOT) -> bool | None:
    """Whether the processor multiplies bfloat16, by /proc/cpuinfo; None if it does not say."""
    listed = (words for name, words in _stated(root / "proc/cpuinfo") if name in BF16_LINES)
    flags = next(listed, None)
    return None if flags is None else not BF16_FLAGS.isdisjoint(flags.split())


def _quota(group: Path) -> float | None:
    # v2: "150000 100000" or "max 100000"
    quota, _, period = read_or_empty(group / "cpu.max").partition(" ")
    if not quota:  # v1: -1 is no limit
        quota, period = (
            read_or_empty(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        )
    is_set = quota.isdigit() and period.isdigit() and int(period) > 0
    return int(quota) / int(period) if is_set else None


def usable_memory(root: Path = ROOT) -> tuple[int | None, int | None, str | None]:
    """Total and free memory within cgroup limits, and a note if a limit lowers them."""
    total, free = _machine_memory(root)
    note = None
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None or limit >= NO_LIMIT or (total is not None and limit >= total):
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        counts = _pairs(group / "memory.stat")
        # File cache that the kernel drops before it kills anybody.
        cache = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
        unused = max(0, limit - max(0, used - cache))
        total, free = limit, unused if free is None else min(free, unused)
        note = f"a memory limit of {format_gib(limit)} holds for this process (control group)"
    return total, free, note


def _machine_memory(root: Path) -> tuple[int | None, int | None]:
    sizes = {
        name: int(value.split()[0]) * KIB
        for name, value in _stated(root / "proc/meminfo")
        if name in ("MemTotal", "MemAvailable", "MemFree") and value
    }
    if "MemTotal" in sizes:
        return sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree"))
    try:
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not POSIX, or a POSIX without these
        return windows_memory()
    is_known = min(pages, page_bytes) > 0 and sys.platform != "emscripten"  # a page sees no machine
    return pages * page_bytes if is_known else None, None


def windows_memory() -> tuple[int | None, int | None]:
    """Installed and free memory in bytes, by GlobalMemoryStatusEx; None, None on other systems."""
    import ctypes

    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return None, None

    class MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of sysinfoapi.h; sizes are bytes."""

        _fields_: ClassVar = [
            ("length", ctypes.c_uint32),
            ("load_percent", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("free", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        ]

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.total, status.free


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group and its parents, v1 or v2: a limit of any of them counts."""
    own = {}
    for line in read_or_empty(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in read_or_empty(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        name = "" if kind[0] == "cgroup2" else controller
        if name not in own or (name and controller not in kind[2].split(",")):
            continue
        mount = root / fields[4].lstrip("/")
        # In a container the mount shows a part of the tree only, and /proc may still name the whole
        # path.
        group = mount / own[name].removeprefix(fields[3]).strip("/")
        while not group.is_dir() and group != mount:
            group = group.parent
        yield group
        while group != mount and mount in group.parents:
            group = group.parent
            yield group


def free_disk(folder: Path) -> int | None:
    """Free bytes on the disk that holds the folder, or will hold it once it is made."""
    with suppress(OSError):
        return free_bytes(folder.absolute())
    return None


def read_or_empty(path: Path) -> str:
    """The text of a small file, stripped; empty where there is none or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _stated(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_or_empty(path).splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _pairs(path: Path) -> dict[str, str]:
    lines = (line.split() for line in read_or_empty(path).splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


def _number(path: Path) -> int | None:
    text = read_or_empty(path)
    return int(text) if text.isdigit() else None


# --------------------------------------------------------------------------- Apple and AMD


def probe_apple(system: Hardware) -> Hardware:
    """The chip of an Apple computer as a device that shares its memory; no GPU elsewhere."""
    nothing = Hardware(kind="mps", origin="probed")
    if sys.platform != "darwin" or os.uname().machine != "arm64":
        return nothing
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    name = ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        name = done.stdout.strip()
    name = name or "Apple chip"
    note = (
        f"{name}: CPU and GPU share the memory and macOS lets the GPU have a part of it; the probe"
        " cannot see how much is free"
    )
    spec = match_probed(name, None)
    gpu = Gpu(name=name, memory_total_bytes=system.ram_total_bytes, spec=spec)
    return replace(nothing, gpus=(keep_for_macos(gpu),), notes=(note,))


def probe_amd(root: Path = ROOT, environ: Mapping[str, str] | None = None) -> Hardware:
    """The AMD devices that the kernel's compute driver (kfd) lists and this process may use."""
    nothing = Hardware(kind="rocm", origin="probed")
    gpus: list[Gpu] = []
    notes: list[str] = []
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*")
    for node in sorted(nodes, key=lambda path: (len(path.name), path.name)):
        facts = _pairs(node / "properties")
        if facts.get("vendor_id") != AMD_VENDOR or facts.get("simd_count", "0") == "0":
            continue  # a processor, or not AMD
        device = root / "sys/class/drm" / f"renderD{facts.get('drm_render_minor', '')}" / "device"
        gpu = _amd_gpu(facts, device, len(gpus))
        if _is_integrated(gpu):
            notes.append(f"{gpu.name}: graphics inside the processor, not counted as a GPU")
        has_display = "connected" in map(read_or_empty, device.glob("drm/card*/card*-*/status"))
        gpus.append(keep_free(gpu, has_display=has_display, has_battery=has_battery(root)))
    # ROCm numbers graphics inside a processor, too.
    usable, hidden = usable_amd(gpus, os.environ if environ is None else environ)
    usable = tuple(gpu for gpu in usable if not _is_integrated(gpu))
    if not all(map(_is_integrated, gpus)):
        notes.append(
            "AMD: name, memory and gfx target come from the kernel; other processes and the ROCm"
            " version are not read"
        )
        notes += dict.fromkeys(kept_free_note(gpu) for gpu in usable if gpu.kept_free_bytes)
        return replace(nothing, gpus=usable, notes=(*notes, *hidden))
    vendors = map(read_or_empty, (root / "sys/class/drm").glob("card*/device/vendor"))
    if not notes and "0x1002" in vendors:
        notes.append(
            "an AMD card is plugged in, but its compute driver (amdgpu with kfd, part of ROCm) is"
            " not loaded"
        )
    return replace(nothing, notes=tuple(notes))


def usable_amd(
    gpus: Sequence[Gpu], environ: Mapping[str, str]
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The AMD devices this process may use, with the index that HIP gives each, and what is hidden.

    ROCR_VISIBLE_DEVICES comes first; HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES, counts among
    those that are left (ROCm documentation, "GPU isolation techniques").
    """
    left, hidden = list(gpus), []
    for name in (ROCR, HIP if environ.get(HIP) else VISIBLE):
        if environ.get(name):
            chosen = _numbered(left, environ[name])
            others = [pair for pair in enumerate(left) if not is_among(pair[1], chosen)]
            hidden += hidden_note(others, f"{name}={environ[name]}")
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
        if not found or is_among(found[0], chosen):
            break
        chosen.append(found[0])
    return chosen


def is_among(gpu: Gpu, gpus: Iterable[Gpu]) -> bool:
    return any(gpu is other for other in gpus)  # two GPUs may be equal


def hidden_note(gpus: Iterable[tuple[int | None, Gpu]], setting: str) -> list[str]:
    names = ", ".join(f"GPU {index} ({gpu.name})" for index, gpu in gpus)
    return [f"hidden by {setting}: {names}"] if names else []


def _amd_gpu(facts: Mapping[str, str], device: Path, index: int) -> Gpu:
    total, used = (_number(device / f"mem_info_vram_{name}") for name in ("total", "used"))
    gfx = _gfx(facts.get("gfx_target_version", ""))
    name = read_or_empty(device / "product_name") or f"AMD {gfx or 'GPU'}"
    spec = match_probed(name, total) or match_probed(f"AMD {name}", total)
    if spec is None and gfx and total:  # the kernel seldom knows the product's name
        alike = [
            card
            for card in load_catalogue().values()
            if gpu_entry(card.id).get("gfx_target") == gfx
            and card.memory_bytes is not None
            and abs(card.memory_bytes - total) < 0.05 * card.memory_bytes
        ]
        spec = alike[0] if len(alike) == 1 else None
    unique = facts.get("unique_id", "")
    return Gpu(
        name=spec.name if spec else name,
        memory_total_bytes=total,
        memory_free_bytes=None if total is None or used is None else max(0, total - used),
        bf16=spec.bf16 if spec else None,
        # ROCm's name of the device: "GPU-" and the kernel's unique_id in 16 hexadecimal digits.
        uuid=f"GPU-{int(unique):016x}" if unique.isdigit() and int(unique) else None,
        index=index,
        spec=spec,
    )


def _gfx(version: str) -> str | None:
    """90402 -> gfx942: major, minor and stepping; the last two are written in hexadecimal."""
    if not version.isdigit() or version == "0":
        return None
    number = int(version)
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def _is_integrated(gpu: Gpu) -> bool:
    return gpu.memory_total_bytes is not None and gpu.memory_total_bytes < INTEGRATED_BELOW


# --------------------------------------------------------------------------- memory left free


def keep_free(
    gpu: Gpu, *, has_display: bool = False, has_battery: bool = False, because: str = ""
) -> Gpu:
    """The GPU with the memory that advice leaves free for a display or on a laptop, and why."""
    rule = cuda_facts()["kept_free"]
    words = "|".join(rule["laptop_words"])
    if because:
        reason = because
    elif has_display:
        reason = "it drives a display"
    elif has_battery or re.search(rf"\b({words})\b", gpu.name, re.IGNORECASE):
        reason = "it is a laptop's, which may drive the display"
    else:
        return gpu
    return replace(gpu, kept_free_bytes=int(rule["gib"] * GIB), kept_free_because=reason)


def kept_of_ram(total_bytes: int | None) -> int:
    """What advice leaves of the machine's own memory to the system and to other programs."""
    rule = cuda_facts()["kept_free"]
    least = rule["ram_gib"] * GIB
    return 0 if total_bytes is None else int(max(least, rule["ram_share"] * total_bytes))


def keep_ram_free(gpu: Gpu) -> Gpu:
    """A GPU that shares the machine's memory, with what advice leaves free of it, and why."""
    return replace(
        gpu,
        kept_free_bytes=kept_of_ram(gpu.memory_total_bytes),
        kept_free_because="the system and other programs run in the same memory",
    )


def keep_for_macos(gpu: Gpu) -> Gpu:
    """An Apple GPU with the part of the computer's memory that macOS does not give it."""
    rule, total = cuda_facts()["kept_free"], gpu.memory_total_bytes
    if total is None:
        return gpu
    small = total <= rule["macos_small_gib"] * GIB
    share = rule["macos_small_share" if small else "macos_share"]
    return replace(
        gpu,
        kept_free_bytes=int(share * total),
        kept_free_because="macOS lets the GPU have only a part of the memory",
    )


def kept_free_note(gpu: Gpu) -> str:
    """'RTX 4090: advice leaves 1.00 GiB of its memory free, because it drives a display'."""
    return (
        f"{gpu.name}: advice leaves {format_gib(gpu.kept_free_bytes)} of its memory free, because"
        f" {gpu.kept_free_because}"
    )


def has_battery(root: Path = Path("/")) -> bool:
    """Whether the machine runs on a battery of its own (Linux names it BAT0, BAT1, ...)."""
    return any((root / "sys/class/power_supply").glob("BAT*"))
