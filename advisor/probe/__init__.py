"""The machine as Hardware: probed, or stated by a person."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from advisor.ground.types import Hardware
from advisor.probe.catalogue import GpuMatch, cheapest_cards, find_gpu, load_catalogue, match_probed
from advisor.probe.software import cuda_problem, torch_build
from advisor.probe.stated import cpu_hardware, stated_hardware
from advisor.probe.system import probe_amd, probe_apple, probe_system

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
    """This machine: GPUs, cores, memory, disk below `folder`, packages. Never raises.

    NVIDIA comes before Apple before AMD; without any of them training runs on the CPU.
    """
    from advisor.probe.nvidia import probe_nvidia  # a machine that is stated needs no driver

    system = probe_system(folder or Path.cwd())
    nvidia, apple, amd = probe_nvidia(system), probe_apple(system), probe_amd()
    used = next((one for one in (nvidia, apple, amd) if one.gpus), system)
    hardware = replace(
        system,
        kind=used.kind,
        gpus=used.gpus,
        driver_version=nvidia.driver_version,
        cuda_version=nvidia.cuda_version,
        interconnect=nvidia.interconnect,
        notes=(*nvidia.notes, *apple.notes, *amd.notes, *system.notes),
    )
    return replace(hardware, problem=cuda_problem(hardware, torch_build()))
