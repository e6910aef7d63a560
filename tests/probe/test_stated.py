"""Hardware a person states."""

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe import cpu_hardware, stated_hardware
from advisor.probe.gpu_files import catalogue_gpus, not_supported


def facts(hardware):
    """What a case below may say of the hardware, sizes in GiB."""
    gpu = hardware.gpus[0] if hardware.gpus else Gpu(name="", memory_total_bytes=None)
    return {
        "kind": hardware.kind, "origin": hardware.origin, "count": len(hardware.gpus),
        "device": hardware.device_memory_bytes and hardware.device_memory_bytes / GIB,
        "link": hardware.interconnect, "ram": hardware.ram_total_bytes, "name": gpu.name,
        "memory": gpu.memory_total_bytes and gpu.memory_total_bytes / GIB, "bf16": gpu.bf16,
        "capability": gpu.compute_capability, "kept": gpu.kept_free_bytes / GIB, "spec": gpu.spec,
    }  # fmt: skip


KEPT, TAKEN = "advice leaves 1.0 GiB of its memory free", "the memory is taken as stated"
STATED = [  # name, count and memory of a flag; what is found; what is said (None: nothing)
    (("RTX 4090", 2), {
        "kind": "cuda", "origin": "stated", "count": 2, "memory": 24564 / 1024,
        "device": 24564 / 1024, "capability": (8, 9), "bf16": True, "link": "PCIe 4 x16",
        "ram": None, "kept": 0}, None),
    (("H100 SXM",), {"link": None}, None),  # one has no link
    (("8x H100 SXM",), {"count": 8}, None),
    (("2 x RTX 3090", 2), {"count": 2}, None),
    *[((name,), {"count": 2, "name": "T4"}, None) for name in
      ("T4 x2", "T4 (x2)", "T4 x 2", "2 x T4s")],
    (("T4", None, 16), {"device": 15}, "T4: sold as 16 GB, its driver shows 15.0 GiB"),
    # An unknown name of AMD or Apple is not taken for one of CUDA.
    *[((name, None, 48), {"kind": kind, "memory": 48}, "")
      for name, kind in (("AMD Radeon W7900", "rocm"), ("MI308X", "rocm"), ("Apple M9 Ultra", "mps"))],
    (("48 GB card", None, 48), {"kind": "cuda"}, ""),
    # The smallest size, where the memory depends on the computer.
    (("M4 Max",), {"kind": "mps", "memory": 36}, "Apple M4 Max 36GB, Apple M4 Max 48GB"),
    (("M4 Max", None, 48), {"kind": "mps", "memory": 48}, ""),
    (("2x M3 Max 64GB",), {"count": 1}, "a Mac trains by itself"),
    # Laptops keep room for their display.
    *[((name,), {"kept": 1}, KEPT) for name in
      ("RTX 4060 Laptop", "RTX 2080 Max-Q", "Quadro T2000", "MX550", "RTX 4090 Laptop GPU")],
    (("RTX 4090", None, 80), {"memory": 80}, TAKEN),
    (("A100", None, 24), {"memory": 24}, TAKEN),
    (("unknown", 2), {"kind": "unknown", "count": 2, "device": None}, None),
    *[((name, None, 24), {"kind": "cuda", "device": 24, "capability": None}, None)
      for name in (None, "unknown")],
]  # fmt: skip
OF_FILES = [
    (("A8000", 8, 80), {"kind": "cuda", "count": 8, "device": 80, "name": "A8000", "spec": None},
     "not in the GPU catalogue"),
    (("RTX 4091",), {"kind": "unknown", "count": 0, "device": None},
     "gpu.name: unknown GPU 'RTX 4091'"),
    (("RTX 4090 80GB",), {"memory": 80}, TAKEN),
    (("A100 24GB",), {"memory": 24}, TAKEN),
    (("unknown", 2), {"kind": "unknown", "count": 2, "device": None}, None),
    (("unknown",), {"kind": "unknown", "origin": "unknown", "device": None}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("from_flag", "given", "found", "said"),
    [*((True, *case) for case in STATED), *((False, *case) for case in OF_FILES)],
)
def test_what_is_stated_brings_its_facts(from_flag, given, found, said):
    """Of the catalogue, as often as stated; what was chosen, or is not known, is said."""
    hardware, warnings = stated_hardware(*given, from_flag=from_flag)
    facts_found = facts(hardware)
    assert {key: facts_found[key] for key in found} == found
    if said is None:
        assert warnings == ()
    assert (said or "") in "\n".join((*warnings, *hardware.notes))


@pytest.mark.parametrize(
    ("name", "most_gib"),
    # What Metal itself recommends at most, on machines that people reported.
    [("M4 16GB", 10.67), ("M3 16GB", 11.84), ("M1 Ultra 128GB", 96), ("M5 Max 128GB", 107.52)],
)
def test_a_mac_keeps_what_macos_keeps(name, most_gib):
    """Never more than macOS gives the GPU, and not much less."""
    hardware, _ = stated_hardware(name, from_flag=True)
    assert 0.88 * most_gib < hardware.device_memory_bytes / GIB <= most_gib
    assert "macOS" in hardware.gpus[0].kept_free_because
    assert any("advice leaves" in note for note in hardware.notes)


@pytest.mark.parametrize("name", ["GB10", "Ryzen AI Max+ 395 128GB", "Jetson AGX Orin 64GB"])
def test_shared_memory_leaves_room_for_the_system(name):
    """Where CPU and GPU share the memory, not all of it is the GPU's."""
    assert stated_hardware(name, from_flag=True)[0].gpus[0].kept_free_bytes > GIB


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("P100", ["a CUDA 12.6 build of PyTorch"]),
        ("GTX 1080 Ti", ["a CUDA 12.6 build of PyTorch"]),
        ("V100 SXM2 16GB", ['pip install "torch==2.10.*"']),
        *[(name, []) for name in ("T4", "RTX 5090", "MI300X")],
    ],
)
def test_a_gpu_too_old_for_todays_pytorch_is_told_which_one(name, needs):
    """Plain pip brings a PyTorch without code for it, and training would end at its start."""
    told = [text for text in stated_hardware(name, from_flag=True)[1] if "no code" in text]
    assert len(told) == len(needs)
    assert all(need in text for need, text in zip(needs, told, strict=True)), told


def test_none_is_the_processor_of_this_machine():
    """`none` plans with this machine's memory and cores, in whatever case it is written. A probed
    machine without its GPUs keeps memory and software and loses what concerned them.
    """
    for name in ("none", "None"):
        hardware, warnings = stated_hardware(name, from_flag=True)
        assert (hardware.kind, hardware.origin) == ("cpu", "stated")
        assert (hardware.gpus, warnings) == ((), ())
        assert hardware.cpu_cores >= 1
        assert hardware.device_memory_bytes > 0
    cpu = Hardware(kind="cpu", origin="probed", cpu_cores=7, ram_total_bytes=5)
    gpus = (Gpu(name="x", memory_total_bytes=1),)
    machine = replace(cpu, kind="cuda", gpus=gpus, driver_version="1", problem="old driver")
    assert cpu_hardware(machine) == cpu


@pytest.mark.parametrize(
    ("name", "count", "memory_gib", "says"),
    [
        ("none", None, 24, "--gpu none contradicts --gpu-memory"),
        ("none", 2, None, "--gpu none contradicts --gpus"),
        ("8x H100 SXM", 4, None, "--gpu says 8 cards, --gpus says 4"),
        ("RTX 4090", 0, None, "--gpus: 0 GPUs"),
        ("RTX 4090", -1, None, "--gpus: -1 GPUs"),
        ("0x RTX 4090", None, None, "--gpu: 0 GPUs"),
        ("RTX 4090", None, 0, "--gpu-memory: 0 GiB"),
        ("RTX 4090", None, -24, "--gpu-memory: -24 GiB"),
        ("RTX 4090", None, 24_000_000_000, "--gpu-memory"),
        (None, 2, None, "how many cards, not which"),
        # A size that a GPU is not sold with, and a name that nobody knows.
        ("RTX 4090 80GB", None, None, "24 GB.*--gpu-memory"),
        ("A100 24GB", None, None, "40 or 80 GB.*--gpu-memory"),
        ("T4 32", None, None, "--gpu-memory"),
        ("RTX 4091", None, None, "--gpu: unknown GPU 'RTX 4091'.*did you mean RTX 4090.*"
         "say its memory with --gpu-memory GIB"),
    ],
)  # fmt: skip
def test_contradictions_and_impossible_numbers_are_refused(name, count, memory_gib, says):
    """Statements that exclude each other, and numbers no machine has, name the flag."""
    with pytest.raises(InputError, match=f"(?s){says}"):
        stated_hardware(name, count, memory_gib, from_flag=True)


# -------------------------------------------------------------------------- other devices


DEVICES = {
    "TPU v5e": "google-tpu", "Google Cloud TPU v4-8": "google-tpu", "v5litepod-8": "google-tpu",
    "trn1.32xlarge": "aws-trainium", "AWS Trainium2": "aws-trainium",
    "inf2.xlarge": "aws-inferentia",
    "Intel Gaudi2 HPU": "intel-gaudi", "Gaudi 3 128GB": "intel-gaudi",
    "Ascend 910B": "huawei-ascend",
    "Intel(R) Arc(TM) A770 Graphics": "intel-gpu", "Arc B580 12GB": "intel-gpu",
    "Intel Data Center GPU Max 1550": "intel-gpu",
    "Intel AI Boost NPU": "laptop-npu",
}  # fmt: skip


@pytest.mark.parametrize(("name", "device"), DEVICES.items())
@pytest.mark.parametrize("from_flag", [True, False])
def test_a_device_of_another_kind_is_told_by_its_name(name, device, from_flag):
    """A typed name leads to what the device is and to a tool that trains on it."""
    for memory_gib in (None, 24):
        hardware, warnings = stated_hardware(name, 4, memory_gib, from_flag=from_flag)
        told = hardware.not_supported
        assert (hardware.kind, told.id) == ("unknown", device)
        assert told.where[0].url.startswith("https://")
        assert f"'{name}' is {told.what}" in warnings[-1]


def test_no_gpu_of_the_catalogue_is_taken_for_such_a_device():
    """No name of a GPU that trains here, nor one that says nothing, matches one of these devices."""
    gpus = catalogue_gpus().values()
    names = [name for gpu in gpus for name in (gpu.spec.name, *gpu.names)]
    assert len(names) > 400
    for name in (*names, "A100 80", "some card", "V100", "16 GB card", "H100"):
        assert not_supported(name) is None, name
