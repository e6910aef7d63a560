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
    from advisor.probe.kept_free import kept_of_ram
    from advisor.probe.nvidia import probe_nvidia
    from advisor.probe.software import cuda_problem, installed_versions, torch_build
    from advisor.probe.system import probe_amd, probe_apple, probe_system

    system = probe_system(folder or Path.cwd())
    nvidia = probe_nvidia(
        ram_total_bytes=system.ram_total_bytes, ram_free_bytes=system.ram_free_bytes
    )
    apple, apple_notes = probe_apple(system.ram_total_bytes)
    amd, amd_notes = probe_amd()
    kind, gpus = next(
        (
            (kind, gpus)
            for kind, gpus in (
                ("cuda", nvidia.gpus),
                ("mps", (apple,) if apple else ()),
                ("rocm", amd),
            )
            if gpus
        ),
        ("cpu", ()),
    )
    build = torch_build()
    hardware = Hardware(
        kind=kind,
        origin="probed",
        gpus=gpus,
        cpu_model=system.cpu_model,
        cpu_cores=system.cpu_cores,
        cpu_bf16=system.cpu_bf16,
        ram_total_bytes=system.ram_total_bytes,
        ram_free_bytes=system.ram_free_bytes,
        ram_kept_free_bytes=kept_of_ram(system.ram_total_bytes),
        disk_free_bytes=system.disk_free_bytes,
        driver_version=nvidia.driver_version,
        cuda_version=nvidia.cuda_version,
        interconnect=nvidia.interconnect,
        software=installed_versions(),
        notes=(*nvidia.notes, *apple_notes, *amd_notes, *system.notes),
        torch_target=None if build is None else build.target,
    )
    return replace(hardware, problem=cuda_problem(hardware, build))
