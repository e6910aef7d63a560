"""The GPU catalogue of rules/hardware/ with the prices of rules/prices/, and the two ways into it.

A probed device is recognised by the exact name its driver reports; a typed name by its words.
Memory decides only where one name stands for several GPUs, since the reported size moves with
driver and ECC.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from advisor.ground.types import GpuSpec, Hardware
from advisor.ground.units import GIB
from advisor.probe.gpu_files import CatalogueGpu, catalogue_gpus
from advisor.probe.names import FORM, NAMED, TELLS_APART, bracketed, split_name

# A size people name and the size a driver reports for it differ by up to this share.
SAME_SIZE = 0.03


class GpuMatch(Struct, frozen=True, kw_only=True):
    """What a typed name means; without `spec` it is not in the catalogue, and `near` is like it."""

    spec: GpuSpec | None
    memory_bytes: int | None  # to plan with: the catalogue's, or the stated one where they differ
    warnings: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    not_sold: str = ""  # the sizes it is sold with, where the name holds another one


# --------------------------------------------------------------------------- reading


@cache
def load_catalogue() -> Mapping[str, GpuSpec]:
    """GPU id -> GpuSpec with its price, in file order. Raises InputError with all faults."""
    return MappingProxyType({gpu_id: gpu.spec for gpu_id, gpu in catalogue_gpus().items()})


def gpu_entry(gpu_id: str) -> Mapping[str, Any]:
    """The entry of one GPU in rules/hardware/: rates per format, interconnect, sources, ..."""
    return catalogue_gpus()[gpu_id].entry


# --------------------------------------------------------------------------- a probed device


def match_probed(nvml_name: str, memory_bytes: int | None) -> GpuSpec | None:
    """The GPU behind the exact name a driver reports, with or without "NVIDIA "; else None.

    A name that is sold with several sizes needs the memory to agree. A MIG slice never matches.
    """
    if " MIG " in f"{nvml_name} ":
        return None
    bare = nvml_name.removeprefix("NVIDIA ")
    for name in (nvml_name, f"NVIDIA {bare}", bare):
        for gpu in catalogue_gpus().values():
            if name in gpu.names and (
                len(gpu.sold_gib) < 2
                or gpu.spec.memory_bytes is None  # the computer's memory, of whatever size
                or memory_bytes is None
                or gpu.sold_gib[0]
                == min(gpu.sold_gib, key=lambda sold: abs(sold - memory_bytes / GIB))
            ):
                return gpu.spec
    return None


# --------------------------------------------------------------------------- a typed name


def find_gpu(name: str, *, memory_gib: float | None = None, lenient: bool = False) -> GpuMatch:
    """What a typed name means: a catalogue id, an exact driver or vendor name, or all its words.

    `memory_gib` or a size in the name decides between several, else the smaller GPU, with a
    warning. `lenient` reads "RTX 4090 in the paper" by its known part and says so.
    """
    typed = split_name(name)
    warnings: list[str] = []
    if memory_gib and typed.size_gib and not _same(memory_gib, typed.size_gib):
        warnings.append(
            f"'{name}' says {typed.size_gib:g} GB and the stated memory is {memory_gib:g} GiB: the"
            " stated memory counts"
        )
    gpus, stated_gib = gpus_of(name)
    stated_gib = stated_gib if memory_gib is None else memory_gib
    if not gpus and lenient and not typed.mig:
        gpus = _by_known_part(typed.words)
        if gpus:
            warnings.append(f"'{name}' read by the part that is known: {gpus[0].name}")
    if not gpus:
        memory_bytes = None if stated_gib is None else int(stated_gib * GIB)
        return GpuMatch(
            spec=None, memory_bytes=memory_bytes, warnings=tuple(warnings), near=_near(name)
        )
    if memory_gib is None and _is_driver_name(name, gpus) and not _sold(gpus, stated_gib):
        stated_gib = None  # "NVIDIA GH200 480GB": the size of something else
    gpu, memory_bytes, more = _variant(name, gpus, stated_gib)
    unsold = stated_gib is not None and memory_gib is None and not _sold(gpus, stated_gib)
    return GpuMatch(
        spec=gpu.spec,
        memory_bytes=memory_bytes,
        warnings=(*warnings, *more),
        not_sold=_sizes(gpus) if unsold else "",
    )


def gpus_of(name: str) -> tuple[tuple[CatalogueGpu, ...], float | None]:
    """The GPUs that a typed name may mean, and the size in GiB that it states."""
    typed = split_name(name)
    if typed.mig:
        return (), typed.size_gib
    gpus = _exact(name) or _by_words(typed.words) or _by_plural(typed.words)
    if typed.size_gib is not None and not _sold(gpus, typed.size_gib):
        gpus = tuple(gpu for gpu in greater_chips(gpus) if _sold([gpu], typed.size_gib)) or gpus
    if gpus or typed.size_gib is not None:
        return gpus, typed.size_gib
    listed = _by_list(name)
    return (listed, None) if listed else _by_bare_size(typed.words)


def greater_chips(gpus: Sequence[CatalogueGpu]) -> tuple[CatalogueGpu, ...]:
    """The chips of the same Macs that people call by the smallest: M3 is also an M3 Pro or Max."""
    begins = tuple(f"{gpu.id}-" for gpu in gpus if gpu.spec.vendor == "apple")
    return tuple(gpu for gpu in catalogue_gpus().values() if gpu.id.startswith(begins))


def _exact(name: str) -> tuple[CatalogueGpu, ...]:
    wanted = name.strip().lower()
    gpus = catalogue_gpus()
    if wanted in gpus:
        return (gpus[wanted],)
    for form in (wanted, f"nvidia {wanted.removeprefix('nvidia ')}"):
        found = [gpu for gpu in gpus.values() if form in map(str.lower, (*gpu.names, gpu.name))]
        if found:
            return tuple(found)
    return ()


def _by_words(words: Sequence[str]) -> tuple[CatalogueGpu, ...]:
    typed = frozenset(words)
    if not any(_has_digit(word) or word in NAMED for word in typed):
        return ()  # "GPU", "RTX": says nothing about which

    def fits(gpu: CatalogueGpu) -> bool:
        """Whether it is not another card than the one that is typed, under one of its names."""
        return not (gpu.own_words - typed) & TELLS_APART or any(
            typed <= other and not (other - typed) & TELLS_APART for other in gpu.other_words
        )

    return tuple(gpu for gpu in catalogue_gpus().values() if typed <= gpu.words and fits(gpu))


def _has_digit(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


def _by_plural(words: Sequence[str]) -> tuple[CatalogueGpu, ...]:
    """ "T4s", "RTX 3090s"."""
    singular = [word[:-1] if word[-1] == "s" and word[-2:-1].isdigit() else word for word in words]
    return _by_words(singular) if singular != list(words) else ()


def _by_list(name: str) -> tuple[CatalogueGpu, ...]:
    """The GPUs of a list, as drivers print it: "MI250X / MI250", "RTX 4060 Max-Q / Mobile"."""
    parts = bracketed(name).split("/")
    found = [gpu for part in parts for gpu in _by_words(split_name(part).words)]
    return tuple({gpu.id: gpu for gpu in found}.values()) if len(parts) > 1 else ()


def _by_bare_size(words: Sequence[str]) -> tuple[tuple[CatalogueGpu, ...], float | None]:
    """ "A100 80", "4060 ti 16": the GPUs of the other words, where a number is a size of theirs."""
    for number in words:
        if number.isdigit() and len(number) < 4:
            gpus = _by_words([word for word in words if word != number])
            if _sold(gpus, float(number)):
                return gpus, float(number)
    return (), None


def _is_driver_name(name: str, gpus: Sequence[CatalogueGpu]) -> bool:
    bare = name.strip().lower().removeprefix("nvidia ")
    return any(bare == own.lower().removeprefix("nvidia ") for gpu in gpus for own in gpu.names)


def _sold(gpus: Sequence[CatalogueGpu], stated_gib: float | None) -> bool:
    """Whether one of the GPUs is sold with this size, or is made to have it."""
    return stated_gib is not None and any(
        _same(stated_gib, size) or _reported(gpu, size, stated_gib)
        for gpu in gpus
        for size in (*gpu.sold_gib, *gpu.modified_gib)
    )


def _sizes(gpus: Sequence[CatalogueGpu]) -> str:
    sizes = [f"{size:g}" for size in sorted({size for gpu in gpus for size in gpu.sold_gib})]
    return " or ".join(filter(None, (", ".join(sizes[:-1]), *sizes[-1:]))) + " GB"


def _by_known_part(words: Sequence[str]) -> tuple[CatalogueGpu, ...]:
    """Cards that fit the first model number and as many of the other words as possible."""
    found: tuple[CatalogueGpu, ...] = ()
    taken: list[str] = []
    numbers = [word for word in words if _has_digit(word) and word not in FORM]
    for word in (*numbers, *(word for word in words if word not in numbers)):
        wider = _by_words([*taken, word])
        if wider:
            found, taken = wider, [*taken, word]
    # "RTX 4090 Laptop" is another GPU, not a wordy 4090.
    return () if TELLS_APART & (set(words) - set(taken)) else found


def _variant(
    name: str, gpus: Sequence[CatalogueGpu], stated_gib: float | None
) -> tuple[CatalogueGpu, int | None, list[str]]:
    """The one that is meant, its memory in bytes, and what was taken for granted."""
    options = [(gpu, size) for gpu in gpus for size in gpu.sold_gib or (None,)]
    if stated_gib is None:
        usual = [(gpu, size) for gpu, size in options if gpu.usual_gib in (None, size)]
        gpu, size = min(usual, key=lambda option: option[1] or 0)
    else:
        made = [(gpu, size) for gpu in gpus for size in gpu.modified_gib]
        options = [
            (gpu, size)
            for gpu, size in (*options, *made)
            if size is None or _same(stated_gib, size) or _reported(gpu, size, stated_gib)
        ]
        if not options:
            return _of_no_size(gpus, stated_gib)
        gpu, size = options[0]
    memory_bytes = int((stated_gib or 0) * GIB) or None if size is None else _memory(gpu, size)
    if len(options) > 1:
        chosen = gpu.name + (f" with {size:g} GB" if len(gpu.sold_gib) > 1 else "")
        memory = "add the memory or " if len({size for _, size in options}) > 1 else ""
        warning = (
            f"'{name}' may be {_labels(options)}: taken as {chosen}; {memory}write the name out to"
            " choose another"
        )
        return gpu, memory_bytes, [warning]
    # A word that changes the chip and was not typed.
    typed = set(split_name(name).words)
    added = gpu.own_words - typed - FORM
    is_guess = typed and added and typed < gpu.own_words and name.lower() != gpu.id
    return gpu, memory_bytes, [f"'{name}' read as {gpu.name}"] if is_guess else []


def _of_no_size(
    gpus: Sequence[CatalogueGpu], stated_gib: float
) -> tuple[CatalogueGpu, int | None, list[str]]:
    options = [(gpu, size) for gpu in gpus for size in gpu.sold_gib]
    gpu, _ = min(options, key=lambda option: abs(option[1] - stated_gib))
    warning = (
        f"{_labels(options)}: none has {stated_gib:g} GiB; the speed is that of {gpu.name}, the"
        " memory is taken as stated"
    )
    return gpu, int(stated_gib * GIB), [warning]


def _labels(options: Iterable[tuple[CatalogueGpu, float | None]]) -> str:
    """'A100 SXM4 80GB, A100 PCIe 80GB', with the size where one name is sold with several."""
    labels = (gpu.name + (f" {size:g}GB" if len(gpu.sold_gib) > 1 else "") for gpu, size in options)
    return ", ".join(dict.fromkeys(labels))


def _memory(gpu: CatalogueGpu, size_gib: float | None) -> int | None:
    """The memory the driver reports for this size; for a second size, the memory as sold."""
    is_own = gpu.spec.memory_bytes is not None and gpu.sold_gib[:1] == (size_gib,)
    return gpu.spec.memory_bytes if size_gib is None or is_own else int(size_gib * GIB)


def _same(stated_gib: float, sold_gib: float) -> bool:
    return abs(stated_gib - sold_gib) <= SAME_SIZE * sold_gib


def _reported(gpu: CatalogueGpu, size_gib: float, stated_gib: float) -> bool:
    """Whether the driver shows the stated size for this GPU (15 GiB on a T4 sold as 16 GB)."""
    shown = _memory(gpu, size_gib)
    return shown is not None and _same(stated_gib, shown / GIB)


def _near(name: str) -> tuple[str, ...]:
    """Up to three names like it: those with the same number first, then those spelt alike."""
    words = split_name(name).words
    numbers, typed = set(filter(_has_digit, words)), frozenset(words)
    same_number = sorted(
        (gpu for gpu in catalogue_gpus().values() if numbers & gpu.own_words),
        key=lambda gpu: len(typed ^ gpu.own_words),
    )
    by_words = {" ".join(split_name(gpu.name).words): gpu.name for gpu in catalogue_gpus().values()}
    alike = difflib.get_close_matches(" ".join(words), list(by_words), n=3, cutoff=0.6)
    names = [*(gpu.name for gpu in same_number), *(by_words[close] for close in alike)]
    return tuple(dict.fromkeys(names))[:3]


# --------------------------------------------------------------------------- what else is asked of


def cheapest_cards(min_bytes: int) -> tuple[GpuSpec, ...]:
    """NVIDIA GPUs for rent with at least this memory, the cheapest first, then the larger."""
    rented = (gpu for gpu in catalogue_gpus().values() if gpu.price_usd_per_h is not None)
    fitting = [
        (gpu.price_usd_per_h, -(gpu.spec.memory_bytes or 0), gpu.id, gpu.spec)
        for gpu in rented
        if gpu.spec.vendor == "nvidia" and (gpu.spec.memory_bytes or -1) >= min_bytes
    ]
    return tuple(spec for *_, spec in sorted(fitting, key=lambda row: row[:3]))


def slowest_of(hardware: Hardware) -> GpuSpec | None:
    """The slowest NVIDIA GPU for a home that is sold with the memory of a card of which nothing
    else is known; None if there is none, or more is known.
    """
    size = hardware.gpus[0].memory_total_bytes if len(hardware.gpus) == 1 else None
    if size is None or hardware.kind != "cuda" or hardware.gpus[0].spec is not None:
        return None
    sold = [
        gpu.spec
        for gpu in catalogue_gpus().values()
        if gpu.entry["segment"] == "consumer" and size / GIB in gpu.sold_gib
    ]
    known = (spec for spec in sold if spec.vendor == "nvidia" and spec.bf16)
    return min(known, key=lambda spec: spec.bf16_flops or math.inf, default=None)


def is_marketplace(card: GpuSpec) -> bool:
    """Whether only private owners rent it out, whom nobody has vetted."""
    return " marketplace, " in card.price_note


def free_gpus() -> str:
    """The free offers: "Kaggle (2 x T4 or P100 PCIe, 30 h a week) and ..."; "" if none is known."""
    offers: dict[str, list[str]] = {}
    hours: dict[str, str] = {}
    for gpu in catalogue_gpus().values():
        for tier in gpu.row["free"]:
            many = f"{tier['gpus']} x " if tier["gpus"] > 1 else ""
            offers.setdefault(tier["provider"], []).append(f"{many}{gpu.name}")
            if "hours_a_week" in tier:
                hours[tier["provider"]] = f", {tier['hours_a_week']:g} h a week"
    return " and ".join(
        f"{provider} ({' or '.join(gpus)}{hours.get(provider, '')})"
        for provider, gpus in offers.items()
    )


def interconnect_of(spec: GpuSpec) -> str | None:
    """How several of these GPUs are joined: "NVLink 4, 900 GB/s both ways"; None: not known."""
    link = gpu_entry(spec.id).get("interconnect") or {}
    kind = link.get("kind")
    both_ways = link.get("bidirectional_gb_s")
    speed = f", {both_ways:g} GB/s both ways" if both_ways else ""
    if kind in ("nvlink", "nvlink_bridge"):
        bridge = " bridge between two GPUs" if kind == "nvlink_bridge" else ""
        return f"NVLink {link.get('nvlink_generation', '')}".strip() + bridge + speed
    if kind == "xgmi":
        return f"xGMI{speed}"
    if kind == "pcie":
        lanes = f" x{link['pcie_lanes']}" if link.get("pcie_lanes") else ""
        return f"PCIe {link.get('pcie_generation', '')}{lanes}".strip()
    return "memory shared with the CPU" if kind == "unified" else None
