"""What `advise probe` shows, as text of a fixed width and as JSON."""

import io
import json

import pytest
from msgspec.structs import replace
from rich.console import Console

from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, MIB
from advisor.probe import load_catalogue, stated_hardware
from advisor.render.probe import print_probe, probe_json

CARD = Gpu(
    name="NVIDIA GeForce RTX 4090", uuid="GPU-1", index=0, compute_capability=(8, 9), bf16=True,
    memory_total_bytes=24564 * MIB, memory_free_bytes=20156 * MIB, other_processes_bytes=3812 * MIB,
    spec=load_catalogue()["nvidia-rtx-4090"],
)  # fmt: skip
MACHINE = Hardware(
    kind="cuda", origin="probed", gpus=(CARD,), cpu_cores=16, interconnect="PCIe 4 x16",
    ram_total_bytes=64 * GIB, ram_free_bytes=50 * GIB, disk_free_bytes=500 * GIB,
    driver_version="580.95.05", cuda_version="13.0", torch_target="CPU",
    software={"torch": "2.13.0+cpu", "transformers": "5.24.0", "trl": None},
    notes=("a memory limit of 64.0 GiB holds for this process (control group)",),
    problem=(
        "NVIDIA GeForce RTX 4090 is there, but PyTorch 2.13.0+cpu (CPU build) cannot use it."
        ' Install: pip install --force-reinstall "torch==2.13.0"'
    ),
)  # fmt: skip


def shown(hardware: Hardware, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_probe(hardware, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_its_width_without_colour(width: int) -> None:
    """Every fact of the machine is shown, no line is too wide, and no colour code is needed."""
    text = shown(MACHINE, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    words = " ".join(text.split())
    facts = (
        "NVIDIA GeForce RTX 4090", "compute capability 8.9, bf16", "PCIe 4 x16", "500 GiB free",
        "19.7 GiB free of 24.0 GiB, 3.7 GiB held by other programs", "580.95.05, CUDA up to 13.0",
        "$0.74/h (runpod, 2026-09-25)", "50.0 GiB free of 64.0 GiB", "torch 2.13.0+cpu (CPU build)",
        "not installed: trl", "note: a memory limit",
    )  # fmt: skip
    assert [fact for fact in facts if fact not in words] == []


def test_the_line_to_install_can_be_copied() -> None:
    """The cure stands on one unbroken line, however narrow the terminal."""
    line = '  install: pip install --force-reinstall "torch==2.13.0"'
    assert line in shown(MACHINE, 40).splitlines()


def test_like_cards_are_one_line_and_show_the_fullest() -> None:
    """Eight are counted, with the free memory of the fullest, which a run can plan with."""
    cards = tuple(
        replace(CARD, index=index, memory_free_bytes=(20 - index) * GIB, other_processes_bytes=None)
        for index in range(8)
    )
    text = shown(replace(MACHINE, gpus=cards))
    assert "8 x NVIDIA GeForce RTX 4090" in text
    assert "13.0 GiB free of 24.0 GiB on the fullest" in text


PROCESSOR = replace(MACHINE, kind="cpu", gpus=(), problem=None)
BARE = replace(CARD, spec=None)


@pytest.mark.parametrize(
    ("hardware", "says"),
    [
        (replace(PROCESSOR, driver_version=None), "none found: training runs on the processor"),
        (PROCESSOR, "none that can be used: training runs on the processor"),
        (
            Hardware(kind="unknown", origin="unknown"),
            "not known: nothing is ruled out because of it",
        ),
        (
            replace(MACHINE, software={"torch": None, "trl": None}),
            "PyTorch is not installed: advice works, training needs the extra `train`",
        ),
        (
            replace(MACHINE, gpus=(replace(BARE, memory_total_bytes=None, bf16=None),)),
            "memory not known",
        ),
        (replace(MACHINE, gpus=(replace(BARE, mig_profile="1g.10gb"),)), "MIG slice 1g.10gb"),
        (stated_hardware("T4", from_flag=True)[0], "no bf16: trains in fp16"),
        (
            stated_hardware(None, None, 24, from_flag=True)[0],
            "speed not known (not in the catalogue)",
        ),
    ],
)
def test_what_is_absent_or_unknown_is_said(hardware: Hardware, says: str) -> None:
    """No card, a hidden one, unknown facts and a missing PyTorch each have their sentence."""
    assert says in " ".join(shown(hardware).split())


def test_json_has_units_in_its_keys_and_null_for_unknown() -> None:
    """Sizes are GiB by their key, unknowns are null, and the document survives a round trip."""
    document = json.loads(json.dumps(probe_json(MACHINE)))
    assert document["schema_version"] == 1
    (gpu,) = document["gpus"]
    sizes = gpu["memory_total_gib"], gpu["memory_free_gib"]
    assert sizes == (23.988, 19.684)  # 24564 and 20156 MiB
    assert gpu["catalogue"] == {
        "id": "nvidia-rtx-4090", "name": "RTX 4090", "bf16_tflops": 165.2, "achieved_tflops": None,
        "bandwidth_gb_per_s": 1008.0,
        "power_w": 450, "price_usd_per_h": 0.74, "price_note": "runpod, 2026-09-25",
    }  # fmt: skip
    assert document["software"]["trl"] is None
    assert document["problem"].startswith("NVIDIA GeForce RTX 4090 is there")
    empty = probe_json(Hardware(kind="unknown", origin="unknown"))
    assert (empty["gpus"], empty["ram_total_gib"], empty["problem"]) == ([], None, None)
