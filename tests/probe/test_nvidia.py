"""The probe's real path: pynvml through ctypes against a compiled stub of the driver that answers
from recorded machines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.ground.types import Hardware
from advisor.probe.nvidia import probe_nvidia, process_name
from tests.probe.conftest import recorded

NO_GPU = Hardware(kind="cpu", origin="probed")
Probed = Callable[..., dict[str, Any]]


def gib(mib: int) -> float:
    return pytest.approx(mib / 1024, abs=0.001)


def test_a_card_is_read_with_live_memory_and_what_others_hold(probed: Probed) -> None:
    """One RTX 4090: total and free memory, other programs' memory, capability, bf16, driver, CUDA
    and catalogue entry.
    """
    found = probed("one_rtx_4090")
    (gpu,) = found["gpus"]
    assert found["kind"] == "cuda"
    assert found["origin"] == "probed"
    assert (found["driver_version"], found["cuda_version"]) == ("580.95.05", "13.0")
    assert gpu["name"] == "NVIDIA GeForce RTX 4090"
    assert gpu["uuid"].startswith("GPU-5c1f0c2e")
    assert (gpu["memory_total_gib"], gpu["memory_free_gib"]) == (gib(24564), gib(20156))
    assert gpu["other_processes_gib"] == gib(
        3000 + 812
    )  # the process listed for compute and for graphics counts once
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
def test_a_display_or_a_laptop_keeps_memory(
    probed: Probed, change: dict[str, Any], because: str
) -> None:
    """Advice leaves 1 GiB of a GPU that drives a display, or is a laptop's, and says why; what is
    free now, and who holds the rest, is the check's before a run.
    """
    machine = recorded("one_rtx_4090")
    machine["gpus"][0] |= change
    found = probed(machine)
    gpu = found["gpus"][0]
    assert gpu["kept_free_gib"] == (1 if because else 0)
    assert because in gpu["kept_free_because"]
    says = [note for note in found["notes"] if "advice leaves 1.0 GiB of its memory free" in note]
    assert len(says) == bool(because)


def test_a_container_gives_no_program_a_wrong_name(tmp_path: Path) -> None:
    """The driver tells the machine's process numbers, which mean others in a container."""
    for pid, name in ((1, "systemd"), (42, "python")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n")
    assert (process_name(42, tmp_path), process_name(43, tmp_path)) == ("python", "")
    (tmp_path / "proc/1/comm").write_text("bash\n")
    assert process_name(42, tmp_path) == ""


def test_our_own_memory_is_not_somebody_elses(probed: Probed) -> None:
    """The probing process does not count among the others."""
    machine = recorded("one_rtx_4090")
    machine["gpus"][0] |= {
        "compute": [{"pid": 0, "mib": 500}, {"pid": 4194001, "mib": 3000}],
        "graphics": [],
    }  # 0: the stub puts its caller in
    assert probed(machine)["gpus"][0]["other_processes_gib"] == gib(3000)


def test_a_processes_hidden_memory_is_not_taken_for_zero(probed: Probed) -> None:
    """Where the driver hides a process's memory, the memory of other processes is not known."""
    machine = recorded("one_rtx_4090")
    machine["gpus"][0]["compute"][0]["mib"] = None
    machine["gpus"][0]["graphics"] = []
    assert probed(machine)["gpus"][0]["other_processes_gib"] is None


def test_eight_cards_report_their_nvlink(probed: Probed) -> None:
    """Eight H100 are eight devices joined by NVLink, with the links NVML counts and the speed of
    the catalogue.
    """
    found = probed("eight_h100")
    assert len(found["gpus"]) == 8
    assert {gpu["catalogue"]["id"] for gpu in found["gpus"]} == {"nvidia-h100-sxm5-80gb"}
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert found["gpus"][2]["memory_free_gib"] == gib(40123)
    assert found["interconnect"] == "NVLink 4, 900 GB/s both ways (18 active links per card)"


def test_a_chosen_card_alone_is_connected_by_pcie(probed: Probed) -> None:
    """With one of eight cards chosen there is no NVLink to speak of, and the other seven are named
    as hidden.
    """
    found = probed("eight_h100", CUDA_VISIBLE_DEVICES="3")
    assert [gpu["index"] for gpu in found["gpus"]] == [3]
    assert found["interconnect"] == "PCIe 5 x16"
    assert any(
        "hidden by CUDA_VISIBLE_DEVICES=3: GPU 0" in note and "GPU 7" in note
        for note in found["notes"]
    )


def test_a_mig_slice_is_its_own_device_and_never_the_whole_card(probed: Probed) -> None:
    """With slices present CUDA shows one of them alone: its memory, its profile, no catalogue
    entry, the rest explained.
    """
    found = probed("a100_mig")
    (gpu,) = found["gpus"]
    assert gpu["mig_profile"] == "3g.40gb"
    assert gpu["memory_total_gib"] == gib(40192)
    assert gpu["uuid"] == "MIG-11111111-aaaa-5bbb-8ccc-dddddddddddd"
    assert (gpu["compute_capability"], gpu["catalogue"]) == ("8.0", None)
    assert any("one MIG slice" in note and "3 more" in note for note in found["notes"])


def test_a_mig_slice_is_chosen_by_its_uuid(probed: Probed) -> None:
    """CUDA_VISIBLE_DEVICES takes the UUID of a slice, the empty slot between two slices
    notwithstanding.
    """
    (gpu,) = probed("a100_mig", CUDA_VISIBLE_DEVICES="MIG-22222222-aaaa-5bbb-8ccc-dddddddddddd")[
        "gpus"
    ]
    assert (gpu["mig_profile"], gpu["memory_total_gib"]) == ("1g.10gb", gib(9728))


def test_an_old_mig_name_takes_its_profile_from_the_attributes(probed: Probed) -> None:
    """A driver that names a slice like its parent still gives slices and memory, from which the
    profile is written.
    """
    machine = recorded("a100_mig")
    machine["gpus"] = machine["gpus"][:1]
    for device in filter(None, machine["gpus"][0]["slices"]):
        device["name"] = "NVIDIA A100-SXM4-80GB"
    (gpu,) = probed(machine)["gpus"]
    assert (gpu["mig_profile"], gpu["catalogue"]) == ("3g.39gb", None)


def test_the_whole_card_beside_a_cut_one_can_be_chosen(probed: Probed) -> None:
    """An abbreviated UUID of the whole A100 gives the whole A100."""
    (gpu,) = probed("a100_mig", CUDA_VISIBLE_DEVICES="GPU-bbbb")["gpus"]
    assert (gpu["mig_profile"], gpu["catalogue"]["id"]) == (None, "nvidia-a100-sxm4-80gb")


@pytest.mark.parametrize("value", ["", "-1"])
def test_no_card_is_used_where_the_variable_hides_all(probed: Probed, value: str) -> None:
    """An empty CUDA_VISIBLE_DEVICES, or -1, leaves the CPU, and the note says what was hidden."""
    found = probed("one_rtx_4090", CUDA_VISIBLE_DEVICES=value)
    assert (found["kind"], found["gpus"]) == ("cpu", [])
    assert any(
        "hidden by CUDA_VISIBLE_DEVICES" in note and "RTX 4090" in note for note in found["notes"]
    )


def test_an_index_among_different_cards_is_called_ambiguous(probed: Probed) -> None:
    """CUDA counts the fastest first and NVML by slot, so an index is doubtful until
    CUDA_DEVICE_ORDER says PCI_BUS_ID.
    """
    found = probed("mixed_cards", CUDA_VISIBLE_DEVICES="0")
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in found["notes"])
    found = probed("mixed_cards", CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert not any("CUDA_DEVICE_ORDER" in note for note in found["notes"])
    assert [gpu["name"] for gpu in found["gpus"]] == ["Tesla T4"]
    assert found["gpus"][0]["bf16"] is False  # 7.5, whatever emulation PyTorch counts


def test_the_slowest_slot_is_what_connects_cards(probed: Probed) -> None:
    """Two cards in unlike slots reach each other at the lower generation and width; choosing all of
    them leaves no doubt about an index.
    """
    found = probed("mixed_cards", CUDA_VISIBLE_DEVICES="0,1")
    assert found["interconnect"] == "PCIe 3 x8"
    assert found["notes"] == []


def test_a_driver_without_a_card_is_a_fact(probed: Probed) -> None:
    """A loaded driver without a device leaves the CPU and says so."""
    found = probed("no_device")
    assert (found["kind"], found["driver_version"]) == ("cpu", "550.90.07")
    assert "an NVIDIA driver is loaded, but it has no card" in found["notes"]


def test_shared_memory_falls_back_to_the_system(probed: Probed) -> None:
    """GB10 and Jetson report no memory of their own: the system's memory counts, with a note."""
    found = probed("gb10")
    (gpu,) = found["gpus"]
    assert gpu["memory_total_gib"] == found["ram_total_gib"]
    assert gpu["memory_total_gib"] is not None
    assert gpu["catalogue"]["id"] == "nvidia-gb10"
    assert any("system's memory counts" in note for note in found["notes"])


def test_memory_that_may_not_be_read_stays_unknown(probed: Probed) -> None:
    """Another error than "not supported" leaves the memory unknown instead of guessing it."""
    machine = recorded("one_rtx_4090")
    machine["gpus"][0]["errors"] = {"memory": 4}  # no permission
    found = probed(machine)
    assert found["gpus"][0]["memory_total_gib"] is None
    assert any("its memory is not known" in note for note in found["notes"])


def test_a_lost_card_is_left_out_and_named(probed: Probed) -> None:
    """A card that fell off the bus does not hide the healthy one."""
    found = probed("lost_card")
    assert [gpu["catalogue"]["id"] for gpu in found["gpus"]] == ["nvidia-rtx-a6000"]
    assert any(note.startswith("GPU 1 does not answer") for note in found["notes"])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (9, "installed but not loaded"),
        (18, "restart the machine"),
        (4, "refuses this user access"),
        (12, "cannot be asked"),
        (999, "cannot be asked"),
    ],
)
def test_a_driver_that_does_not_start_is_a_note(probed: Probed, code: int, says: str) -> None:
    """Each error of nvmlInit becomes one sentence, and the CPU remains."""
    found = probed({"gpus": [], "errors": {"init": code}})
    assert found["kind"] == "cpu"
    assert len([note for note in found["notes"] if says in note]) == 1


def test_an_old_driver_still_tells_what_it_can(probed: Probed) -> None:
    """Without MIG, NVLink and today's process list the card, its memory and (by the older list)
    other processes are read.
    """
    found = probed("one_rtx_4090", library="OLD_DRIVER")
    (gpu,) = found["gpus"]
    assert (gpu["memory_free_gib"], gpu["other_processes_gib"]) == (gib(20156), gib(3000))


def test_a_driver_without_the_entry_point_is_too_old(probed: Probed) -> None:
    """A library that lacks nvmlInitWithFlags is named as too old."""
    assert any(
        "too old" in note for note in probed("one_rtx_4090", library="ANCIENT_DRIVER")["notes"]
    )


def test_a_broken_library_is_a_note(probed: Probed) -> None:
    """A file that is no library at all is said to be broken."""
    found = probed("one_rtx_4090", library="BROKEN")
    assert found["kind"] == "cpu"
    assert any("driver library is broken" in note for note in found["notes"])


def test_a_missing_name_does_not_stop_the_probe(probed: Probed) -> None:
    """A card whose every optional question fails is still a card with unknown facts."""
    found = probed({"gpus": [{"errors": {"memory": 999, "processes": 999}}]})
    (gpu,) = found["gpus"]
    assert gpu["name"] == "NVIDIA GPU (no name reported)"
    assert (
        gpu["memory_total_gib"],
        gpu["other_processes_gib"],
        gpu["compute_capability"],
        gpu["bf16"],
        gpu["uuid"],
    ) == (None,) * 5
    assert found["driver_version"] is None


def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)


def test_no_driver_and_no_card_needs_no_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that has nothing of NVIDIA gets no note about NVIDIA."""
    no_driver(monkeypatch)
    assert probe_nvidia(NO_GPU, {}, root=tmp_path).notes == ()


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        (
            "sys/bus/pci/devices/0000:01:00.0/vendor",
            "0x10de\n",
            "plugged in (0000:01:00.0), but no NVIDIA driver",
        ),
        ("proc/driver/nvidia/version", "NVRM version: ...\n", "kernel driver is loaded"),
        ("proc/device-tree/model", "NVIDIA Jetson Xavier NX\0", "cannot be asked"),
        ("usr/lib/wsl/lib/libnvidia-ml.so.1", "", "LD_LIBRARY_PATH"),
    ],
)
def test_traces_of_a_card_without_its_library_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, content: str, says: str
) -> None:
    """A card without driver, a container without the library, a Jetson and WSL2 each say what is
    missing.
    """
    no_driver(monkeypatch)
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    if path.endswith("vendor"):
        (file.parent / "class").write_text("0x030000\n")
    (note,) = probe_nvidia(NO_GPU, {}, root=tmp_path).notes
    assert says in note
