"""What was found on this machine, as JSON and as a page for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from advisor.ground.types import Gpu, GpuSpec, Hardware
from advisor.ground.units import GIB, format_gib, format_usd

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
TITLES = {"probed": "This computer", "stated": "The hardware you named", "unknown": "Hardware"}
KINDS = {
    "cuda": "NVIDIA card",
    "rocm": "AMD card",
    "mps": "Apple chip",
    "cpu": "none found: training runs on the processor",
    "unknown": "not known: nothing is ruled out because of it",
}
BF16 = {True: "bf16", False: "no bf16: trains in fp16", None: "bf16 not known"}


def probe_json(hardware: Hardware) -> dict[str, Any]:
    """The hardware as one JSON document; units stand in the keys, null means not known."""
    names = (
        "interconnect", "driver_version", "cuda_version", "cpu_model", "cpu_cores", "cpu_bf16",
    )  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": hardware.kind,
        "origin": hardware.origin,
        "gpus": [_gpu_json(gpu) for gpu in hardware.gpus],
        **{name: getattr(hardware, name) for name in names},
        "ram_total_gib": _gib(hardware.ram_total_bytes),
        "ram_free_gib": _gib(hardware.ram_free_bytes),
        "disk_free_gib": _gib(hardware.disk_free_bytes),
        "software": dict(hardware.software),
        "torch_target": hardware.torch_target,
        "problem": hardware.problem,
        "notes": list(hardware.notes),
    }


def _gpu_json(gpu: Gpu) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "index": gpu.index,
        "uuid": gpu.uuid,
        "memory_total_gib": _gib(gpu.memory_total_bytes),
        "memory_free_gib": _gib(gpu.memory_free_bytes),
        "other_processes_gib": _gib(gpu.other_processes_bytes),
        "kept_free_gib": _gib(gpu.kept_free_bytes),
        "kept_free_because": gpu.kept_free_because,
        "compute_capability": _capability(gpu) or None,
        "bf16": gpu.bf16,
        "mig_profile": gpu.mig_profile,
        "catalogue": None if gpu.spec is None else _spec_json(gpu.spec),
    }


def _spec_json(spec: GpuSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "name": spec.name,
        "bf16_tflops": _in(1e12, spec.bf16_flops),
        "achieved_tflops": _in(1e12, spec.achieved_flops),
        "bandwidth_gb_per_s": _in(1e9, spec.bandwidth_bytes_per_s),
        "power_w": spec.power_w,
        "price_usd_per_h": spec.price_usd_per_h,
        "price_note": spec.price_note or None,
    }


def _in(unit: float, amount: float | None, digits: int = 1) -> float | None:
    return None if amount is None else round(amount / unit, digits)


def _gib(size_bytes: int | None) -> float | None:
    return _in(GIB, size_bytes, 3)


def _capability(gpu: Gpu) -> str:
    return ".".join(map(str, gpu.compute_capability or ()))


def print_probe(hardware: Hardware, console: Console) -> None:
    """Print what was found; readable at 80 columns and without colour."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print(Text(TITLES[hardware.origin], style="bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    for label, value in _facts(hardware):
        facts.add_row(Text(label), Text(value))
    what, _, install = (hardware.problem or "").partition(" Install: ")
    texts = [Text(f"note: {note}") for note in hardware.notes]
    texts += [Text(f"problem: {what}", style="bold red")] if what else []
    console.print(Padding(facts, (0, 0, 0, 2), expand=False))
    for text in texts:
        console.print(Padding(text, (0, 0, 0, 2), expand=False))
    if install:
        console.print(Text(f"  install: {install}"), soft_wrap=True)  # one line, to be copied


def _facts(hardware: Hardware) -> Iterator[tuple[str, str]]:
    """Label and text of every line; what is not known has none, the absence of a GPU has one."""
    if not hardware.gpus:
        none = "none that can be used: training runs on the processor"
        has_driver = hardware.kind == "cpu" and hardware.driver_version
        yield "GPU", none if has_driver else KINDS[hardware.kind]
    alike = groupby(hardware.gpus, key=attrgetter("name", "memory_total_bytes", "mig_profile"))
    for neighbours in (list(group) for _, group in alike):
        count = len(neighbours)
        fullest = min(neighbours, key=lambda gpu: gpu.memory_free_bytes or 0)
        yield "GPU", f"{f'{count} x ' if count > 1 else ''}{fullest.name}"
        yield "", _memory(fullest, each=count > 1)
        yield "", ", ".join(_abilities(fullest))
    if hardware.interconnect:
        yield "connected by", hardware.interconnect
    if hardware.driver_version:
        cuda = f", CUDA up to {hardware.cuda_version}" if hardware.cuda_version else ""
        yield "driver", f"{hardware.driver_version}{cuda}"
    if hardware.cpu_cores is not None:
        bf16 = ", with bfloat16" if hardware.cpu_bf16 else ""
        yield "processor cores", f"{hardware.cpu_cores}{bf16}"
    if hardware.ram_total_bytes is not None:
        yield "memory", _free_of(hardware.ram_free_bytes, hardware.ram_total_bytes)
    if hardware.disk_free_bytes is not None:
        yield "disk", f"{format_gib(hardware.disk_free_bytes)} free"
    if hardware.software:
        yield "software", _software(hardware)


def _free_of(free_bytes: int | None, total_bytes: int) -> str:
    free = "" if free_bytes is None else f"{format_gib(free_bytes)} free of "
    return f"{free}{format_gib(total_bytes)}"


def _memory(gpu: Gpu, *, each: bool) -> str:
    if gpu.memory_total_bytes is None:
        return "memory not known"
    text = _free_of(gpu.memory_free_bytes, gpu.memory_total_bytes)
    if each:
        text += " on the fullest" if gpu.memory_free_bytes is not None else " each"
    if gpu.other_processes_bytes:
        text += f", {format_gib(gpu.other_processes_bytes)} held by other programs"
    return text


def _abilities(gpu: Gpu) -> Iterator[str]:
    if gpu.compute_capability is not None:
        yield f"compute capability {_capability(gpu)}"
    yield BF16[gpu.bf16]
    if gpu.mig_profile is not None:
        yield f"MIG slice {gpu.mig_profile}"
    elif gpu.spec is None:
        yield "speed not known (not in the catalogue)"
    elif gpu.spec.price_usd_per_h is not None:
        yield f"in the cloud {format_usd(gpu.spec.price_usd_per_h)}/h ({gpu.spec.price_note})"


def _software(hardware: Hardware) -> str:
    installed = {name: one for name, one in hardware.software.items() if one is not None}
    if not installed.get("torch"):
        missing = "PyTorch is not installed: advice works, training needs the extra `train`"
        return f"{missing} (installed: {', '.join(installed)})" if installed else missing
    target = f" ({hardware.torch_target} build)" if hardware.torch_target else ""
    texts = [f"{name} {one}{target if name == 'torch' else ''}" for name, one in installed.items()]
    absent = [name for name in hardware.software if name not in installed]
    return ", ".join(texts) + (f"; not installed: {', '.join(absent)}" if absent else "")
