"""Every name of the catalogue, and the sloppy ways in which people write them."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from advisor.ground.units import GIB
from advisor.ground.yaml_files import LINK
from advisor.probe import stated_hardware
from advisor.probe.catalogue import find_gpu, gpu_entry, load_catalogue, match_probed
from advisor.probe.gpu_files import catalogue_gpus

EVERY = list(load_catalogue())


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_gpu_is_found_by_each_of_its_names(gpu_id: str) -> None:
    """The id, the short name and what a driver prints lead to the same GPU, in any case, with and
    without the vendor, as a flag too, with some memory to plan with.
    """
    gpu = catalogue_gpus()[gpu_id]
    for name in (gpu_id, gpu.name, *gpu.names):
        for written in (name, name.upper(), name.removeprefix("NVIDIA ").removeprefix("AMD ")):
            match = find_gpu(written)
            assert match.spec is not None, written
            assert match.spec.id == gpu_id, written
            assert match.memory_bytes, written
            assert not match.not_sold, written
        hardware, _ = stated_hardware(name, from_flag=True)
        assert hardware.device_memory_bytes


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_name_of_a_driver_is_recognised_when_probed(gpu_id: str) -> None:
    """The exact string with the memory of any size the GPU is sold with first."""
    gpu = catalogue_gpus()[gpu_id]
    for name in gpu.names:
        for memory_bytes in (None, gpu.spec.memory_bytes):
            assert match_probed(name, memory_bytes) is gpu.spec, name


def test_no_two_gpus_claim_one_name() -> None:
    """A name that two entries hold would find the first one of them only."""
    claims = Counter(
        name
        for gpu in catalogue_gpus().values()
        for name in {
            name.lower().removeprefix("nvidia ").removeprefix("amd ")
            for name in (gpu.name, *gpu.names)
        }
    )
    assert [name for name, count in claims.items() if count > 1] == []


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_entry_is_sane(gpu_id: str) -> None:
    """Sizes, rates and speeds lie where such GPUs lie, and a memory that a driver reported is close
    to the size on the box.
    """
    gpu, entry = catalogue_gpus()[gpu_id], gpu_entry(gpu_id)
    memory = entry["memory"]
    assert gpu.sold_gib
    assert all(2 <= size <= 600 for size in gpu.sold_gib)
    assert gpu.usual_gib is None or gpu.usual_gib in gpu.sold_gib
    assert ("usual_gb" in memory) == ("usual_because" in memory)
    if memory.get("nvml_mib"):
        assert 0.9 < gpu.spec.memory_bytes / GIB / gpu.sold_gib[0] <= 1.03  # type: ignore[operator]
    assert gpu.spec.compute_capability is None or (6, 0) <= gpu.spec.compute_capability <= (12, 9)
    assert (gpu.spec.vendor == "nvidia") == (gpu.spec.compute_capability is not None)
    if gpu.spec.bandwidth_bytes_per_s:
        assert 30e9 <= gpu.spec.bandwidth_bytes_per_s <= 10e12
    rates = entry["tflops_dense"]
    assert all(0.5 <= rate <= 6000 for rate in rates.values())
    assert rates.get("bf16", 0) in (0, rates.get("fp16"))
    if entry["supports"]["bf16"] is False:
        assert "bf16" not in rates
    assert 5 <= (entry.get("tdp_w") or 5) <= 1500


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_source_can_be_opened_or_is_named(gpu_id: str) -> None:
    """A GPU rests on named sources or links, and its page in the spec database is a link."""
    entry = gpu_entry(gpu_id)
    assert entry["sources"]
    assert re.fullmatch(LINK, entry.get("spec_url", "https://www.techpowerup.com"))
    assert "tpu" not in entry["sources"] or "spec_url" in entry


@pytest.mark.parametrize(
    ("typed", "gpu_id", "gib"),
    [
        ("4090 laptop", "nvidia-rtx-4090-laptop", 16),
        ("rtx4060laptop", "nvidia-rtx-4060-laptop", 8),
        ("RTX 4060 mobile", "nvidia-rtx-4060-laptop", 8),
        ("4060m", "nvidia-rtx-4060-laptop", 8),
        ("RTX 3070 Max-Q", "nvidia-rtx-3070-laptop", 8),
        ("RTX 3080 Laptop 16GB", "nvidia-rtx-3080-laptop", 16),
        ("3060ti", "nvidia-rtx-3060-ti", 8),
        ("4070tisuper", "nvidia-rtx-4070-ti-super", 16),
        ("rtx4070 super", "nvidia-rtx-4070-super", 12),
        ("4060 ti 16", "nvidia-rtx-4060-ti-16gb", 16),
        ("A100 80", "nvidia-a100-sxm4-80gb", 80),
        ("V100 32", "nvidia-v100-sxm2-32gb", 32),
        ("m3 max", "apple-m3-max", 36),
        ("M3Max 64", "apple-m3-max", 64),
        ("MacBook Pro M3", "apple-m3", 8),
        ("MacBook Pro with M3 Max 128GB", "apple-m3-max", 128),
        ("Mac Studio M2 Ultra 192 GB", "apple-m2-ultra", 192),
        ("rx7900xtx", "amd-rx-7900-xtx", 24),
        ("9070 xt", "amd-rx-9070-xt", 16),
        ("W7900", "amd-radeon-pro-w7900", 48),
        ("Ryzen AI Max+ 395 128GB", "amd-radeon-8060s", 128),
        ("RTX 8000", "nvidia-quadro-rtx-8000", 48),
        ("tesla p100 16gb", "nvidia-p100-pcie", 16),
        ("1660 super", "nvidia-gtx-1660-super", 6),
        ("RTX 5090D", "nvidia-rtx-5090-d", 32),
        ("jetson thor", "nvidia-jetson-thor-t5000", 128),
        ("GH200 480GB", "nvidia-gh200-96gb", 96),
        ("H100 80GB HBM3", "nvidia-h100-sxm5-80gb", 79.6),
    ],
)
def test_sloppy_writing_is_understood(typed: str, gpu_id: str, gib: float) -> None:
    """Glued, shortened, with a bare size, or with the name of the computer."""
    match = find_gpu(typed)
    assert match.spec is not None
    assert match.spec.id == gpu_id
    assert match.memory_bytes is not None
    assert match.memory_bytes / GIB == pytest.approx(gib, abs=0.1)


@pytest.mark.parametrize("gpu_id", [gpu_id for gpu_id in EVERY if "-laptop" in gpu_id])
def test_a_laptop_gpu_is_never_the_desktop_card(gpu_id: str) -> None:
    """Its name without the word is another GPU, which has another speed."""
    laptop = catalogue_gpus()[gpu_id]
    short = laptop.name.removesuffix(" Laptop")
    match = find_gpu(short)
    only_there = short in laptop.names  # no desktop card has this number
    assert only_there or match.spec is None or "Laptop" not in match.spec.name


def test_an_unknown_name_is_not_sized_by_guess() -> None:
    """What is said about a name nobody knows holds no size: the next card of that number may have a
    third of it.
    """
    for name in ("RTX 6060 Laptop", "Titan Z9", "RTX 4091"):
        _, warnings = stated_hardware(name, from_flag=False)
        assert not re.search(r"\d+ ?(GB|GiB)", warnings[-1].replace(name, "")), warnings
