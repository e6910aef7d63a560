"""The machine as Hardware: probed, or stated by a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from advisor.ground.types import Hardware
from advisor.probe.catalogue import GpuMatch, cheapest_cards, find_gpu, load_catalogue, match_probed
from advisor.probe.stated import cpu_hardware, stated_hardware

__all__ = [
    "GpuMatch",
    "cheapest_cards",
    "cpu_hardware",
    "find_gpu",
    "load_catalogue",
    "match_probed",
    "probe",
    "stated_hardware",
]


def probe(folder: Path | None = None) -> Hardware:
    """This machine: cards, cores, memory, disk below `folder` (the current one), installed
    packages. Never raises.

    NVIDIA comes before Apple before AMD; without any of them training runs on the CPU.
    """
    from advisor.probe.nvidia import probe_nvidia
    from advisor.probe.software import cuda_problem, torch_build
    from advisor.probe.system import probe_amd, probe_apple, probe_system

    system = probe_system(folder or Path.cwd())
    nvidia = probe_nvidia(
        ram_total_bytes=system.ram_total_bytes, ram_free_bytes=system.ram_free_bytes
    )
    apple, apple_notes = probe_apple(system.ram_total_bytes)
    amd, amd_notes = probe_amd()
    found = (("cuda", nvidia.gpus), ("mps", (apple,) if apple else ()), ("rocm", amd), ("cpu", ()))
    kind, gpus = next((kind, gpus) for kind, gpus in found if gpus or kind == "cpu")
    hardware = replace(
        system,
        kind=kind,
        gpus=gpus,
        driver_version=nvidia.driver_version,
        cuda_version=nvidia.cuda_version,
        interconnect=nvidia.interconnect,
        notes=(*nvidia.notes, *apple_notes, *amd_notes, *system.notes),
    )
    return replace(hardware, problem=cuda_problem(hardware, torch_build()))
