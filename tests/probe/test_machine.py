"""Cores, memory, disk and packages from recorded trees, and pynvml against a compiled stub."""

import copy
import ctypes
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import ANY, Mock

import pytest
from msgspec.structs import replace

from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe import system
from advisor.probe.nvidia import GpuBoard, probe_nvidia, process_name, usable
from advisor.probe.software import (
    PACKAGES,
    TorchBuild,
    cuda_problem,
    installed_versions,
    torch_build,
)
from tests.probe.conftest import recorded

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


@pytest.mark.parametrize(("files", "memory", "cores", "said"), LIMITS.values(), ids=LIMITS)
def test_the_limits_of_a_process_count(tmp_path, files, memory, cores, said):
    """Of any control group above it; without one the machine's own memory and cores."""
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
    assert (found.gpus, any(said in note for note in found.notes)) == ((), True)


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


def test_versions_agree_with_the_standard_library(tmp_path):
    """As importlib.metadata says, without loading PyTorch; what is in no folder is None."""
    before, found = "torch" in sys.modules, installed_versions()
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
    assert (installed_versions(folders), torch_build(folders)) == (dict.fromkeys(PACKAGES), None)


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
        # Where the build suits driver and GPU, or where that cannot be known, nothing is said.
        (MACHINE, build("2.13.0", "13.0")),
        (MACHINE, build("2.9.1", "12.8")),  # a newer driver runs older CUDA
        (OLD_DRIVER, build("2.9.1+cu128", "12.8")),  # minor version compatibility in CUDA 12
        (replace(MACHINE, cuda_version=None), build("2.13.0", "13.0")),  # not known
        (replace(MACHINE, origin="stated"), build("2.13.0+cpu")),  # needs no PyTorch here
        (replace(MACHINE, gpus=(), kind="cpu"), build("2.13.0+cpu")),
        (of_capability(7, 0), build("2.14.0a0+gitabc", "13.0")),  # somebody's own build
        (of_capability(7, 0), build("2.10.0", "12.8")),
        (of_capability(12, 1), build("2.13.0", "13.0")),
        (replace(MACHINE, kind="rocm"), build("2.13.0", hip="6.4")),
        # What is wrong, and the one line to install.
        (MACHINE, build("2.13.0+cpu")),
        (MACHINE, build("2.9.1+cpu")),
        (OLD_DRIVER, build("2.13.0+cpu")),  # CUDA 13 would not run there
        (OLD_DRIVER, build("2.13.0", "13.0")),
        (
            replace(MACHINE, driver_version="470.82.01", cuda_version="11.4"),
            build("2.10.0", "12.8"),
        ),
        (of_capability(7, 0, "Tesla V100"), build("2.13.0", "13.0")),
        (of_capability(12, 0, "RTX 5090"), build("2.7.0+cu126", "12.6")),
        (of_capability(6, 1, "GTX 1080 Ti"), build("2.10.0", "12.8")),
        (MACHINE, build("2.9.1+rocm6.4", hip="6.4")),
        (replace(MACHINE, kind="rocm"), build("2.13.0", "13.0")),
    ],
)
def test_a_pytorch_that_cannot_use_the_card_is_named_with_its_cure(hardware, torch, approved):
    """Each mismatch of build, driver and GPU, and no other."""
    approved(cuda_problem(hardware, torch))


NO_GPU = Hardware(kind="cpu", origin="probed")


def gib(mib):
    return pytest.approx(mib / 1024, abs=0.001)


# A recorded machine, changes of its first GPU, the environment; the machine as found, the first GPU
# as found, and parts of the notes (with "no": what none says).


VISIBLE, BY_SLOT = "CUDA_VISIBLE_DEVICES", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
KEPT = "advice leaves 1.0 GiB of its memory free"
OTHERS = [{"pid": 0, "mib": 500}, {"pid": 4194001, "mib": 3000}]  # 0: who asks
HIDDEN = [{"pid": 4194001, "mib": None}]
OLD_NAMES = [slot and {**slot, "name": "NVIDIA A100-SXM4-80GB"}
             for slot in recorded("a100_mig")["gpus"][0]["slices"]]  # fmt: skip
# A recorded machine, changes of its first GPU, the environment (and the driver's library); the machine
# as found, the first GPU as found, and parts of the notes (with "no": what none says).
RECORDED = {
    "live memory and what others hold": (
        "one_rtx_4090", {}, {},
        {"kind": "cuda", "origin": "probed", "driver_version": "580.95.05", "cuda_version": "13.0",
         "interconnect": "PCIe 4 x16"},
        {"name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-5c1f0c2e", "memory_total_gib": gib(24564),
         "memory_free_gib": gib(20156), "compute_capability": "8.9", "bf16": True,
         # The process listed for compute and for graphics counts once.
         "other_processes_gib": gib(3000 + 812), "catalogue": "nvidia-rtx-4090"}, []),
    # 1 GiB stays free for a display or a laptop, and the note says why.
    "a display": ("one_rtx_4090", {"display_active": 1}, {}, {},
     {"kept_free_gib": 1, "kept_free_because": "it drives a display"}, [KEPT]),
    "a display of old": ("one_rtx_4090", {"display_mode": 1, "display_active": 0}, {}, {},
     {"kept_free_gib": 1, "kept_free_because": "it drives a display"}, [KEPT]),
    "a laptop": ("one_rtx_4090", {"name": "NVIDIA GeForce RTX 4090 Laptop GPU"}, {}, {},
     {"kept_free_gib": 1, "kept_free_because": "it is a laptop's, which may drive the display"}, [KEPT]),
    "no display": ("one_rtx_4090", {"display_mode": 0, "display_active": 0}, {}, {},
     {"kept_free_gib": 0, "kept_free_because": ""}, ["no " + KEPT]),
    "our own memory": ("one_rtx_4090", {"compute": OTHERS, "graphics": []}, {}, {},
     {"other_processes_gib": gib(3000)}, []),
    "hidden memory": ("one_rtx_4090", {"compute": HIDDEN, "graphics": []}, {}, {},
     {"other_processes_gib": None}, []),
    # Another error than "not supported": 4 is no permission.
    "memory that may not be read": ("one_rtx_4090", {"errors": {"memory": 4}}, {}, {},
     {"memory_total_gib": None}, ["its memory is not known"]),
    "all hidden": ("one_rtx_4090", {}, {VISIBLE: ""}, {"kind": "cpu", "gpus": []}, {},
     ["hidden by CUDA_VISIBLE_DEVICES", "RTX 4090"]),
    "hidden by -1": ("one_rtx_4090", {}, {VISIBLE: "-1"}, {"kind": "cpu", "gpus": []}, {},
     ["hidden by CUDA_VISIBLE_DEVICES", "RTX 4090"]),
    # The links that NVML counts and the speed of the catalogue; of one alone there are none.
    "eight": ("eight_h100", {}, {},
     {"interconnect": "NVLink 4, 900 GB/s both ways (18 active links per card)"},
     {"catalogue": "nvidia-h100-sxm5-80gb", "index": 0}, []),
    "one of eight": ("eight_h100", {}, {VISIBLE: "3"}, {"interconnect": "PCIe 5 x16"},
     {"index": 3}, ["hidden by CUDA_VISIBLE_DEVICES=3: GPU 0", "GPU 7"]),
    # With slices present CUDA shows one of them alone, never the whole.
    "a slice": ("a100_mig", {}, {}, {},
     {"mig_profile": "3g.40gb", "memory_total_gib": gib(40192), "compute_capability": "8.0",
      "uuid": "MIG-11111111-aaaa-5bbb-8ccc-dddddddddddd", "catalogue": None},
     ["one MIG slice", "3 more"]),
    "a slice behind an empty slot": ("a100_mig", {},
     {VISIBLE: "MIG-22222222-aaaa-5bbb-8ccc-dddddddddddd"}, {},
     {"mig_profile": "1g.10gb", "memory_total_gib": gib(9728)}, []),
    # Where a slice is named like its parent, slices and memory give the profile.
    "slices with an old name": ("a100_mig", {"slices": OLD_NAMES}, {}, {"gpus": [ANY]},
     {"mig_profile": "3g.39gb", "catalogue": None}, []),
    "the whole beside a cut one": ("a100_mig", {}, {VISIBLE: "GPU-bbbb"}, {},
     {"mig_profile": None, "catalogue": "nvidia-a100-sxm4-80gb"}, []),
    # CUDA counts the fastest first and NVML by slot, so an index is doubtful.
    "an index among different ones": ("mixed_cards", {}, {VISIBLE: "0"}, {}, {},
     ["CUDA_DEVICE_ORDER=PCI_BUS_ID"]),
    # 7.5 has no bf16, whatever emulation PyTorch counts.
    "an index by slot": ("mixed_cards", {}, {VISIBLE: "0", **BY_SLOT}, {},
     {"name": "Tesla T4", "bf16": False}, ["no CUDA_DEVICE_ORDER"]),
    # The slowest slot connects them, and all of them leave no doubt.
    "all of different ones": ("mixed_cards", {}, {VISIBLE: "0,1"},
     {"interconnect": "PCIe 3 x8", "notes": []}, {}, []),
    "no device": ("no_device", {}, {}, {"kind": "cpu", "driver_version": "550.90.07"}, {},
     ["an NVIDIA driver is loaded, but it has no card"]),
    # A card that fell off the bus does not hide the healthy one.
    "a lost one": ("lost_card", {}, {}, {"gpus": [ANY]}, {"catalogue": "nvidia-rtx-a6000"}, ["GPU 1 does not answer"]),
    # A GPU whose every optional question fails is still a GPU with unknown facts.
    "no name": ({"gpus": [{"errors": {"memory": 999, "processes": 999}}]}, {}, {},
     {"driver_version": None, "gpus": [ANY]},
     {"name": "NVIDIA GPU (no name reported)", "memory_total_gib": None, "bf16": None, "uuid": None,
      "other_processes_gib": None, "compute_capability": None}, []),
    # What an old driver lacks is left out; one that is too old and one that is broken are named.
    "an old driver": ("one_rtx_4090", {}, {"library": "OLD_DRIVER"}, {"gpus": [ANY]},
     {"memory_free_gib": gib(20156), "other_processes_gib": gib(3000)}, []),
    "an ancient driver": ("one_rtx_4090", {}, {"library": "ANCIENT_DRIVER"}, {}, {}, ["too old"]),
    "a broken driver": ("one_rtx_4090", {}, {"library": "BROKEN"}, {"kind": "cpu"}, {},
     ["driver library is broken"]),
    # Each error of nvmlInit becomes one sentence, and the CPU remains.
    **{
        f"code {code}": ({"gpus": [], "errors": {"init": code}}, {}, {}, {"kind": "cpu"}, {}, [said])
        for code, said in (
            (9, "installed but not loaded"), (18, "restart the machine"),
            (4, "refuses this user access"), (12, "cannot be asked"), (999, "cannot be asked"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "change", "environ", "whole", "first", "parts"), RECORDED.values(), ids=RECORDED
)
def test_a_recorded_machine_is_read(probed, machine, change, environ, whole, first, parts):
    """Its GPUs, what connects them, what others hold, and what has to be said, once."""
    machine = recorded(machine) if isinstance(machine, str) else copy.deepcopy(machine)
    for gpu in machine["gpus"][:1]:
        gpu.update(change)
    found = probed(machine, **environ)
    assert {key: found[key] for key in whole} == whole
    gpu = found["gpus"][0] if found["gpus"] else {}
    gpu = {**gpu, "catalogue": (gpu.get("catalogue") or {}).get("id")}
    if uuid := first.get("uuid"):
        assert gpu["uuid"].startswith(uuid)
        gpu["uuid"] = uuid
    assert {key: gpu[key] for key in first} == first
    for part in parts:
        saying = [note for note in found["notes"] if part.removeprefix("no ") in note]
        assert len(saying) == (0 if part.startswith("no ") else 1), part


def test_every_one_of_eight_is_a_device(probed):
    """Each has its index and memory; GB10 and Jetson have the system's, with a note."""
    gpus = probed("eight_h100")["gpus"]
    assert {gpu["catalogue"]["id"] for gpu in gpus} == {"nvidia-h100-sxm5-80gb"}
    assert [gpu["index"] for gpu in gpus] == list(range(8))
    assert gpus[2]["memory_free_gib"] == gib(40123)
    found = probed("gb10")
    (gpu,) = found["gpus"]
    assert gpu["memory_total_gib"] == found["ram_total_gib"] is not None
    assert gpu["catalogue"]["id"] == "nvidia-gb10"
    assert "system's memory counts" in "\n".join(found["notes"])


def test_a_container_gives_no_program_a_wrong_name(tmp_path):
    """The driver tells the machine's process numbers, which mean others in a container."""
    tree(tmp_path, {"proc/1/comm": "systemd\n", "proc/42/comm": "python\n"})
    assert (process_name(42, tmp_path), process_name(43, tmp_path)) == ("python", "")
    tree(tmp_path, {"proc/1/comm": "bash\n"})
    assert process_name(42, tmp_path) == ""


NO_LIBRARY = OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
          "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n"},
         ["plugged in (0000:01:00.0), but no NVIDIA driver"]),
        ({"proc/driver/nvidia/version": "NVRM version: ...\n"}, ["kernel driver is loaded"]),
        ({"proc/device-tree/model": "NVIDIA Jetson Xavier NX\0"}, ["cannot be asked"]),
        ({"usr/lib/wsl/lib/libnvidia-ml.so.1": ""}, ["LD_LIBRARY_PATH"]),
        ({}, []),  # a machine that has nothing of NVIDIA gets no note about NVIDIA
    ],
)  # fmt: skip
def test_traces_of_a_card_without_its_library_are_named(tmp_path, monkeypatch, files, said):
    """A missing driver or library, a Jetson and WSL2 each say what is missing."""
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=NO_LIBRARY))
    notes = probe_nvidia(NO_GPU, {}, root=tree(tmp_path, files)).notes
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True)), notes


A, B, C = (
    Gpu(name="NVIDIA A10", memory_total_bytes=1, uuid=f"GPU-{uuid}-0000", index=index)
    for index, uuid in enumerate(("aaaa1111", "aaaa2222", "cccc3333"))
)
THREE = [GpuBoard(gpu=gpu) for gpu in (A, B, C)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),  # in the order of the list
        (" 1 , 2 ", [1, 2]),
        ("1gpu2,2ampere", [1, 2]),  # digits count, what follows does not
        ("0,7,1", [0]),  # the list ends at what does not exist
        ("0,-1,1", [0]),
        ("0,x,1", [0]),
        ("0,,1", [0]),
        ("x", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,0", []),  # a repetition empties the list
        ("0,1,0", []),
        ("GPU-cccc", [2]),  # an abbreviated UUID
        ("GPU-aaaa2222-0000,GPU-aaaa1", [1, 0]),
        ("GPU-aaaa", []),  # fits two
        ("GPU-cccc,GPU-dddd,GPU-aaaa1", [2]),
        ("MIG-1", []),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(value, expected):
    """Indexes, UUIDs, invalid entries and repetitions choose what CUDA would choose."""
    assert [gpu.index for gpu in usable(THREE, {"CUDA_VISIBLE_DEVICES": value})[0]] == expected


def test_what_is_hidden_is_named():
    """The note quotes the entry that ended the list and the GPUs it hides."""
    assert usable(THREE, {}) == ((A, B, C), ())
    notes = "\n".join(usable(THREE, {VISIBLE: "0,9"})[1])
    for said in ("'9' names no device", "hidden", "GPU 1", "GPU 2"):
        assert said in notes
    assert "CUDA_DEVICE_ORDER" not in "\n".join(usable(THREE, {VISIBLE: "1"})[1])


def test_an_index_of_a_cut_card_is_its_first_slice():
    """The index of a GPU in MIG mode; without a slice there is nothing to use."""
    piece = replace(A, name="A MIG 1g.5gb", uuid="MIG-1", mig_profile="1g.5gb")
    cut = GpuBoard(gpu=A, mig_enabled=True, slices=(piece,))
    assert usable([cut], {VISIBLE: "0"})[0] == (piece,)
    gpus, notes = usable([GpuBoard(gpu=A, mig_enabled=True)], {VISIBLE: "0"})
    assert (gpus, any("holds no slice" in note for note in notes)) == ((), True)
