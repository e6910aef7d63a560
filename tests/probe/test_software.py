"""Installed packages without importing them, and whether the installed PyTorch can use the card."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.ground.types import Gpu, Hardware
from advisor.probe.software import (
    PACKAGES,
    TorchBuild,
    cuda_problem,
    installed_versions,
    torch_build,
)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_versions_agree_with_the_standard_library() -> None:
    """The quick reading of metadata folders says what importlib.metadata says."""
    assert installed_versions() == {name: installed(name) for name in PACKAGES}


def test_absent_packages_are_none(tmp_path: Path) -> None:
    """Nothing installed is None, not a missing key; a folder that does not exist is skipped."""
    assert installed_versions([str(tmp_path), str(tmp_path / "gone")]) == dict.fromkeys(PACKAGES)
    assert torch_build([str(tmp_path)]) is None


def site(folder: Path, metadata: str, version_py: str | None = None) -> list[str]:
    (folder / metadata).mkdir(parents=True)
    if version_py is not None:
        (folder / "torch").mkdir()
        (folder / "torch" / "version.py").write_text(version_py)
    return [str(folder)]


def test_similar_names_are_other_packages(tmp_path: Path) -> None:
    """torchvision, torch_geometric and a renamed fork are not torch."""
    for name in (
        "torchvision-0.27.0.dist-info",
        "torch_geometric-2.6.dist-info",
        "torch-2.9.1.dist-info.bak",
    ):
        (tmp_path / name).mkdir()
    assert installed_versions([str(tmp_path)])["torch"] is None


@pytest.mark.parametrize(
    ("metadata", "version_py", "expected"),
    [
        (
            "torch-2.13.0+cpu.dist-info",
            "cuda: Optional[str] = None\nhip: Optional[str] = None\n",
            TorchBuild(version="2.13.0+cpu", cuda=None, hip=None),
        ),
        (
            "torch-2.13.0.dist-info",
            "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
            TorchBuild(version="2.13.0", cuda="13.0", hip=None),
        ),
        (
            "torch-2.9.1+cu128.dist-info",
            "cuda = '12.8'\nhip = None\n",
            TorchBuild(version="2.9.1+cu128", cuda="12.8", hip=None),
        ),
        (
            "torch-2.9.1+cu128.dist-info",
            None,
            TorchBuild(version="2.9.1+cu128", cuda="12.8", hip=None),
        ),
        (
            "torch-2.9.1+rocm6.4.dist-info",
            "cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482'\n",
            TorchBuild(version="2.9.1+rocm6.4", cuda=None, hip="6.4.43482"),
        ),
        (
            "torch-2.9.1+rocm6.4.dist-info",
            None,
            TorchBuild(version="2.9.1+rocm6.4", cuda=None, hip="6.4"),
        ),
    ],
)
def test_what_pytorch_was_built_for_is_read_from_its_files(
    tmp_path: Path, metadata: str, version_py: str | None, expected: TorchBuild
) -> None:
    """The version file says it, else the local part of the version."""
    assert torch_build(site(tmp_path, metadata, version_py)) == expected


def test_the_installed_pytorch_is_read_without_importing_it() -> None:
    """Asking for the build of the installed PyTorch leaves it unloaded."""
    before = "torch" in sys.modules
    torch_build()
    assert ("torch" in sys.modules) is before


CARD = Gpu(name="NVIDIA GeForce RTX 4090", memory_total_bytes=1, compute_capability=(8, 9))
MACHINE = Hardware(
    kind="cuda", origin="probed", gpus=(CARD,), driver_version="580.95.05", cuda_version="13.0"
)
OLD_DRIVER = replace(MACHINE, driver_version="550.54.14", cuda_version="12.4")


def build(version: str, cuda: str | None = None, hip: str | None = None) -> TorchBuild:
    return TorchBuild(version=version, cuda=cuda, hip=hip)


@pytest.mark.parametrize(
    ("hardware", "torch"),
    [
        (MACHINE, build("2.13.0", "13.0")),
        (MACHINE, build("2.9.1", "12.8")),  # a newer driver runs older CUDA
        (OLD_DRIVER, build("2.9.1+cu128", "12.8")),  # minor version compatibility within CUDA 12
        (replace(MACHINE, cuda_version=None), build("2.13.0", "13.0")),  # not known is no problem
        (
            replace(MACHINE, origin="stated"),
            build("2.13.0+cpu"),
        ),  # a what-if card needs no PyTorch here
        (replace(MACHINE, gpus=(), kind="cpu"), build("2.13.0+cpu")),
        (
            replace(MACHINE, gpus=(replace(CARD, compute_capability=(7, 0)),)),
            build("2.14.0a0+gitabc", "13.0"),
        ),  # somebody's own build
        (
            replace(MACHINE, gpus=(replace(CARD, compute_capability=(7, 0)),)),
            build("2.10.0", "12.8"),
        ),
        (
            replace(MACHINE, gpus=(replace(CARD, compute_capability=(12, 1)),)),
            build("2.13.0", "13.0"),
        ),
        (replace(MACHINE, kind="rocm"), build("2.13.0", hip="6.4")),
    ],
)
def test_a_pytorch_that_can_use_the_card_is_no_problem(
    hardware: Hardware, torch: TorchBuild
) -> None:
    """No problem is claimed where the build suits driver and card, or where that cannot be
    known.
    """
    assert cuda_problem(hardware, torch) is None


@pytest.mark.parametrize(
    ("hardware", "torch", "why", "install"),
    [
        (
            MACHINE,
            build("2.13.0+cpu"),
            "2.13.0+cpu (CPU build) cannot use it",
            'pip install --force-reinstall "torch>=2.11"',
        ),
        (MACHINE, build("2.9.1+cpu"), "CPU build", 'pip install --force-reinstall "torch>=2.11"'),
        (
            OLD_DRIVER,
            build("2.13.0+cpu"),
            "CPU build",
            'pip install --force-reinstall "torch==2.10.*"',
        ),  # CUDA 13 would not run there
        (
            OLD_DRIVER,
            build("2.13.0", "13.0"),
            "550.54.14 runs CUDA up to 12.4 (updating it to 580 or newer helps too)",
            'pip install --force-reinstall "torch==2.10.*"',
        ),
        (
            replace(MACHINE, driver_version="470.82.01", cuda_version="11.4"),
            build("2.10.0", "12.8"),
            "to 525 or newer",
            "first a driver to 525 or newer",
        ),
        (
            replace(MACHINE, gpus=(replace(CARD, name="Tesla V100", compute_capability=(7, 0)),)),
            build("2.13.0", "13.0"),
            "7.0) is too old",
            "torch==2.10.*",
        ),
        (
            replace(MACHINE, gpus=(replace(CARD, name="RTX 5090", compute_capability=(12, 0)),)),
            build("2.7.0+cu126", "12.6"),
            "12.0) is too new",
            "torch>=2.11",
        ),
        (
            replace(MACHINE, gpus=(replace(CARD, name="GTX 1080 Ti", compute_capability=(6, 1)),)),
            build("2.10.0", "12.8"),
            "6.1) is too old",
            "CUDA 12.6 build",
        ),
        (MACHINE, build("2.9.1+rocm6.4", hip="6.4"), "ROCm 6.4 build", "torch>=2.11"),
        (
            replace(MACHINE, kind="rocm"),
            build("2.13.0", "13.0"),
            "has no ROCm",
            "ROCm build of 2.13.0",
        ),
    ],
)
def test_a_pytorch_that_cannot_use_the_card_is_named_with_its_cure(
    hardware: Hardware, torch: TorchBuild, why: str, install: str
) -> None:
    """A CPU wheel, CUDA newer than the driver, a card without code in the wheel: what is wrong and
    the one line to install.
    """
    problem = cuda_problem(hardware, torch)
    assert problem is not None
    assert hardware.gpus[0].name in problem
    assert why in problem
    assert install in problem.rpartition("Install")[2]
    assert "http" not in problem
