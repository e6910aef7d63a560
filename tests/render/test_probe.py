"""What `advise probe` shows, as text of a fixed width and as JSON."""

import io

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


PROCESSOR = replace(MACHINE, kind="cpu", gpus=(), problem=None)
BARE = replace(CARD, spec=None)


SCREENS = {
    "whole": MACHINE,
    # Eight are counted, with the free memory of the fullest, which a run can plan with.
    "like cards": replace(MACHINE, gpus=tuple(
        replace(CARD, index=index, memory_free_bytes=(20 - index) * GIB, other_processes_bytes=None)
        for index in range(8)
    )),
    "no card": replace(PROCESSOR, driver_version=None),
    "a card that cannot be used": PROCESSOR,
    "nothing is known": Hardware(kind="unknown", origin="unknown"),
    "no PyTorch": replace(MACHINE, software={"torch": None, "trl": None}),
    "memory not known": replace(
        MACHINE, gpus=(replace(BARE, memory_total_bytes=None, bf16=None),)
    ),
    "a slice": replace(MACHINE, gpus=(replace(BARE, mig_profile="1g.10gb"),)),
    "no bf16": stated_hardware("T4", from_flag=True)[0],
    "not in the catalogue": stated_hardware(None, None, 24, from_flag=True)[0],
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is(approved, name: str, width: int) -> None:
    """Every fact of the machine, without colour; the line to install stays whole at any width."""
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_probe(SCREENS[name], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(len(line) for line in lines if "install: " not in line) <= width
    approved(lines)


@pytest.mark.parametrize("name", ["whole", "nothing is known"])
def test_json_has_units_in_its_keys_and_null_for_unknown(approved, name: str) -> None:
    """Sizes are GiB by their key, and what is not known is null."""
    approved(probe_json(SCREENS[name]))
