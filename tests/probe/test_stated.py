"""Hardware a person states."""

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, MIB
from advisor.probe import cpu_hardware, stated_hardware
from advisor.probe.gpu_files import catalogue_gpus, not_supported


def stated(name, count=None, memory_gib=None, *, from_flag=True):
    """The hardware alone."""
    return stated_hardware(name, count, memory_gib, from_flag=from_flag)[0]


def test_a_known_card_brings_its_facts():
    """Memory, capability, bf16 and link of the catalogue, as often as stated."""
    hardware, warnings = stated_hardware("RTX 4090", 2, from_flag=True)
    assert (hardware.kind, hardware.origin, len(hardware.gpus)) == ("cuda", "stated", 2)
    gpu = hardware.gpus[0]
    assert (gpu.memory_total_bytes, gpu.compute_capability, gpu.bf16) == (24564 * MIB, (8, 9), True)
    assert hardware.device_memory_bytes == gpu.memory_total_bytes
    assert (hardware.interconnect, warnings) == ("PCIe 4 x16", ())
    assert hardware.ram_total_bytes is None  # of a machine nobody described
    assert stated("H100 SXM").interconnect is None  # one has no link


def test_a_count_may_stand_in_the_name():
    """ "8x H100 SXM" is eight GPUs; a count beside it that differs is refused."""
    assert len(stated("8x H100 SXM").gpus) == 8
    assert len(stated("2 x RTX 3090", 2).gpus) == 2
    for written in ("T4 x2", "T4 (x2)", "T4 x 2", "2 x T4s"):
        assert [gpu.name for gpu in stated(written).gpus] == ["T4", "T4"], written
    with pytest.raises(InputError, match=r"--gpu says 8 cards, --gpus says 4"):
        stated("8x H100 SXM", 4)


def test_less_memory_than_sold_is_noted():
    """A T4 sold as 16 GB shows 15 GiB: planned with 15, and said."""
    hardware = stated("T4", None, 16)
    assert hardware.device_memory_bytes == 15 * GIB
    assert hardware.notes == ("T4: sold as 16 GB, its driver shows 15.0 GiB",)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AMD Radeon W7900", "rocm"),
        ("MI308X", "rocm"),
        ("Apple M9 Ultra", "mps"),
        ("48 GB card", "cuda"),
    ],
)
def test_the_vendor_of_an_unknown_card_is_read_from_its_name(name, kind):
    """An unknown AMD or Apple name is not taken for a CUDA card."""
    assert stated(name, None, 48).kind == kind


def test_an_unknown_card_with_memory_is_used_as_given():
    """A CUDA card of that size with unknown speed, and a warning says so."""
    hardware, warnings = stated_hardware("A8000", 8, 80, from_flag=False)
    assert (hardware.kind, len(hardware.gpus)) == ("cuda", 8)
    assert hardware.device_memory_bytes == 80 * GIB
    assert (hardware.gpus[0].name, hardware.gpus[0].spec) == ("A8000", None)
    assert "not in the GPU catalogue" in "\n".join(warnings)


def test_an_unknown_card_without_memory_is_an_error_as_a_flag_and_unknown_in_a_file():
    """A flag stops with the nearest names and the way out; a file rules nothing out."""
    with pytest.raises(
        InputError,
        match=r"(?s)--gpu: unknown GPU 'RTX 4091'.*did you mean RTX 4090.*say its memory with"
        r" --gpu-memory GIB",
    ):
        stated("RTX 4091")
    hardware, warnings = stated_hardware("RTX 4091", from_flag=False)
    assert (hardware.kind, hardware.gpus, hardware.device_memory_bytes) == ("unknown", (), None)
    assert "gpu.name: unknown GPU 'RTX 4091'" in "\n".join(warnings)


def test_a_chip_sold_with_several_sizes_is_taken_as_the_smallest():
    """Without a size the smallest is planned with, and the others are named."""
    hardware, warnings = stated_hardware("M4 Max", from_flag=True)
    assert (hardware.kind, hardware.gpus[0].memory_total_bytes) == ("mps", 36 * GIB)
    assert "Apple M4 Max 36GB, Apple M4 Max 48GB" in warnings[0]
    assert stated("M4 Max", None, 48).gpus[0].memory_total_bytes == 48 * GIB


@pytest.mark.parametrize(
    ("name", "most_gib"),
    # What Metal itself recommends at most, on machines that people reported.
    [("M4 16GB", 10.67), ("M3 16GB", 11.84), ("M1 Ultra 128GB", 96), ("M5 Max 128GB", 107.52)],
)
def test_a_mac_keeps_what_macos_keeps(name, most_gib):
    """Never more than macOS gives the GPU, and not much less."""
    hardware = stated(name)
    assert 0.88 * most_gib < hardware.device_memory_bytes / GIB <= most_gib
    assert "macOS" in hardware.gpus[0].kept_free_because
    assert any("advice leaves" in note for note in hardware.notes)


def test_two_macs_do_not_train_together():
    """The trainers use one Apple GPU: another count is said, and one is planned with."""
    hardware, warnings = stated_hardware("2x M3 Max 64GB", from_flag=True)
    assert len(hardware.gpus) == 1
    assert any("a Mac trains by itself" in text for text in warnings)


@pytest.mark.parametrize("name", ["RTX 4060 Laptop", "RTX 2080 Max-Q", "Quadro T2000", "MX550"])
def test_a_laptop_keeps_room_for_its_display(name):
    """Every GPU of the catalogue that exists in laptops alone has headroom, and the notes say so."""
    hardware = stated(name)
    assert hardware.gpus[0].kept_free_bytes == GIB
    assert hardware.device_memory_bytes == hardware.gpus[0].memory_total_bytes - GIB
    assert "advice leaves 1.0 GiB of its memory free" in hardware.notes[0]
    desktop = stated("RTX 4090")
    assert desktop.device_memory_bytes == desktop.gpus[0].memory_total_bytes


@pytest.mark.parametrize("name", ["GB10", "Ryzen AI Max+ 395 128GB", "Jetson AGX Orin 64GB"])
def test_shared_memory_leaves_room_for_the_system(name):
    """Where CPU and GPU share the memory, not all of it is the GPU's."""
    assert stated(name).gpus[0].kept_free_bytes > GIB


@pytest.mark.parametrize(
    ("name", "sizes"), [("RTX 4090 80GB", "24 GB"), ("A100 24GB", "40 or 80 GB"), ("T4 32", "")]
)
def test_a_size_that_a_gpu_is_not_sold_with_is_refused(name, sizes):
    """A flag's name stops with the sizes there are; elsewhere the size counts, with a warning."""
    with pytest.raises(InputError, match=f"(?s){sizes}.*--gpu-memory"):
        stated(name)
    if sizes:
        bare, _, size = name.removesuffix("GB").rpartition(" ")
        for given, from_flag in (((bare, None, int(size)), True), ((name,), False)):
            hardware, warnings = stated_hardware(*given, from_flag=from_flag)
            assert hardware.gpus[0].memory_total_bytes == int(size) * GIB
            assert "the memory is taken as stated" in warnings[-1]


def test_what_is_not_known_rules_nothing_out():
    """`unknown` with a count or without, and --gpu-memory alone."""
    for from_flag in (True, False):
        hardware, warnings = stated_hardware("unknown", 2, from_flag=from_flag)
        assert (hardware.kind, len(hardware.gpus), warnings) == ("unknown", 2, ())
        assert hardware.device_memory_bytes is None
    hardware, warnings = stated_hardware("unknown", from_flag=False)
    assert (hardware.kind, hardware.origin, warnings) == ("unknown", "unknown", ())
    assert hardware.device_memory_bytes is None
    for name in (None, "unknown"):
        hardware, warnings = stated_hardware(name, None, 24, from_flag=True)
        assert (hardware.kind, hardware.device_memory_bytes, warnings) == ("cuda", 24 * GIB, ())
        assert hardware.gpus[0].compute_capability is None


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("P100", "a CUDA 12.6 build of PyTorch"),
        ("GTX 1080 Ti", "a CUDA 12.6 build of PyTorch"),
        ("V100 SXM2 16GB", 'pip install "torch==2.10.*"'),
        ("T4", None),
        ("RTX 5090", None),
        ("MI300X", None),
    ],
)
def test_a_gpu_too_old_for_todays_pytorch_is_told_which_one(name, needs):
    """Plain pip brings a PyTorch without code for it, and training would end at its start."""
    told = [text for text in stated_hardware(name, from_flag=True)[1] if "no code" in text]
    assert len(told) == (needs is not None)
    assert needs is None or needs in told[0]


def test_none_is_the_processor_of_this_machine():
    """`none` plans with this machine's memory and cores, in whatever case it is written."""
    for name in ("none", "None"):
        hardware, warnings = stated_hardware(name, from_flag=True)
        assert (hardware.kind, hardware.origin) == ("cpu", "stated")
        assert (hardware.gpus, warnings) == ((), ())
        assert hardware.cpu_cores >= 1
        assert hardware.device_memory_bytes > 0


def test_the_processor_of_a_probed_machine_keeps_its_other_facts():
    """A probed machine without its GPUs keeps memory and software and loses what concerned them."""
    cpu = Hardware(kind="cpu", origin="probed", cpu_cores=7, ram_total_bytes=5)
    gpus = (Gpu(name="x", memory_total_bytes=1),)
    machine = replace(cpu, kind="cuda", gpus=gpus, driver_version="1", problem="old driver")
    assert cpu_hardware(machine) == cpu


@pytest.mark.parametrize(
    ("name", "count", "memory_gib", "says"),
    [
        ("none", None, 24, "--gpu none contradicts --gpu-memory"),
        ("none", 2, None, "--gpu none contradicts --gpus"),
        ("RTX 4090", 0, None, "--gpus: 0 GPUs"),
        ("RTX 4090", -1, None, "--gpus: -1 GPUs"),
        ("0x RTX 4090", None, None, "--gpu: 0 GPUs"),
        ("RTX 4090", None, 0, "--gpu-memory: 0 GiB"),
        ("RTX 4090", None, -24, "--gpu-memory: -24 GiB"),
        ("RTX 4090", None, 24_000_000_000, "--gpu-memory"),
        (None, 2, None, "how many cards, not which"),
    ],
)
def test_contradictions_and_impossible_numbers_are_refused(name, count, memory_gib, says):
    """Statements that exclude each other, and numbers no machine has, name the flag."""
    with pytest.raises(InputError, match=says):
        stated(name, count, memory_gib)


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
