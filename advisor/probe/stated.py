"""Hardware a person states instead of letting it be probed: a name, a count, a memory size,
`unknown` or `none`.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe.catalogue import GpuMatch, find_gpu, gpu_entry, gpus_of, interconnect_of
from advisor.probe.gpu_files import not_supported
from advisor.probe.names import count_and_name, split_name
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
APPLE = re.compile(r"\b(apple|i?mac|macbook|m\d( ?(pro|max|ultra))?)\b", re.IGNORECASE)
WHICH_MAC = "say its chip or its memory too, which About This Mac shows: 'M3 Pro', 'MacBook 18GB'"
_KIND = {"nvidia": "cuda", "amd": "rocm", "apple": "mps"}


def stated_hardware(
    name: str | None, count: int | None = None, memory_gib: float | None = None, *, from_flag: bool
) -> tuple[Hardware, tuple[str, ...]]:
    """The stated hardware and what had to be guessed.

    `unknown` rules nothing out, `none` is the CPU of this machine. An unknown name is used as given
    with its memory; without a memory it is an InputError as a flag and unknown hardware with a
    warning in a file. A memory alone is some CUDA card.
    """
    name_at, count_at, memory_at = FLAGS if from_flag else KEYS
    _check_number(count, count_at)
    if memory_gib is not None and not 0 < memory_gib <= MOST_GIB:
        raise InputError(
            f"{memory_gib:g} GiB",
            where=memory_at,
            allowed=f"above 0, up to {MOST_GIB:,}",
            hint="the memory of one card, in GiB",
        )
    written_count, name = count_and_name(name) if name is not None else (None, None)
    # 1 is what a template writes
    if written_count is not None and count not in (None, 1, written_count):
        raise InputError(
            f"{name_at} says {written_count} cards, {count_at} says {count}",
            where=name_at,
            hint="keep one of them",
        )
    count = written_count if written_count is not None else count
    _check_number(count, name_at)
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
    if word not in ("", UNKNOWN):
        return _named(name or "", count, memory_gib, from_flag=from_flag)
    if memory_gib is not None:
        gpu = Gpu(name=f"a card with {memory_gib:g} GiB", memory_total_bytes=int(memory_gib * GIB))
        return _several("cuda", gpu, count), ()
    if word == "" and count is not None:
        what = f"{count_at} says how many cards, not which"
        return _without_memory(what, f"add {name_at}, or {memory_at} in GiB", from_flag=from_flag)
    some = Gpu(name="a GPU of unknown kind", memory_total_bytes=None)
    return Hardware(kind="unknown", origin="unknown", gpus=(some,) * (count or 0)), ()


def _named(
    name: str, count: int | None, memory_gib: float | None, *, from_flag: bool
) -> tuple[Hardware, tuple[str, ...]]:
    name_at = (FLAGS if from_flag else KEYS)[0]
    _check_one_kind(name, name_at)
    match = find_gpu(name, memory_gib=memory_gib)
    spec, warnings = match.spec, match.warnings
    typed_gib = split_name(name).size_gib
    if spec is not None and memory_gib is None and typed_gib and (count or 1) > 1:
        sold = gpu_entry(spec.id)["memory"].get("sold_gb")
        if sold and typed_gib == count * sold:
            raise InputError(
                f"{name_at} {count} x {name}: {typed_gib:g} GB each, or all together?",
                where=name_at,
                allowed=f"{count} x {spec.name}: {sold:g} GB each",
                hint="a size beside a name is that of one card; --gpu-memory states another",
            )
    if spec is None and (device := not_supported(name)) is not None:
        return Hardware(kind="unknown", origin="stated", not_supported=device), (
            f"{name_at}: '{name}' is {device.what}, which this tool cannot train on: it"
            f" {device.why}",
        )
    if match.memory_bytes is None:
        why = f"'{name}' is sold with several memory sizes" if spec else f"unknown GPU '{name}'"
        near = f"did you mean {' or '.join(match.near)}? Otherwise " if match.near else ""
        memory_at = "--gpu-memory, in GiB" if from_flag else "gpu.vram_gib"
        hint = f"{near}say its memory with {memory_at} (on NVIDIA, `nvidia-smi` shows it)"
        if spec is None and APPLE.search(name):
            hint = WHICH_MAC
        hardware, more = _without_memory(f"{name_at}: {why}", hint, from_flag=from_flag)
        return hardware, (*warnings, *more)
    if spec is None:
        kind = "rocm" if _AMD.search(name) else "mps" if APPLE.search(name) else "cuda"
        gpu = Gpu(name=name, memory_total_bytes=match.memory_bytes)
        if not split_name(name).words:
            gpu = keep_free(gpu, because="nobody named the card, which may drive the display")
        warnings += (
            f"'{name}' is not in the GPU catalogue: used as given with {match.memory_bytes / GIB:g}"
            " GiB; its speed and number formats are not known",
        )
    else:
        if match.not_sold and from_flag:
            raise InputError(
                f"no GPU of this name and size is known: '{name}'",
                where=name_at,
                allowed=f"it is sold with {match.not_sold}",
                hint="correct the size or leave it out; where it is right, say it with"
                " --gpu-memory beside the name without it",
            )
        kind = _KIND[spec.vendor]
        gpu = Gpu(
            name=spec.name,
            memory_total_bytes=match.memory_bytes,
            compute_capability=spec.compute_capability,
            bf16=spec.bf16,
            spec=spec,
        )
        if spec.vendor == "apple" and (count or 1) > 1:
            warnings += (
                f"{count} x {spec.name}: a Mac trains by itself, so one of them is planned with",
            )
            count = 1
    gpu = gpu if gpu.kept_free_bytes else _keep(gpu, kind)
    older = older_torch_note(gpu)
    kept = (kept_free_note(gpu),) if gpu.kept_free_bytes else ()
    hardware = replace(_several(kind, gpu, count), notes=(*_usable_note(match), *kept))
    if spec is not None and len(hardware.gpus) > 1:
        hardware = replace(hardware, interconnect=interconnect_of(spec))
    return hardware, (*warnings, *([older] if older else []))


def _check_one_kind(name: str, at: str) -> None:
    """Refuses several kinds of GPU, and parts of one."""
    parts = re.split(r"\s*(?:\+|,|&|;|\band\b)\s*", name)
    named = [count_and_name(part)[1] for part in parts]
    if len(parts) > 1 and not gpus_of(name)[0] and all(gpus_of(one)[0] for one in named):
        raise InputError(
            f"{at} '{name}' names several kinds of GPU",
            where=at,
            allowed="one kind, and how many of it: 2 x RTX 4090",
            hint="GPUs of different kinds train as many of the one with least memory: name that",
        )
    if any(letter.isnumeric() and not letter.isdigit() for letter in name):
        raise InputError(
            f"{at} '{name}': a part of a GPU has no name here",
            where=at,
            hint="state the memory that you get with --gpu-memory, in GiB",
        )


def _keep(gpu: Gpu, kind: str) -> Gpu:
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


def _several(kind: str, gpu: Gpu, count: int | None) -> Hardware:
    return Hardware(kind=kind, origin="stated", gpus=(gpu,) * (count or 1))


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


def _check_number(count: int | None, at: str) -> None:
    if count is not None and not 1 <= count <= MOST_GPUS:
        raise InputError(
            f"{count:,} GPUs",
            where=at,
            allowed=f"1 to {MOST_GPUS:,}",
            hint="for training without a GPU say `none` as the GPU" if count < 1 else "",
        )


def cpu_hardware(machine: Hardware | None = None) -> Hardware:
    """The machine without its GPUs, which `gpu: none` means; probed if it is not given."""
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
