"""The probe's real path: pynvml through ctypes against a compiled stub of the driver that answers
from recorded machines.
"""

import ctypes

import pytest
from msgspec.structs import replace

from advisor.ground.types import Gpu, Hardware
from advisor.probe.nvidia import GpuBoard, probe_nvidia, process_name, usable
from tests.probe.conftest import recorded

NO_GPU = Hardware(kind="cpu", origin="probed")


def gib(mib):
    return pytest.approx(mib / 1024, abs=0.001)


@pytest.fixture
def rtx_4090(probed):
    """What is found where the one GPU of a recorded machine has other values."""

    def run(**change):
        machine = recorded("one_rtx_4090")
        machine["gpus"][0] |= change
        return probed(machine)

    return run


def says(found, *parts):
    """Whether one note holds all parts."""
    return any(all(part in note for part in parts) for note in found["notes"])


def test_a_card_is_read_with_live_memory_and_what_others_hold(probed):
    """Total and free memory, other programs', capability, bf16, driver, CUDA and entry."""
    found = probed("one_rtx_4090")
    (gpu,) = found["gpus"]
    assert (found["kind"], found["origin"]) == ("cuda", "probed")
    assert (found["driver_version"], found["cuda_version"]) == ("580.95.05", "13.0")
    assert gpu["name"] == "NVIDIA GeForce RTX 4090"
    assert gpu["uuid"].startswith("GPU-5c1f0c2e")
    assert (gpu["memory_total_gib"], gpu["memory_free_gib"]) == (gib(24564), gib(20156))
    # The process listed for compute and for graphics counts once.
    assert gpu["other_processes_gib"] == gib(3000 + 812)
    assert (gpu["compute_capability"], gpu["bf16"]) == ("8.9", True)
    assert gpu["catalogue"]["id"] == "nvidia-rtx-4090"
    assert found["interconnect"] == "PCIe 4 x16"


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"display_active": 1}, "it drives a display"),
        ({"display_mode": 1, "display_active": 0}, "it drives a display"),
        ({"name": "NVIDIA GeForce RTX 4090 Laptop GPU"}, "it is a laptop's"),
        ({"display_mode": 0, "display_active": 0}, ""),
    ],
)
def test_a_display_or_a_laptop_keeps_memory(rtx_4090, change, because):
    """1 GiB stays free, and the note says why."""
    found = rtx_4090(**change)
    (gpu,) = found["gpus"]
    assert gpu["kept_free_gib"] == (1 if because else 0)
    assert because in gpu["kept_free_because"]
    assert says(found, "advice leaves 1.0 GiB of its memory free") == bool(because)


def test_a_container_gives_no_program_a_wrong_name(tmp_path):
    """The driver tells the machine's process numbers, which mean others in a container."""
    for pid, name in ((1, "systemd"), (42, "python")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n")
    assert (process_name(42, tmp_path), process_name(43, tmp_path)) == ("python", "")
    (tmp_path / "proc/1/comm").write_text("bash\n")
    assert process_name(42, tmp_path) == ""


@pytest.mark.parametrize(
    ("compute", "others_gib"),
    [
        ([{"pid": 0, "mib": 500}, {"pid": 4194001, "mib": 3000}], gib(3000)),  # 0: who asks
        ([{"pid": 4194001, "mib": None}], None),  # the driver hides it
    ],
)
def test_our_own_memory_and_hidden_memory_are_not_somebody_elses(rtx_4090, compute, others_gib):
    """The probing process does not count among the others; what is hidden is not taken for zero."""
    found = rtx_4090(compute=compute, graphics=[])
    assert found["gpus"][0]["other_processes_gib"] == others_gib


def test_memory_that_may_not_be_read_stays_unknown(rtx_4090):
    """Another error than "not supported" leaves the memory unknown instead of guessing it."""
    found = rtx_4090(errors={"memory": 4})  # no permission
    assert found["gpus"][0]["memory_total_gib"] is None
    assert says(found, "its memory is not known")


def test_eight_cards_report_their_nvlink(probed):
    """Eight devices with their links; where one is chosen, the other seven are named."""
    found = probed("eight_h100")
    assert {gpu["catalogue"]["id"] for gpu in found["gpus"]} == {"nvidia-h100-sxm5-80gb"}
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert found["gpus"][2]["memory_free_gib"] == gib(40123)
    assert found["interconnect"] == "NVLink 4, 900 GB/s both ways (18 active links per card)"
    found = probed("eight_h100", CUDA_VISIBLE_DEVICES="3")
    assert [gpu["index"] for gpu in found["gpus"]] == [3]
    assert found["interconnect"] == "PCIe 5 x16"
    assert says(found, "hidden by CUDA_VISIBLE_DEVICES=3: GPU 0", "GPU 7")


def test_a_mig_slice_is_its_own_device_and_never_the_whole_card(probed):
    """One of them alone: its memory, its profile, no catalogue entry, the rest explained."""
    found = probed("a100_mig")
    (gpu,) = found["gpus"]
    assert (gpu["mig_profile"], gpu["memory_total_gib"]) == ("3g.40gb", gib(40192))
    assert gpu["uuid"] == "MIG-11111111-aaaa-5bbb-8ccc-dddddddddddd"
    assert (gpu["compute_capability"], gpu["catalogue"]) == ("8.0", None)
    assert says(found, "one MIG slice", "3 more")


def test_slices_and_the_whole_card_are_chosen_by_their_uuid(probed):
    """Also a slice behind an empty slot, and a whole A100 by its abbreviated UUID."""
    chosen = {"CUDA_VISIBLE_DEVICES": "MIG-22222222-aaaa-5bbb-8ccc-dddddddddddd"}
    (gpu,) = probed("a100_mig", **chosen)["gpus"]
    assert (gpu["mig_profile"], gpu["memory_total_gib"]) == ("1g.10gb", gib(9728))
    (gpu,) = probed("a100_mig", CUDA_VISIBLE_DEVICES="GPU-bbbb")["gpus"]
    assert (gpu["mig_profile"], gpu["catalogue"]["id"]) == (None, "nvidia-a100-sxm4-80gb")


def test_an_old_mig_name_takes_its_profile_from_the_attributes(probed):
    """Where a slice is named like its parent, slices and memory give the profile."""
    machine = recorded("a100_mig")
    machine["gpus"] = machine["gpus"][:1]
    for device in filter(None, machine["gpus"][0]["slices"]):
        device["name"] = "NVIDIA A100-SXM4-80GB"
    (gpu,) = probed(machine)["gpus"]
    assert (gpu["mig_profile"], gpu["catalogue"]) == ("3g.39gb", None)


@pytest.mark.parametrize("value", ["", "-1"])
def test_no_card_is_used_where_the_variable_hides_all(probed, value):
    """An empty CUDA_VISIBLE_DEVICES, or -1, leaves the CPU, and the note says what was hidden."""
    found = probed("one_rtx_4090", CUDA_VISIBLE_DEVICES=value)
    assert (found["kind"], found["gpus"]) == ("cpu", [])
    assert says(found, "hidden by CUDA_VISIBLE_DEVICES", "RTX 4090")


def test_an_index_among_different_cards_is_called_ambiguous(probed):
    """CUDA counts the fastest first and NVML by slot, until CUDA_DEVICE_ORDER says otherwise."""
    assert says(probed("mixed_cards", CUDA_VISIBLE_DEVICES="0"), "CUDA_DEVICE_ORDER=PCI_BUS_ID")
    found = probed("mixed_cards", CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert not says(found, "CUDA_DEVICE_ORDER")
    assert [gpu["name"] for gpu in found["gpus"]] == ["Tesla T4"]
    assert found["gpus"][0]["bf16"] is False  # 7.5, whatever emulation PyTorch counts
    found = probed("mixed_cards", CUDA_VISIBLE_DEVICES="0,1")  # all: no doubt about an index
    assert (found["interconnect"], found["notes"]) == ("PCIe 3 x8", [])


def test_a_driver_without_a_card_is_a_fact(probed):
    """A loaded driver without a device leaves the CPU and says so."""
    found = probed("no_device")
    assert (found["kind"], found["driver_version"]) == ("cpu", "550.90.07")
    assert "an NVIDIA driver is loaded, but it has no card" in found["notes"]


def test_shared_memory_falls_back_to_the_system(probed):
    """GB10 and Jetson report no memory of their own: the system's memory counts, with a note."""
    found = probed("gb10")
    (gpu,) = found["gpus"]
    assert gpu["memory_total_gib"] == found["ram_total_gib"] is not None
    assert gpu["catalogue"]["id"] == "nvidia-gb10"
    assert says(found, "system's memory counts")


def test_a_lost_card_is_left_out_and_named(probed):
    """A card that fell off the bus does not hide the healthy one."""
    found = probed("lost_card")
    assert [gpu["catalogue"]["id"] for gpu in found["gpus"]] == ["nvidia-rtx-a6000"]
    assert any(note.startswith("GPU 1 does not answer") for note in found["notes"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (9, "installed but not loaded"),
        (18, "restart the machine"),
        (4, "refuses this user access"),
        (12, "cannot be asked"),
        (999, "cannot be asked"),
    ],
)
def test_a_driver_that_does_not_start_is_a_note(probed, code, said):
    """Each error of nvmlInit becomes one sentence, and the CPU remains."""
    found = probed({"gpus": [], "errors": {"init": code}})
    assert found["kind"] == "cpu"
    assert len([note for note in found["notes"] if said in note]) == 1


def test_an_old_driver_still_tells_what_it_can(probed):
    """What it lacks is left out; one that is too old and one that is broken are named."""
    (gpu,) = probed("one_rtx_4090", library="OLD_DRIVER")["gpus"]
    assert (gpu["memory_free_gib"], gpu["other_processes_gib"]) == (gib(20156), gib(3000))
    assert says(probed("one_rtx_4090", library="ANCIENT_DRIVER"), "too old")
    found = probed("one_rtx_4090", library="BROKEN")
    assert found["kind"] == "cpu"
    assert says(found, "driver library is broken")


def test_a_missing_name_does_not_stop_the_probe(probed):
    """A GPU whose every optional question fails is still a GPU with unknown facts."""
    found = probed({"gpus": [{"errors": {"memory": 999, "processes": 999}}]})
    (gpu,) = found["gpus"]
    assert gpu["name"] == "NVIDIA GPU (no name reported)"
    unknown = ("memory_total_gib", "other_processes_gib", "compute_capability", "bf16", "uuid")
    assert [gpu[name] for name in unknown] == [None] * 5
    assert found["driver_version"] is None


@pytest.fixture
def _no_driver(monkeypatch):
    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)


@pytest.mark.usefixtures("_no_driver")
def test_no_driver_and_no_card_needs_no_words(tmp_path):
    """A machine that has nothing of NVIDIA gets no note about NVIDIA."""
    assert probe_nvidia(NO_GPU, {}, root=tmp_path).notes == ()


@pytest.mark.usefixtures("_no_driver")
@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n",
         "plugged in (0000:01:00.0), but no NVIDIA driver"),
        ("proc/driver/nvidia/version", "NVRM version: ...\n", "kernel driver is loaded"),
        ("proc/device-tree/model", "NVIDIA Jetson Xavier NX\0", "cannot be asked"),
        ("usr/lib/wsl/lib/libnvidia-ml.so.1", "", "LD_LIBRARY_PATH"),
    ],
)  # fmt: skip
def test_traces_of_a_card_without_its_library_are_named(tmp_path, path, content, said):
    """A missing driver or library, a Jetson and WSL2 each say what is missing."""
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    if path.endswith("vendor"):
        (file.parent / "class").write_text("0x030000\n")
    (note,) = probe_nvidia(NO_GPU, {}, root=tmp_path).notes
    assert said in note


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


def notes_of(value):
    return "\n".join(usable(THREE, {"CUDA_VISIBLE_DEVICES": value})[1])


def test_what_is_hidden_is_named():
    """The note quotes the entry that ended the list and the GPUs it hides."""
    assert usable(THREE, {}) == ((A, B, C), ())
    for said in ("'9' names no device", "hidden", "GPU 1", "GPU 2"):
        assert said in notes_of("0,9")
    assert "CUDA_DEVICE_ORDER" not in notes_of("1")


def test_an_index_of_a_cut_card_is_its_first_slice():
    """The index of a GPU in MIG mode; without a slice there is nothing to use."""
    piece = replace(A, name="A MIG 1g.5gb", uuid="MIG-1", mig_profile="1g.5gb")
    first = {"CUDA_VISIBLE_DEVICES": "0"}
    assert usable([GpuBoard(gpu=A, mig_enabled=True, slices=(piece,))], first)[0] == (piece,)
    gpus, notes = usable([GpuBoard(gpu=A, mig_enabled=True)], first)
    assert gpus == ()
    assert any("holds no slice" in note for note in notes)
