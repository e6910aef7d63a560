"""What a typed name of a GPU may mean, for a question that can be asked."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.units import GIB
from advisor.probe.catalogue import find_gpu, gpus_of, greater_chips
from advisor.probe.gpu_files import not_supported
from advisor.probe.names import count_and_name
from advisor.probe.stated import APPLE, WHICH_MAC


class NamedGpu(Struct, frozen=True, kw_only=True):
    """One GPU to choose."""

    name: str
    memory_gib: float | None = None  # to state beside the name; None: the name says it

    @property
    def label(self) -> str:
        """'RTX 3080 Laptop with 16 GB'."""
        return self.name + (f" with {self.memory_gib:g} GB" if self.memory_gib else "")


class MeantGpu(Struct, frozen=True, kw_only=True):
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
    meant = MeantGpu(name=name, count=count)
    match = find_gpu(name)
    gpus, stated_gib = gpus_of(name)
    if match.spec is None:
        if (device := not_supported(name)) is not None:
            note = f"this is {device.what}, which this tool cannot train on: it {device.why}"
            return replace(meant, found=NamedGpu(name=name), note=note)
        if match.memory_bytes is None:
            is_mac = APPLE.search(name) is not None
            return replace(meant, near=match.near, note=WHICH_MAC if is_mac else "")
        unknown = "not in the catalogue: its speed and formats are not known"
        bare = NamedGpu(name=name, memory_gib=round(match.memory_bytes / GIB, 3))
        return replace(meant, found=bare, note="; ".join((*match.warnings, unknown)))
    meant = replace(meant, shared=match.spec.memory_bytes is None)
    if stated_gib is None:
        # Who has an Ultra says so.
        gpus += tuple(gpu for gpu in greater_chips(gpus) if "ultra" not in gpu.own_words)
    sizes = sorted(((size, gpu) for gpu in gpus for size in gpu.sold_gib), key=lambda one: one[0])
    variants = tuple(
        NamedGpu(name=gpu.name, memory_gib=size if len(gpu.sold_gib) > 1 else None)
        for size, gpu in sizes
    )
    is_usual = any(gpu.usual_gib is not None for gpu in gpus)
    if (stated_gib is None and len(variants) > 1 and not is_usual) or match.not_sold:
        note = f"it is sold with {match.not_sold}" if match.not_sold else ""
        return replace(meant, variants=variants, note=note)
    memory_gib = stated_gib if any(variant.memory_gib for variant in variants) else None
    found = NamedGpu(name=match.spec.name, memory_gib=memory_gib)
    return replace(meant, found=found, note="; ".join(match.warnings))
