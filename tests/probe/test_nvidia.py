"""The probe's real path: pynvml through ctypes against a compiled stub of the driver that answers
from recorded machines.
"""

import copy
import ctypes
from unittest.mock import ANY, Mock

import pytest
from msgspec.structs import replace

from advisor.ground.types import Gpu, Hardware
from advisor.probe.nvidia import GpuBoard, probe_nvidia, process_name, usable
from tests.probe.conftest import recorded

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


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_machine_is_read(probed, name):
    """Its GPUs, what connects them, what others hold, and what has to be said, once."""
    machine, change, environ, whole, first, parts = RECORDED[name]
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
    """With its own index and memory."""
    gpus = probed("eight_h100")["gpus"]
    assert {gpu["catalogue"]["id"] for gpu in gpus} == {"nvidia-h100-sxm5-80gb"}
    assert [gpu["index"] for gpu in gpus] == list(range(8))
    assert gpus[2]["memory_free_gib"] == gib(40123)


def test_a_container_gives_no_program_a_wrong_name(tmp_path):
    """The driver tells the machine's process numbers, which mean others in a container."""
    for pid, name in ((1, "systemd"), (42, "python")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n")
    assert (process_name(42, tmp_path), process_name(43, tmp_path)) == ("python", "")
    (tmp_path / "proc/1/comm").write_text("bash\n")
    assert process_name(42, tmp_path) == ""


def test_shared_memory_falls_back_to_the_system(probed):
    """GB10 and Jetson report no memory of their own: the system's memory counts, with a note."""
    found = probed("gb10")
    (gpu,) = found["gpus"]
    assert gpu["memory_total_gib"] == found["ram_total_gib"] is not None
    assert gpu["catalogue"]["id"] == "nvidia-gb10"
    assert "system's memory counts" in "\n".join(found["notes"])


NO_LIBRARY = OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n",
         ["plugged in (0000:01:00.0), but no NVIDIA driver"]),
        ("proc/driver/nvidia/version", "NVRM version: ...\n", ["kernel driver is loaded"]),
        ("proc/device-tree/model", "NVIDIA Jetson Xavier NX\0", ["cannot be asked"]),
        ("usr/lib/wsl/lib/libnvidia-ml.so.1", "", ["LD_LIBRARY_PATH"]),
        # A machine that has nothing of NVIDIA gets no note about NVIDIA.
        ("proc/nothing/of/nvidia", "", []),
    ],
)  # fmt: skip
def test_traces_of_a_card_without_its_library_are_named(tmp_path, monkeypatch, path, content, said):
    """A missing driver or library, a Jetson and WSL2 each say what is missing."""
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=NO_LIBRARY))
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    if path.endswith("vendor"):
        (file.parent / "class").write_text("0x030000\n")
    notes = probe_nvidia(NO_GPU, {}, root=tmp_path).notes
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True)), notes


# -------------------------------------------------------------------------- CUDA_VISIBLE_DEVICES


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
    assert gpus == ()
    assert any("holds no slice" in note for note in notes)
