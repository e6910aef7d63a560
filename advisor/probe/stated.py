"""Hardware a person states instead of letting it be probed: a name, a count, a memory size,
`unknown` or `none`; and for a question that can be asked, what a name may mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe.catalogue import GpuMatch, find_gpu, gpu_entry, gpus_of, interconnect_of
from advisor.probe.gpu_files import not_supported
from advisor.probe.names import count_and_name
from advisor.probe.software import older_torch_note
from advisor.probe.system import (
    keep_for_macos,
    keep_free,
    keep_ram_free,
    kept_free_note,
    probe_system,
)

UNKNOWN, NONE = "unknown", "none"
FLAGS = ("--gpu", "--gpus", "--gpu-memory")
KEYS = ("gpu.name", "gpu.count", "gpu.vram_gib")
MOST_GPUS, MOST_GIB = 10_000, 10_000  # beyond this it is a slip of the keyboard
_AMD = re.compile(r"\b(amd|radeon|instinct|ryzen|mi\d{2,3}[a-z]?|rx ?\d{4})\b", re.IGNORECASE)
_APPLE = re.compile(r"\b(apple|m\d( ?(pro|max|ultra))?)\b", re.IGNORECASE)
_KIND = {"nvidia": "cuda", "amd": "rocm", "apple": "mps"}


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedGpu:
    """One GPU to choose."""

    name: str
    memory_gib: float | None = None  # to state beside the name; None: the name says it

    @property
    def label(self) -> str:
        """'RTX 3080 Laptop with 16 GB'."""
        return self.name + (f" with {self.memory_gib:g} GB" if self.memory_gib else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeantGpu:
    """What a typed name means."""

    name: str  # as it was typed, without the count
    count: int | None = None
    found: NamedGpu | None = None  # the GPU, where there is nothing to ask
    variants: tuple[NamedGpu, ...] = ()  # what it may be, where memory tells them apart
    near: tuple[str, ...] = ()  # names like it, where nothing is known of it
    note: str = ""  # what there is to say of it: how it was read, or why it cannot be used
    shared: bool = False  # the memory is the computer's own


def meant_gpu(text: str) -> MeantGpu:
    """The GPU or GPUs that a typed text means: "2x 4090", "NVIDIA GeForce RTX 4060 Laptop GPU"."""
    count, name = count_and_name(text.strip())
    match = find_gpu(name)
    gpus, stated_gib = gpus_of(name)
    if match.spec is None:
        if (device := not_supported(name)) is not None:
            note = f"this is {device.what}, which this tool cannot train on: it {device.why}"
            return MeantGpu(name=name, count=count, found=NamedGpu(name=name), note=note)
        if match.memory_bytes is None:
            return MeantGpu(name=name, count=count, near=match.near)
        unknown = "not in the catalogue: its speed and formats are not known"
        note = "; ".join((*match.warnings, unknown))
        bare = NamedGpu(name=name, memory_gib=round(match.memory_bytes / GIB, 3))
        return MeantGpu(name=name, count=count, found=bare, note=note)
    sizes = sorted(((size, gpu) for gpu in gpus for size in gpu.sold_gib), key=lambda one: one[0])
    variants = tuple(
        NamedGpu(name=gpu.name, memory_gib=size if len(gpu.sold_gib) > 1 else None)
        for size, gpu in sizes
    )
    shared = match.spec.memory_bytes is None
    usual = any(gpu.usual_gib is not None for gpu in gpus)
    if (stated_gib is None and len(variants) > 1 and not usual) or match.not_sold:
        note = f"it is sold with {match.not_sold}" if match.not_sold else ""
        return MeantGpu(name=name, count=count, variants=variants, note=note, shared=shared)
    memory_gib = stated_gib if any(variant.memory_gib for variant in variants) else None
    found = NamedGpu(name=match.spec.name, memory_gib=memory_gib)
    return MeantGpu(
        name=name, count=count, found=found, note="; ".join(match.warnings), shared=shared
    )


def stated_hardware(
    name: str | None, count: int | None = None, memory_gib: float | None = None, *, from_flag: bool
) -> tuple[Hardware, tuple[str, ...]]:
    """The stated hardware and what had to be guessed.

    `unknown` rules nothing out, `none` is the CPU of this machine. An unknown name is used as given
    with its memory; without a memory it is an InputError as a flag and unknown hardware with a
    warning in a file. A memory alone is some CUDA card.
    """
    name_at, count_at, memory_at = FLAGS if from_flag else KEYS
    _check_numbers(count, memory_gib, count_at=count_at, memory_at=memory_at)
    written_count, name = count_and_name(name) if name is not None else (None, None)
    # 1 is what a template writes
    if written_count is not None and count not in (None, 1, written_count):
        raise InputError(
            f"{name_at} says {written_count} cards, {count_at} says {count}",
            where=name_at,
            hint="keep one of them",
        )
    count = written_count if written_count is not None else count
    _check_numbers(count, None, count_at=name_at, memory_at=memory_at)
    word = (name or "").lower()
    if word == NONE:
        if memory_gib is not None or (count or 0) > 1:
            other = memory_at if memory_gib is not None else count_at
            raise InputError(
                f"{name_at} none contradicts {other}",
                where=name_at,
                allowed="`none` trains on the CPU of this machine",
                hint="leave one of them out",
            )
        return cpu_hardware(), ()
    if memory_gib is None and word in ("", UNKNOWN):
        if word == "" and count is not None:
            return _without_memory(
                f"{count_at} says how many cards, not which",
                f"add {name_at} NAME or {memory_at} GIB",
                from_flag=from_flag,
            )
        some = Gpu(name="a GPU of unknown kind", memory_total_bytes=None)
        return Hardware(kind="unknown", origin="unknown", gpus=(some,) * (count or 0)), ()
    if word in ("", UNKNOWN):
        memory_bytes = int((memory_gib or 0) * GIB)
        gpu = Gpu(name=f"a card with {memory_gib:g} GiB", memory_total_bytes=memory_bytes)
        return _hardware("cuda", gpu, count), ()
    return _named(name or "", count, memory_gib, name_at=name_at, from_flag=from_flag)


def _named(
    name: str, count: int | None, memory_gib: float | None, *, name_at: str, from_flag: bool
) -> tuple[Hardware, tuple[str, ...]]:
    match = find_gpu(name, memory_gib=memory_gib)
    if match.spec is None and (device := not_supported(name)) is not None:
        return Hardware(kind="unknown", origin="stated", not_supported=device), (
            f"{name_at}: '{name}' is {device.what}, which this tool cannot train on: it"
            f" {device.why}",
        )
    if match.memory_bytes is None:
        is_known = match.spec is not None
        why = f"'{name}' is sold with several memory sizes" if is_known else f"unknown GPU '{name}'"
        near = f"did you mean {' or '.join(match.near)}? Otherwise " if match.near else ""
        memory_at = "--gpu-memory GIB" if from_flag else "gpu.vram_gib"
        hint = f"{near}say its memory with {memory_at} (on NVIDIA, `nvidia-smi` shows it)"
        hardware, warnings = _without_memory(f"{name_at}: {why}", hint, from_flag=from_flag)
        return hardware, (*match.warnings, *warnings)
    if match.not_sold and from_flag and match.spec is not None:
        raise InputError(
            f"no GPU of this name and size is known: '{name}'",
            where=name_at,
            allowed=f"it is sold with {match.not_sold}",
            hint="correct the size or leave it out; where it is right, say it with --gpu-memory GIB"
            " beside the name without it",
        )
    spec = match.spec
    kind = _KIND[spec.vendor] if spec is not None else _kind_of(name)
    gpu = Gpu(name=name, memory_total_bytes=match.memory_bytes)
    warnings = match.warnings
    if spec is None:
        warnings += (
            f"'{name}' is not in the GPU catalogue: used as given with {match.memory_bytes / GIB:g}"
            " GiB; its speed and number formats are not known",
        )
    else:
        gpu = replace(
            gpu,
            name=spec.name,
            compute_capability=spec.compute_capability,
            bf16=spec.bf16,
            spec=spec,
        )
        if spec.vendor == "apple" and (count or 1) > 1:
            warnings += (
                f"{count} x {spec.name}: a Mac trains by itself, so one of them is planned with",
            )
            count = 1
    gpu, older = _keep(gpu, kind), older_torch_note(gpu)
    kept = (kept_free_note(gpu),) if gpu.kept_free_bytes else ()
    hardware = replace(_hardware(kind, gpu, count), notes=(*_usable_note(match), *kept))
    if spec is not None and len(hardware.gpus) > 1:
        hardware = replace(hardware, interconnect=interconnect_of(spec))
    return hardware, (*warnings, *([older] if older else []))


def _keep(gpu: Gpu, kind: str) -> Gpu:
    """The GPU with what advice leaves free of it: a laptop's by its name, or one that shares the
    memory of the computer.
    """
    if kind == "mps":
        return keep_for_macos(gpu)
    link = gpu_entry(gpu.spec.id).get("interconnect") if gpu.spec is not None else None
    if (link or {}).get("kind") == "unified":
        return keep_ram_free(gpu)
    return keep_free(gpu)


def _usable_note(match: GpuMatch) -> tuple[str, ...]:
    """A sentence where the driver shows clearly less than the size the card is sold with."""
    spec = match.spec
    if spec is None or match.memory_bytes is None or match.memory_bytes != spec.memory_bytes:
        return ()
    sold_gib = gpu_entry(spec.id)["memory"].get("sold_gb")
    usable_gib = match.memory_bytes / GIB
    if not sold_gib or usable_gib > 0.97 * sold_gib or gpu_entry(spec.id).get("devices_per_board"):
        return ()
    return (f"{spec.name}: sold as {sold_gib:g} GB, its driver shows {usable_gib:.1f} GiB",)


def _hardware(kind: str, gpu: Gpu, count: int | None) -> Hardware:
    return Hardware(kind=kind, origin="stated", gpus=(gpu,) * (count or 1))


def _kind_of(name: str) -> str:
    return "rocm" if _AMD.search(name) else "mps" if _APPLE.search(name) else "cuda"


def _without_memory(what: str, hint: str, *, from_flag: bool) -> tuple[Hardware, tuple[str, ...]]:
    if from_flag:
        raise InputError(
            what,
            where=what.partition(":")[0],
            allowed="a name of the GPU catalogue, `none` (CPU) or `unknown` (rules nothing out)",
            hint=hint,
        )
    return Hardware(kind="unknown", origin="unknown"), (
        f"{what}: the hardware counts as unknown; {hint}",
    )


def _check_numbers(
    count: int | None, memory_gib: float | None, *, count_at: str, memory_at: str
) -> None:
    if count is not None and not 1 <= count <= MOST_GPUS:
        raise InputError(
            f"{count} GPUs",
            where=count_at,
            allowed=f"1 to {MOST_GPUS:,}",
            hint="for training without a GPU say `none` as the GPU" if count < 1 else "",
        )
    if memory_gib is not None and not 0 < memory_gib <= MOST_GIB:
        raise InputError(
            f"{memory_gib:g} GiB",
            where=memory_at,
            allowed=f"above 0, up to {MOST_GIB:,}",
            hint="the memory of one card, in GiB",
        )


def cpu_hardware(machine: Hardware | None = None) -> Hardware:
    """The machine without its GPUs, which is what `gpu: none` means; probed where it is not
    given.
    """
    if machine is None:
        return replace(probe_system(Path.cwd()), origin="stated")
    return replace(
        machine,
        kind="cpu",
        gpus=(),
        driver_version=None,
        cuda_version=None,
        interconnect=None,
        problem=None,
    )
