"""Hardware a person states."""

from __future__ import annotations

import pytest

from advisor.ground.errors import InputError
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, MIB
from advisor.probe import cpu_hardware, stated_hardware


def test_a_known_card_brings_its_facts() -> None:
    """Name, memory, capability and bf16 of the catalogue, as often as stated, with the link between
    them.
    """
    hardware, warnings = stated_hardware("RTX 4090", 2, from_flag=True)
    assert warnings == ()
    assert (hardware.kind, hardware.origin, len(hardware.gpus)) == ("cuda", "stated", 2)
    gpu = hardware.gpus[0]
    assert (gpu.memory_total_bytes, gpu.compute_capability, gpu.bf16) == (24564 * MIB, (8, 9), True)
    assert hardware.interconnect == "PCIe 4 x16"
    assert stated_hardware("H100 SXM", from_flag=True)[0].interconnect is None  # one has no link
    assert hardware.device_memory_bytes == 24564 * MIB
    assert hardware.ram_total_bytes is None  # of a machine nobody described


def test_a_count_may_stand_in_the_name() -> None:
    """ "8x H100 SXM" is eight cards; a count beside it that differs is refused."""
    assert len(stated_hardware("8x H100 SXM", from_flag=True)[0].gpus) == 8
    assert len(stated_hardware("2 x RTX 3090", 2, from_flag=True)[0].gpus) == 2
    for written in ("T4 x2", "T4 (x2)", "T4 x 2", "2 x T4s"):
        hardware, _ = stated_hardware(written, from_flag=True)
        assert [gpu.name for gpu in hardware.gpus] == ["T4", "T4"], written
    with pytest.raises(InputError, match=r"--gpu says 8 cards, --gpus says 4"):
        stated_hardware("8x H100 SXM", 4, from_flag=True)


def test_less_memory_than_sold_is_noted() -> None:
    """A T4 sold as 16 GB shows 15 GiB: planned with 15, and said."""
    hardware, _ = stated_hardware("T4", memory_gib=16, from_flag=True)
    assert hardware.device_memory_bytes == 15 * GIB
    assert hardware.notes == ("T4: sold as 16 GB, its driver shows 15.0 GiB",)


def test_an_unknown_card_with_memory_is_used_as_given() -> None:
    """A name outside the catalogue with its memory is a CUDA card of that size with unknown speed,
    and a warning says so.
    """
    hardware, warnings = stated_hardware("A8000", 8, 80, from_flag=False)
    assert (hardware.kind, len(hardware.gpus), hardware.device_memory_bytes) == (
        "cuda",
        8,
        80 * GIB,
    )
    assert (hardware.gpus[0].name, hardware.gpus[0].spec) == ("A8000", None)
    assert any("not in the GPU catalogue" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AMD Radeon W7900", "rocm"),
        ("MI308X", "rocm"),
        ("Apple M9 Ultra", "mps"),
        ("48 GB card", "cuda"),
    ],
)
def test_the_vendor_of_an_unknown_card_is_read_from_its_name(name: str, kind: str) -> None:
    """An unknown AMD or Apple name is not taken for a CUDA card."""
    assert stated_hardware(name, memory_gib=48, from_flag=True)[0].kind == kind


def test_an_unknown_card_without_memory_is_an_error_as_a_flag_and_unknown_in_a_file() -> None:
    """As a flag it stops with the nearest names and the way out; in a file it rules nothing out and
    is a warning.
    """
    with pytest.raises(
        InputError,
        match=(
            r"--gpu: unknown GPU 'RTX 4091'(.|\n)*did you mean RTX 4090(.|\n)*say its memory with"
            r" --gpu-memory GIB"
        ),
    ):
        stated_hardware("RTX 4091", from_flag=True)
    hardware, warnings = stated_hardware("RTX 4091", from_flag=False)
    assert (hardware.kind, hardware.gpus, hardware.device_memory_bytes) == ("unknown", (), None)
    assert any("gpu.name: unknown GPU 'RTX 4091'" in warning for warning in warnings)


def test_a_chip_sold_with_several_sizes_is_taken_as_the_smallest() -> None:
    """An Apple chip's memory depends on the computer: without one the smallest is planned with,
    and the others are named.
    """
    hardware, warnings = stated_hardware("M4 Max", from_flag=True)
    assert (hardware.kind, hardware.gpus[0].memory_total_bytes) == ("mps", 36 * GIB)
    assert "Apple M4 Max 36GB, Apple M4 Max 48GB" in warnings[0]
    hardware, _ = stated_hardware("M4 Max", memory_gib=48, from_flag=True)
    assert (hardware.kind, hardware.gpus[0].memory_total_bytes) == ("mps", 48 * GIB)


@pytest.mark.parametrize(
    ("name", "most_gib"),
    # What Metal itself recommends at most, on machines that people reported.
    [("M4 16GB", 10.67), ("M3 16GB", 11.84), ("M1 Ultra 128GB", 96), ("M5 Max 128GB", 107.52)],
)
def test_a_mac_keeps_what_macos_keeps(name: str, most_gib: float) -> None:
    """Never more than macOS gives the GPU, and not much less."""
    hardware, _ = stated_hardware(name, from_flag=True)
    given = (hardware.device_memory_bytes or 0) / GIB
    assert 0.88 * most_gib < given <= most_gib
    assert "macOS" in hardware.gpus[0].kept_free_because
    assert any("advice leaves" in note for note in hardware.notes)


def test_two_macs_do_not_train_together() -> None:
    """The trainers use one Apple GPU: another count is said, and one is planned with."""
    hardware, warnings = stated_hardware("2x M3 Max 64GB", from_flag=True)
    assert len(hardware.gpus) == 1
    assert any("a Mac trains by itself" in text for text in warnings)


@pytest.mark.parametrize("name", ["RTX 4060 Laptop", "RTX 2080 Max-Q", "Quadro T2000", "MX550"])
def test_a_laptop_keeps_room_for_its_display(name: str) -> None:
    """Every GPU of the catalogue that exists in laptops alone has headroom."""
    hardware, _ = stated_hardware(name, from_flag=True)
    assert hardware.gpus[0].kept_free_bytes == GIB


@pytest.mark.parametrize("name", ["GB10", "Ryzen AI Max+ 395 128GB", "Jetson AGX Orin 64GB"])
def test_shared_memory_leaves_room_for_the_system(name: str) -> None:
    """Where CPU and GPU share the memory, not all of it is the GPU's."""
    hardware, _ = stated_hardware(name, from_flag=True)
    assert hardware.gpus[0].kept_free_bytes > GIB


@pytest.mark.parametrize(
    ("name", "sizes"), [("RTX 4090 80GB", "24 GB"), ("A100 24GB", "40 or 80 GB"), ("T4 32", "")]
)
def test_a_size_that_a_gpu_is_not_sold_with_is_refused(name: str, sizes: str) -> None:
    """As part of a flag's name it stops with the sizes there are; beside the name it counts, and in
    a file it does too, each time with a warning.
    """
    with pytest.raises(InputError) as caught:
        stated_hardware(name, from_flag=True)
    assert sizes in str(caught.value)
    assert "--gpu-memory" in str(caught.value)
    if sizes:
        bare, _, size = name.rpartition(" ")
        gib = int(size.removesuffix("GB"))
        for hardware, warnings in (
            stated_hardware(bare, None, gib, from_flag=True),
            stated_hardware(name, from_flag=False),
        ):
            assert hardware.gpus[0].memory_total_bytes == gib * GIB
            assert "the memory is taken as stated" in warnings[-1]


def test_a_number_of_gpus_of_unknown_kind_is_an_answer() -> None:
    """`unknown` with a count keeps the count and rules nothing out."""
    for from_flag in (True, False):
        hardware, warnings = stated_hardware("unknown", 2, from_flag=from_flag)
        assert (hardware.kind, len(hardware.gpus), warnings) == ("unknown", 2, ())
        assert hardware.device_memory_bytes is None


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
def test_a_gpu_too_old_for_todays_pytorch_is_told_which_one(name: str, needs: str | None) -> None:
    """Plain pip brings a PyTorch without code for it, and training would end at its start."""
    told = [text for text in stated_hardware(name, from_flag=True)[1] if "no code" in text]
    assert len(told) == (needs is not None)
    assert needs is None or needs in told[0]


def test_a_memory_alone_is_some_card() -> None:
    """--gpu-memory 24 is a CUDA card with 24 GiB of which nothing else is known."""
    for name in (None, "unknown"):
        hardware, warnings = stated_hardware(name, None, 24, from_flag=True)
        assert (hardware.kind, hardware.device_memory_bytes, warnings) == ("cuda", 24 * GIB, ())
        assert hardware.gpus[0].compute_capability is None


def test_unknown_rules_nothing_out() -> None:
    """`unknown` is hardware of which nothing is known."""
    hardware, warnings = stated_hardware("unknown", from_flag=False)
    assert (hardware.kind, hardware.origin, hardware.device_memory_bytes, warnings) == (
        "unknown",
        "unknown",
        None,
        (),
    )


def test_none_is_the_processor_of_this_machine() -> None:
    """`none` plans with the memory and the cores of this machine, in whatever case it is
    written.
    """
    for name in ("none", "None"):
        hardware, warnings = stated_hardware(name, from_flag=True)
        assert (hardware.kind, hardware.origin, hardware.gpus, warnings) == (
            "cpu",
            "stated",
            (),
            (),
        )
        assert hardware.cpu_cores is not None
        assert hardware.cpu_cores >= 1
        assert hardware.device_memory_bytes is not None
        assert hardware.device_memory_bytes > 0


def test_the_processor_of_a_probed_machine_keeps_its_other_facts() -> None:
    """A probed machine without its cards keeps memory and software and loses what concerned the
    card.
    """
    machine = Hardware(
        kind="cuda",
        origin="probed",
        gpus=(Gpu(name="x", memory_total_bytes=1),),
        cpu_cores=7,
        ram_total_bytes=5,
        driver_version="1",
        problem="old driver",
    )
    cpu = cpu_hardware(machine)
    assert (
        cpu.kind,
        cpu.gpus,
        cpu.cpu_cores,
        cpu.ram_total_bytes,
        cpu.driver_version,
        cpu.problem,
    ) == ("cpu", (), 7, 5, None, None)


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
def test_contradictions_and_impossible_numbers_are_refused(
    name: str | None, count: int | None, memory_gib: float | None, says: str
) -> None:
    """Statements that exclude each other, and numbers no machine has, are errors that name the
    flag.
    """
    with pytest.raises(InputError) as caught:
        stated_hardware(name, count, memory_gib, from_flag=True)
    assert says in str(caught.value)


def test_a_named_laptop_gpu_keeps_memory_for_the_display() -> None:
    """1 GiB stays free in the advice for a laptop's GPU, and the machine's notes say so."""
    hardware, _ = stated_hardware("RTX 4090 Laptop GPU", memory_gib=16, from_flag=True)
    assert hardware.device_memory_bytes == 15 * GIB
    assert "advice leaves 1.0 GiB of its memory free" in hardware.notes[0]
    desktop, _ = stated_hardware("RTX 4090", from_flag=True)
    assert desktop.device_memory_bytes == desktop.gpus[0].memory_total_bytes
