"""Installed packages without importing them, and whether the installed PyTorch can use the card."""

import importlib.metadata
import sys

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


def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_versions_agree_with_the_standard_library():
    """Read from metadata folders, as importlib.metadata says, without loading PyTorch."""
    assert installed_versions() == {name: installed(name) for name in PACKAGES}
    before = "torch" in sys.modules
    torch_build()
    assert ("torch" in sys.modules) is before


def test_absent_packages_are_none(tmp_path):
    """Nothing installed, a missing folder and similar names are None."""
    for name in ("torchvision-0.27.0.dist-info", "torch_geometric-2.6.dist-info",
                 "torch-2.9.1.dist-info.bak"):  # fmt: skip
        (tmp_path / name).mkdir()
    folders = [str(tmp_path), str(tmp_path / "gone")]
    assert installed_versions(folders) == dict.fromkeys(PACKAGES)
    assert torch_build(folders) is None


@pytest.mark.parametrize(
    ("version", "version_py", "cuda", "hip"),
    [
        ("2.13.0+cpu", "cuda: Optional[str] = None\nhip: Optional[str] = None\n", None, None),
        ("2.13.0", "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0", None),
        ("2.9.1+cu128", "cuda = '12.8'\nhip = None\n", "12.8", None),
        ("2.9.1+cu128", None, "12.8", None),
        ("2.9.1+rocm6.4", "cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482'\n",
         None, "6.4.43482"),
        ("2.9.1+rocm6.4", None, None, "6.4"),
    ],
)  # fmt: skip
def test_what_pytorch_was_built_for_is_read_from_its_files(
    tmp_path, version, version_py, cuda, hip
):
    """The version file says it, else the local part of the version."""
    (tmp_path / f"torch-{version}.dist-info").mkdir()
    if version_py is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(version_py)
    assert torch_build([str(tmp_path)]) == build(version, cuda, hip)


CARD = Gpu(name="NVIDIA GeForce RTX 4090", memory_total_bytes=1, compute_capability=(8, 9))
MACHINE = Hardware(
    kind="cuda", origin="probed", gpus=(CARD,), driver_version="580.95.05", cuda_version="13.0"
)
OLD_DRIVER = replace(MACHINE, driver_version="550.54.14", cuda_version="12.4")


def of_capability(major, minor, name="RTX 4090"):
    """The machine with another GPU."""
    return replace(MACHINE, gpus=(replace(CARD, name=name, compute_capability=(major, minor)),))


def build(version, cuda=None, hip=None):
    return TorchBuild(version=version, cuda=cuda, hip=hip)


@pytest.mark.parametrize(
    ("hardware", "torch"),
    [
        (MACHINE, build("2.13.0", "13.0")),
        (MACHINE, build("2.9.1", "12.8")),  # a newer driver runs older CUDA
        (OLD_DRIVER, build("2.9.1+cu128", "12.8")),  # minor version compatibility within CUDA 12
        (replace(MACHINE, cuda_version=None), build("2.13.0", "13.0")),  # not known is no problem
        # a what-if card needs no PyTorch here
        (replace(MACHINE, origin="stated"), build("2.13.0+cpu")),
        (replace(MACHINE, gpus=(), kind="cpu"), build("2.13.0+cpu")),
        (of_capability(7, 0), build("2.14.0a0+gitabc", "13.0")),  # somebody's own build
        (of_capability(7, 0), build("2.10.0", "12.8")),
        (of_capability(12, 1), build("2.13.0", "13.0")),
        (replace(MACHINE, kind="rocm"), build("2.13.0", hip="6.4")),
    ],
)  # fmt: skip
def test_a_pytorch_that_can_use_the_card_is_no_problem(hardware, torch):
    """Where the build suits driver and GPU, or where that cannot be known."""
    assert cuda_problem(hardware, torch) is None


@pytest.mark.parametrize(
    ("hardware", "torch", "why", "install"),
    [
        (MACHINE, build("2.13.0+cpu"), "2.13.0+cpu (CPU build) cannot use it",
         'pip install --force-reinstall "torch>=2.11"'),
        (MACHINE, build("2.9.1+cpu"), "CPU build", 'pip install --force-reinstall "torch>=2.11"'),
        (OLD_DRIVER, build("2.13.0+cpu"), "CPU build",
         'pip install --force-reinstall "torch==2.10.*"'),  # CUDA 13 would not run there
        (OLD_DRIVER, build("2.13.0", "13.0"),
         "550.54.14 runs CUDA up to 12.4 (updating it to 580 or newer helps too)",
         'pip install --force-reinstall "torch==2.10.*"'),
        (replace(MACHINE, driver_version="470.82.01", cuda_version="11.4"), build("2.10.0", "12.8"),
         "to 525 or newer", "first a driver to 525 or newer"),
        (of_capability(7, 0, "Tesla V100"), build("2.13.0", "13.0"), "7.0) is too old",
         "torch==2.10.*"),
        (of_capability(12, 0, "RTX 5090"), build("2.7.0+cu126", "12.6"), "12.0) is too new",
         "torch>=2.11"),
        (of_capability(6, 1, "GTX 1080 Ti"), build("2.10.0", "12.8"), "6.1) is too old",
         "CUDA 12.6 build"),
        (MACHINE, build("2.9.1+rocm6.4", hip="6.4"), "ROCm 6.4 build", "torch>=2.11"),
        (replace(MACHINE, kind="rocm"), build("2.13.0", "13.0"), "has no ROCm",
         "ROCm build of 2.13.0"),
    ],
)  # fmt: skip
def test_a_pytorch_that_cannot_use_the_card_is_named_with_its_cure(hardware, torch, why, install):
    """What is wrong and the one line to install."""
    problem = cuda_problem(hardware, torch)
    assert hardware.gpus[0].name in problem
    assert why in problem
    assert install in problem.rpartition("Install")[2]
    assert "http" not in problem
