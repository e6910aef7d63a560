"""Cores, memory and disk within the limits that hold for a process, from recorded /proc and /sys trees;
installed packages, and whether the installed PyTorch can use the GPU.
"""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe import system
from advisor.probe.software import (
    PACKAGES,
    TorchBuild,
    cuda_problem,
    installed_versions,
    torch_build,
)

MEMINFO = (  # 62.5 GiB
    "MemTotal:       65536000 kB\nMemFree:         1000000 kB\nMemAvailable:   60000000 kB\n"
)


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


V2 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "0::/user.slice/job\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
}
V1 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": (
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    ),
    "proc/self/mountinfo": (
        "31 30 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n32 30 0:28"
        " /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    ),
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{5 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {1 * GIB}\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}


WHOLE = (65536000 * 1024, 60000000 * 1024)
ABOVE = "sys/fs/cgroup/user.slice"
LIMITS = {  # files; total and free memory, cores, and what is said of each
    "no limit": (V2, WHOLE, 16, (None, None)),
    # A limit on any control group above the process holds, with the file cache counted as free:
    # 4 - (3 - 2). One and a half cores run one thread at full speed.
    "a v2 limit of a parent": (
        V2 | {f"{ABOVE}/memory.max": f"{4 * GIB}\n", f"{ABOVE}/memory.current": f"{3 * GIB}\n",
         f"{ABOVE}/memory.stat": f"inactive_file {2 * GIB}\n",
         f"{ABOVE}/cpu.max": "150000 100000\n"},
        (4 * GIB, 3 * GIB), 1, ("4.0 GiB", "1.5 cores")),
    # The v1 mount shows its own part of the tree, while /proc names the whole path: 8 - (5 - 1).
    "a v1 container": (V1, (8 * GIB, 4 * GIB), 2, ("8.0 GiB", "2.5 cores")),
    "an empty v2 hierarchy beside v1": (
        V1 | {"proc/self/cgroup": V1["proc/self/cgroup"] + "0::/docker/abc\n",
         "proc/self/mountinfo": V1["proc/self/mountinfo"]
         + "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"},
        (8 * GIB, 4 * GIB), 2, ("8.0 GiB", "2.5 cores")),
    # What v1 writes where nothing is limited.
    "the huge number of v1": (
        V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
         "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"},
        WHOLE, 16, (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_of_a_process_count(tmp_path, name):
    """Of any control group above it; without one the machine's own memory and cores."""
    files, memory, cores, said = LIMITS[name]
    root = tree(tmp_path, files)
    *found, memory_note = system.usable_memory(root)
    found_cores, core_note = system.usable_cores(root)
    assert (tuple(found), found_cores) == (memory, cores)
    for part, note in zip(said, (memory_note, core_note), strict=True):
        assert note is None if part is None else part in note


def test_without_proc_and_sys_the_system_call_tells(tmp_path, monkeypatch):
    """Or the facts stay unknown."""
    total, *others = system.usable_memory(tmp_path)
    assert total is None or total > 0
    assert others == [None, None]
    monkeypatch.setattr(os, "sysconf", lambda _: -1)
    assert system.usable_memory(tmp_path)[0] is None


def test_free_disk_of_a_folder_to_come_and_the_kernel_of_wsl(tmp_path):
    """The disk of a folder that does not exist yet is that of its nearest parent."""
    statvfs = os.statvfs(tmp_path)
    found = system.free_disk(tmp_path / "runs" / "new")
    assert found == pytest.approx(statvfs.f_bavail * statvfs.f_frsize, rel=0.05)
    kernel = {"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2\n"}
    notes = system.probe_system(tmp_path, tree(tmp_path, V2 | kernel)).notes
    assert any(note.startswith("WSL2") for note in notes)


def amd_files(
    *, gfx: int, vram: int, product: str | None = None, number: int = 0
) -> dict[str, str]:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    device = f"sys/class/drm/renderD{128 + number}/device"
    return {
        f"{nodes}/0/properties": "cpu_cores_count 96\nsimd_count 0\nvendor_id 0\n",
        f"{nodes}/{1 + number}/properties": (
            f"simd_count 1216\nvendor_id 4098\ngfx_target_version {gfx}\n"
            f"drm_render_minor {128 + number}\nunique_id {100 + number}\n"
        ),
        f"{device}/mem_info_vram_total": f"{vram}\n",
        f"{device}/mem_info_vram_used": f"{1 * GIB}\n",
        **({f"{device}/product_name": f"{product}\n"} if product else {}),
    }


@pytest.mark.parametrize(
    ("gfx", "vram", "product", "expected"),
    [
        (90402, 206141652992, None, "amd-mi300x"),  # gfx942
        # gfx90a with 64 GiB may be an MI210 or half an MI250X: the product's name decides.
        (90010, 64 * GIB, None, None),
        (90010, 64 * GIB, "AMD Instinct MI210", "amd-mi210"),
    ],
)
def test_an_amd_card_is_recognised_by_target_and_memory(tmp_path, gfx, vram, product, expected):
    """Free memory is what the kernel says, the rest is named as unseen; two alike are not guessed."""
    found = system.probe_amd(tree(tmp_path, amd_files(gfx=gfx, vram=vram, product=product)))
    (gpu,) = found.gpus
    assert (gpu.spec and gpu.spec.id) == expected
    assert expected or gpu.name == "AMD gfx90a"
    assert gpu.memory_free_bytes == vram - GIB
    assert any("other processes and the ROCm version are not read" in note for note in found.notes)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            amd_files(gfx=110003, vram=GIB // 2),
            "inside the processor",
        ),  # half a GiB of video memory
        ({"sys/class/drm/card0/device/vendor": "0x1002\n"}, "compute driver"),
    ],
)
def test_what_is_no_usable_amd_gpu_is_said(tmp_path, files, said):
    """Graphics inside a processor, and a GPU whose compute driver is absent."""
    found = system.probe_amd(tree(tmp_path, files))
    assert found.gpus == ()
    assert any(said in note for note in found.notes)


@pytest.mark.parametrize(
    ("environ", "indices"),
    [
        ({}, [1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, [2]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [1]),  # the fourth device
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{103:016x}"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_amd_devices_are_those_that_rocm_shows(tmp_path, environ, indices):
    """ROCR_VISIBLE_DEVICES hides first; graphics inside the processor count as number 0."""
    for number, vram in enumerate((GIB // 2, 64 * GIB, 64 * GIB, 64 * GIB)):
        tree(tmp_path, amd_files(gfx=90010, vram=vram, number=number))
    found = system.probe_amd(tmp_path, environ)
    assert [gpu.index for gpu in found.gpus] == indices
    assert any("hidden by" in note for note in found.notes) == bool(environ)
    if "ROCR_VISIBLE_DEVICES" in environ:
        assert found.gpus[0].uuid == f"GPU-{103:016x}"


def test_an_apple_chip_shares_the_memory(monkeypatch):
    """On macOS the chip's name comes from sysctl and its memory is the computer's."""
    monkeypatch.setattr(system.sys, "platform", "darwin")
    uname = os.uname_result(("Darwin", "mac", "24.0", "x", "arm64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    said = subprocess.CompletedProcess([], 0, stdout="Apple M4 Max\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: said)
    found = system.probe_apple(Hardware(kind="cpu", origin="probed", ram_total_bytes=48 * GIB))
    (gpu,) = found.gpus
    assert (gpu.spec.id, gpu.memory_total_bytes) == ("apple-m4-max", 48 * GIB)
    assert any("share the memory" in note for note in found.notes)


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma\nbugs\t\t: bf16\n", False),
        ("processor\t: 0\nhart\t\t: 1\n", None),
        ("", None),
    ],
)
def test_whether_the_processor_multiplies_bfloat16_is_read_and_not_guessed(
    cpuinfo, found, tmp_path
):
    """x86 says `flags`, Arm `Features`; who says neither is not known."""
    assert system.multiplies_bf16(tree(tmp_path, {"proc/cpuinfo": cpuinfo})) is found


# -------------------------------------------------------------------------- installed packages


def test_versions_agree_with_the_standard_library(tmp_path):
    """Read from metadata folders, as importlib.metadata says, without loading PyTorch; what is in no
    folder is None, also beside similar names.
    """
    before = "torch" in sys.modules
    found = installed_versions()
    torch_build()
    assert ("torch" in sys.modules) is before
    assert set(found) == set(PACKAGES)
    for name, version in found.items():
        try:
            assert importlib.metadata.version(name) == version
        except importlib.metadata.PackageNotFoundError:
            assert version is None
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
    ("hardware", "torch", "said"),
    [
        # Where the build suits driver and GPU, or where that cannot be known, nothing is said.
        (MACHINE, build("2.13.0", "13.0"), None),
        (MACHINE, build("2.9.1", "12.8"), None),  # a newer driver runs older CUDA
        (OLD_DRIVER, build("2.9.1+cu128", "12.8"), None),  # minor version compatibility in CUDA 12
        (replace(MACHINE, cuda_version=None), build("2.13.0", "13.0"), None),  # not known
        # a what-if card needs no PyTorch here
        (replace(MACHINE, origin="stated"), build("2.13.0+cpu"), None),
        (replace(MACHINE, gpus=(), kind="cpu"), build("2.13.0+cpu"), None),
        (of_capability(7, 0), build("2.14.0a0+gitabc", "13.0"), None),  # somebody's own build
        (of_capability(7, 0), build("2.10.0", "12.8"), None),
        (of_capability(12, 1), build("2.13.0", "13.0"), None),
        (replace(MACHINE, kind="rocm"), build("2.13.0", hip="6.4"), None),
        # What is wrong, and the one line to install.
        (MACHINE, build("2.13.0+cpu"), ("2.13.0+cpu (CPU build) cannot use it",
         'pip install --force-reinstall "torch>=2.11"')),
        (MACHINE, build("2.9.1+cpu"),
         ("CPU build", 'pip install --force-reinstall "torch>=2.11"')),
        (OLD_DRIVER, build("2.13.0+cpu"), ("CPU build",
         'pip install --force-reinstall "torch==2.10.*"')),  # CUDA 13 would not run there
        (OLD_DRIVER, build("2.13.0", "13.0"),
         ("550.54.14 runs CUDA up to 12.4 (updating it to 580 or newer helps too)",
          'pip install --force-reinstall "torch==2.10.*"')),
        (replace(MACHINE, driver_version="470.82.01", cuda_version="11.4"), build("2.10.0", "12.8"),
         ("to 525 or newer", "first a driver to 525 or newer")),
        (of_capability(7, 0, "Tesla V100"), build("2.13.0", "13.0"),
         ("7.0) is too old", "torch==2.10.*")),
        (of_capability(12, 0, "RTX 5090"), build("2.7.0+cu126", "12.6"),
         ("12.0) is too new", "torch>=2.11")),
        (of_capability(6, 1, "GTX 1080 Ti"), build("2.10.0", "12.8"),
         ("6.1) is too old", "CUDA 12.6 build")),
        (MACHINE, build("2.9.1+rocm6.4", hip="6.4"), ("ROCm 6.4 build", "torch>=2.11")),
        (replace(MACHINE, kind="rocm"), build("2.13.0", "13.0"),
         ("has no ROCm", "ROCm build of 2.13.0")),
    ],
)  # fmt: skip
def test_a_pytorch_that_cannot_use_the_card_is_named_with_its_cure(hardware, torch, said):
    """Each mismatch of build, driver and GPU, and no other."""
    problem = cuda_problem(hardware, torch)
    assert (problem is None) == (said is None)
    if said:
        why, install = said
        assert hardware.gpus[0].name in problem
        assert why in problem
        assert install in problem.rpartition("Install")[2]
        assert "http" not in problem
