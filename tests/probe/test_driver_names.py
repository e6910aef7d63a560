"""The names that drivers and systems print, as somebody pastes them into a question or a flag.

Where a name comes from: nvidia-smi (NVIDIA's list of GPUs in the README of
github.com/NVIDIA/open-gpu-kernel-modules, and product names before Turing), rocm-smi and lspci,
system_profiler. The sizes are those of the makers' product pages.
"""

import math
import re
from collections import Counter

import pytest

from advisor.ground.units import GIB
from advisor.ground.yaml_files import LINK
from advisor.probe import stated_hardware
from advisor.probe.catalogue import find_gpu, gpu_entry, gpus_of, load_catalogue, match_probed
from advisor.probe.gpu_files import catalogue_gpus
from advisor.probe.meant import meant_gpu

# name -> GPU of the catalogue, and GB where the name is sold with one size alone
PRINTED = {
    "NVIDIA GeForce RTX 4060 Laptop GPU": ("nvidia-rtx-4060-laptop", 8),
    "NVIDIA GeForce RTX 4090 Laptop GPU": ("nvidia-rtx-4090-laptop", 16),
    "NVIDIA GeForce RTX 3080 Laptop GPU": ("nvidia-rtx-3080-laptop", None),
    "NVIDIA A100-SXM4-80GB": ("nvidia-a100-sxm4-80gb", 80),
    "NVIDIA A100-SXM4-40GB": ("nvidia-a100-sxm4-40gb", 40),
    "NVIDIA A100-PCIE-40GB": ("nvidia-a100-pcie-40gb", 40),
    "NVIDIA A100 80GB PCIe": ("nvidia-a100-pcie-80gb", 80),
    "NVIDIA H100 80GB HBM3": ("nvidia-h100-sxm5-80gb", 80),
    "NVIDIA H100 PCIe": ("nvidia-h100-pcie-80gb", 80),
    "NVIDIA H100 NVL": ("nvidia-h100-nvl-94gb", 94),
    "NVIDIA H200": ("nvidia-h200-sxm", 141),
    "NVIDIA H200 NVL": ("nvidia-h200-nvl", 141),
    "NVIDIA H20": ("nvidia-h20", 96),
    "NVIDIA B200": ("nvidia-b200", 180),
    "NVIDIA GB200": ("nvidia-gb200", 186),
    "NVIDIA GB10": ("nvidia-gb10", 128),
    "NVIDIA GH200 480GB": ("nvidia-gh200-96gb", 96),
    "NVIDIA GH200 144G HBM3e": ("nvidia-gh200-144gb", 144),
    "Tesla T4": ("nvidia-t4", 16),
    "NVIDIA T4": ("nvidia-t4", 16),
    "Tesla V100-SXM2-16GB": ("nvidia-v100-sxm2-16gb", 16),
    "Tesla V100-SXM2-32GB": ("nvidia-v100-sxm2-32gb", 32),
    "Tesla V100-PCIE-16GB": ("nvidia-v100-pcie-16gb", 16),
    "Tesla V100-SXM3-32GB": ("nvidia-v100-sxm3-32gb", 32),
    "Tesla V100-FHHL-16GB": ("nvidia-v100-fhhl-16gb", 16),
    "Tesla P100-PCIE-16GB": ("nvidia-p100-pcie", None),
    "Tesla P40": ("nvidia-p40", 24),
    "Tesla P4": ("nvidia-p4", 8),
    "NVIDIA L4": ("nvidia-l4", 24),
    "NVIDIA L40": ("nvidia-l40", 48),
    "NVIDIA L40S": ("nvidia-l40s", 48),
    "NVIDIA A2": ("nvidia-a2", 16),
    "NVIDIA A10": ("nvidia-a10", 24),
    "NVIDIA A10G": ("nvidia-a10g", 24),
    "NVIDIA A16": ("nvidia-a16", 16),
    "NVIDIA A30": ("nvidia-a30", 24),
    "NVIDIA A40": ("nvidia-a40", 48),
    "NVIDIA RTX A2000": ("nvidia-rtx-a2000", None),
    "NVIDIA RTX A2000 12GB": ("nvidia-rtx-a2000", None),
    "NVIDIA RTX A4000": ("nvidia-rtx-a4000", 16),
    "NVIDIA RTX A5000": ("nvidia-rtx-a5000", 24),
    "NVIDIA RTX A6000": ("nvidia-rtx-a6000", 48),
    "NVIDIA RTX 6000 Ada Generation": ("nvidia-rtx-6000-ada", 48),
    "NVIDIA RTX 5000 Ada Generation": ("nvidia-rtx-5000-ada", 32),
    "NVIDIA RTX 4000 SFF Ada Generation": ("nvidia-rtx-4000-sff-ada", 20),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ("nvidia-rtx-pro-6000-workstation", 96),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("nvidia-rtx-pro-6000-server", 96),
    "NVIDIA RTX PRO 5000 Blackwell": ("nvidia-rtx-pro-5000", None),
    "NVIDIA RTX PRO 4500 Blackwell": ("nvidia-rtx-pro-4500", 32),
    "NVIDIA RTX PRO 4000 Blackwell": ("nvidia-rtx-pro-4000", 24),
    "NVIDIA RTX PRO 2000 Blackwell": ("nvidia-rtx-pro-2000", 16),
    "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU": ("nvidia-rtx-pro-5000-laptop", 24),
    "NVIDIA RTX 2000 Ada Generation Laptop GPU": ("nvidia-rtx-2000-ada-laptop", 8),
    "NVIDIA RTX A1000 Laptop GPU": ("nvidia-rtx-a1000-laptop", None),
    "NVIDIA RTX A500 Laptop GPU": ("nvidia-rtx-a500-laptop", 4),
    "NVIDIA RTX 500 Ada Generation Laptop GPU": ("nvidia-rtx-500-ada-laptop", 4),
    "NVIDIA RTX 1000 Ada Generation Laptop GPU": ("nvidia-rtx-1000-ada-laptop", 6),
    "NVIDIA RTX A3000 12GB Laptop GPU": ("nvidia-rtx-a3000-laptop", None),
    "Quadro RTX 6000": ("nvidia-quadro-rtx-6000", 24),
    "Quadro RTX 8000": ("nvidia-quadro-rtx-8000", 48),
    "Quadro RTX 4000": ("nvidia-quadro-rtx-4000", 8),
    "Quadro RTX 5000": ("nvidia-quadro-rtx-5000", 16),
    "Quadro RTX 3000": ("nvidia-quadro-rtx-3000", 6),
    "Quadro RTX 5000 with Max-Q Design": ("nvidia-quadro-rtx-5000-max-q", 16),
    "Quadro T2000": ("nvidia-quadro-t2000", 4),
    "Quadro T1000": ("nvidia-quadro-t1000", 4),
    "NVIDIA T1000 8GB": ("nvidia-t1000", None),
    "NVIDIA T400 4GB": ("nvidia-t400", None),
    "NVIDIA T600 Laptop GPU": ("nvidia-t600-laptop", 4),
    "NVIDIA T1200 Laptop GPU": ("nvidia-t1200-laptop", 4),
    "Quadro P5000": ("nvidia-quadro-p5000", 16),
    "Quadro P4000": ("nvidia-quadro-p4000", 8),
    "Quadro P6000": ("nvidia-quadro-p6000", 24),
    "Quadro P2000": ("nvidia-quadro-p2000", 5),
    "Quadro GV100": ("nvidia-quadro-gv100", 32),
    "Quadro GP100": ("nvidia-quadro-gp100", 16),
    "NVIDIA GeForce GTX 1080 Ti": ("nvidia-gtx-1080-ti", 11),
    "NVIDIA GeForce GTX 1080": ("nvidia-gtx-1080", 8),
    "NVIDIA GeForce GTX 1070": ("nvidia-gtx-1070", 8),
    "NVIDIA GeForce GTX 1060 6GB": ("nvidia-gtx-1060", None),
    "NVIDIA GeForce GTX 1060 3GB": ("nvidia-gtx-1060", None),
    "NVIDIA GeForce GTX 1050 Ti": ("nvidia-gtx-1050-ti", 4),
    "NVIDIA GeForce GTX 1050": ("nvidia-gtx-1050", None),
    "NVIDIA TITAN X (Pascal)": ("nvidia-titan-x-pascal", 12),
    "NVIDIA TITAN Xp": ("nvidia-titan-xp", 12),
    "NVIDIA TITAN V": ("nvidia-titan-v", 12),
    "NVIDIA TITAN RTX": ("nvidia-titan-rtx", 24),
    "NVIDIA GeForce GTX 1650": ("nvidia-gtx-1650", 4),
    "NVIDIA GeForce GTX 1650 with Max-Q Design": ("nvidia-gtx-1650-max-q", 4),
    "NVIDIA GeForce GTX 1650 Ti": ("nvidia-gtx-1650-ti", 4),
    "NVIDIA GeForce GTX 1650 SUPER": ("nvidia-gtx-1650-super", 4),
    "NVIDIA GeForce GTX 1660": ("nvidia-gtx-1660", 6),
    "NVIDIA GeForce GTX 1660 Ti": ("nvidia-gtx-1660-ti", 6),
    "NVIDIA GeForce GTX 1660 Ti with Max-Q Design": ("nvidia-gtx-1660-ti-max-q", 6),
    "NVIDIA GeForce GTX 1660 SUPER": ("nvidia-gtx-1660-super", 6),
    "NVIDIA GeForce GTX 1630": ("nvidia-gtx-1630", 4),
    "NVIDIA GeForce MX450": ("nvidia-mx450", 2),
    "NVIDIA GeForce MX550": ("nvidia-mx550", 2),
    "NVIDIA GeForce MX570": ("nvidia-mx570", None),
    "NVIDIA GeForce RTX 2050": ("nvidia-rtx-2050", 4),
    "NVIDIA GeForce RTX 2060": ("nvidia-rtx-2060", None),
    "NVIDIA GeForce RTX 2060 12GB": ("nvidia-rtx-2060", None),
    "NVIDIA GeForce RTX 2060 SUPER": ("nvidia-rtx-2060-super", 8),
    "NVIDIA GeForce RTX 2060 with Max-Q Design": ("nvidia-rtx-2060-max-q", 6),
    "NVIDIA GeForce RTX 2070": ("nvidia-rtx-2070", 8),
    "NVIDIA GeForce RTX 2070 SUPER": ("nvidia-rtx-2070-super", 8),
    "NVIDIA GeForce RTX 2070 with Max-Q Design": ("nvidia-rtx-2070-max-q", 8),
    "NVIDIA GeForce RTX 2070 Super with Max-Q Design": ("nvidia-rtx-2070-super-max-q", 8),
    "NVIDIA GeForce RTX 2080": ("nvidia-rtx-2080", 8),
    "NVIDIA GeForce RTX 2080 SUPER": ("nvidia-rtx-2080-super", 8),
    "NVIDIA GeForce RTX 2080 Super with Max-Q Design": ("nvidia-rtx-2080-super-max-q", 8),
    "NVIDIA GeForce RTX 2080 Ti": ("nvidia-rtx-2080-ti", 11),
    "NVIDIA GeForce RTX 3050": ("nvidia-rtx-3050", None),
    "NVIDIA GeForce RTX 3050 OEM": ("nvidia-rtx-3050", None),
    "NVIDIA GeForce RTX 3050 6GB Laptop GPU": ("nvidia-rtx-3050-laptop", None),
    "NVIDIA GeForce RTX 3050 Laptop GPU": ("nvidia-rtx-3050-laptop", None),
    "NVIDIA GeForce RTX 3050 Ti Laptop GPU": ("nvidia-rtx-3050-ti-laptop", 4),
    "NVIDIA GeForce RTX 3060": ("nvidia-rtx-3060-12gb", None),
    "NVIDIA GeForce RTX 3060 Laptop GPU": ("nvidia-rtx-3060-laptop", 6),
    "NVIDIA GeForce RTX 3060 Ti": ("nvidia-rtx-3060-ti", 8),
    "NVIDIA GeForce RTX 3070": ("nvidia-rtx-3070", 8),
    "NVIDIA GeForce RTX 3070 Laptop GPU": ("nvidia-rtx-3070-laptop", 8),
    "NVIDIA GeForce RTX 3070 Ti": ("nvidia-rtx-3070-ti", 8),
    "NVIDIA GeForce RTX 3070 Ti Laptop GPU": ("nvidia-rtx-3070-ti-laptop", 8),
    "NVIDIA GeForce RTX 3080": ("nvidia-rtx-3080-10gb", None),
    "NVIDIA GeForce RTX 3080 Ti": ("nvidia-rtx-3080-ti", 12),
    "NVIDIA GeForce RTX 3080 Ti Laptop GPU": ("nvidia-rtx-3080-ti-laptop", 16),
    "NVIDIA GeForce RTX 3090": ("nvidia-rtx-3090", 24),
    "NVIDIA GeForce RTX 3090 Ti": ("nvidia-rtx-3090-ti", 24),
    "NVIDIA GeForce RTX 4050 Laptop GPU": ("nvidia-rtx-4050-laptop", 6),
    "NVIDIA GeForce RTX 4060": ("nvidia-rtx-4060", 8),
    "NVIDIA GeForce RTX 4060 Ti": ("nvidia-rtx-4060-ti-16gb", None),
    "NVIDIA GeForce RTX 4070": ("nvidia-rtx-4070", 12),
    "NVIDIA GeForce RTX 4070 SUPER": ("nvidia-rtx-4070-super", 12),
    "NVIDIA GeForce RTX 4070 Ti": ("nvidia-rtx-4070-ti", 12),
    "NVIDIA GeForce RTX 4070 Ti SUPER": ("nvidia-rtx-4070-ti-super", 16),
    "NVIDIA GeForce RTX 4070 Laptop GPU": ("nvidia-rtx-4070-laptop", 8),
    "NVIDIA GeForce RTX 4080": ("nvidia-rtx-4080", 16),
    "NVIDIA GeForce RTX 4080 SUPER": ("nvidia-rtx-4080-super", 16),
    "NVIDIA GeForce RTX 4080 Laptop GPU": ("nvidia-rtx-4080-laptop", 12),
    "NVIDIA GeForce RTX 4090": ("nvidia-rtx-4090", 24),
    "NVIDIA GeForce RTX 4090 D": ("nvidia-rtx-4090-d", 24),
    "NVIDIA GeForce RTX 5050": ("nvidia-rtx-5050", 8),
    "NVIDIA GeForce RTX 5060": ("nvidia-rtx-5060", 8),
    "NVIDIA GeForce RTX 5060 Ti": ("nvidia-rtx-5060-ti-16gb", None),
    "NVIDIA GeForce RTX 5070": ("nvidia-rtx-5070", 12),
    "NVIDIA GeForce RTX 5070 Ti": ("nvidia-rtx-5070-ti", 16),
    "NVIDIA GeForce RTX 5070 Ti Laptop GPU": ("nvidia-rtx-5070-ti-laptop", 12),
    "NVIDIA GeForce RTX 5080": ("nvidia-rtx-5080", 16),
    "NVIDIA GeForce RTX 5080 Laptop GPU": ("nvidia-rtx-5080-laptop", 16),
    "NVIDIA GeForce RTX 5090": ("nvidia-rtx-5090", 32),
    "NVIDIA GeForce RTX 5090 D": ("nvidia-rtx-5090-d", 32),
    "NVIDIA GeForce RTX 5090 Laptop GPU": ("nvidia-rtx-5090-laptop", 24),
    "NVIDIA A800-SXM4-80GB": ("nvidia-a800-sxm4-80gb", 80),
    "NVIDIA A800 80GB PCIe": ("nvidia-a800-pcie-80gb", 80),
    "NVIDIA A800 40GB Active": ("nvidia-a800-40gb-active", 40),
    "NVIDIA H800": ("nvidia-h800-sxm5", 80),
    "NVIDIA H800 PCIe": ("nvidia-h800-pcie", 80),
    "NVIDIA L20": ("nvidia-l20", 48),
    "NVIDIA Jetson AGX Orin": ("nvidia-jetson-agx-orin-64gb", None),
    "Orin (nvgpu)": ("nvidia-jetson-agx-orin-64gb", None),
    "NVIDIA Thor": ("nvidia-jetson-thor-t5000", 128),
    "AMD Instinct MI300X": ("amd-mi300x", 192),
    "AMD Instinct MI300X OAM": ("amd-mi300x", 192),
    "AMD Instinct MI325X": ("amd-mi325x", 256),
    "AMD Instinct MI250X": ("amd-mi250x", 64),
    "AMD Instinct MI210": ("amd-mi210", 64),
    "AMD Instinct MI100": ("amd-mi100", 32),
    "AMD Instinct MI60": ("amd-mi60", 32),
    "AMD Instinct MI350X": ("amd-mi350x", 288),
    "AMD Instinct MI355X": ("amd-mi355x", 288),
    "AMD Instinct MI300A": ("amd-mi300a", 128),
    "AMD Radeon RX 7900 XTX": ("amd-rx-7900-xtx", 24),
    "Radeon RX 7900 XTX": ("amd-rx-7900-xtx", 24),
    "Radeon RX 7900 XT": ("amd-rx-7900-xt", 20),
    "Radeon RX 7900 GRE": ("amd-rx-7900-gre", 16),
    "Radeon RX 7800 XT": ("amd-rx-7800-xt", 16),
    "Radeon RX 6800 XT": ("amd-rx-6800-xt", 16),
    "Radeon RX 6900 XT": ("amd-rx-6900-xt", 16),
    "Radeon RX 6700 XT": ("amd-rx-6700-xt", 12),
    "AMD Radeon RX 5700 XT": ("amd-rx-5700-xt", 8),
    "AMD Radeon RX 6650 XT": ("amd-rx-6650-xt", 8),
    "AMD Radeon RX 6500 XT": ("amd-rx-6500-xt", 4),
    "AMD Radeon RX 6700": ("amd-rx-6700", 10),
    "AMD Radeon RX 6400": ("amd-rx-6400", 4),
    "AMD Radeon RX 9070 XT": ("amd-rx-9070-xt", 16),
    "AMD Radeon RX 9060 XT": ("amd-rx-9060-xt", None),
    "AMD Radeon RX 7700S": ("amd-rx-7700s", 8),
    "AMD Radeon RX 7900M": ("amd-rx-7900m", 16),
    "AMD Radeon RX 6800M": ("amd-rx-6800m", 12),
    "AMD Radeon 8060S Graphics": ("amd-radeon-8060s", 32),
    "AMD Ryzen AI Max+ 395": ("amd-radeon-8060s", 32),
    "AMD Radeon PRO W7900": ("amd-radeon-pro-w7900", 48),
    "AMD Radeon PRO W6800": ("amd-radeon-pro-w6800", 32),
    "AMD Radeon PRO W7500": ("amd-radeon-pro-w7500", 8),
    "AMD Radeon Pro W6600": ("amd-radeon-pro-w6600", 8),
    "AMD Radeon PRO V620": ("amd-radeon-pro-v620", 32),
    "AMD Radeon AI PRO R9700": ("amd-radeon-ai-pro-r9700", 32),
    "Radeon VII": ("amd-radeon-vii", 16),
    "Radeon Pro VII": ("amd-radeon-pro-vii", 16),
    "Apple M1": ("apple-m1", 8),
    "Apple M1 Pro": ("apple-m1-pro", 16),
    "Apple M1 Max": ("apple-m1-max", 32),
    "Apple M1 Ultra": ("apple-m1-ultra", 64),
    "Apple M2": ("apple-m2", 8),
    "Apple M2 Max": ("apple-m2-max", 32),
    "Apple M2 Ultra": ("apple-m2-ultra", 64),
    "Apple M3": ("apple-m3", 8),
    "Apple M3 Pro": ("apple-m3-pro", 18),
    "Apple M3 Max": ("apple-m3-max", 36),
    "Apple M3 Ultra": ("apple-m3-ultra", 96),
    "Apple M4": ("apple-m4", 16),
    "Apple M4 Pro": ("apple-m4-pro", 24),
    "Apple M4 Max": ("apple-m4-max", 36),
    "Apple M5": ("apple-m5", 16),
    "AMD INSTINCT MI250 (MCM) OAM AC MBA": ("amd-mi250", 64),
    "01:00.0 VGA compatible controller: NVIDIA Corporation AD107M [GeForce RTX 4060 Max-Q / Mobile]"
    " (rev a1)": ("nvidia-rtx-4060-laptop", 8),
    "NVIDIA Corporation GA102 [GeForce RTX 3090] (rev a1)": ("nvidia-rtx-3090", 24),
    "NVIDIA Corporation TU104GL [Tesla T4]": ("nvidia-t4", 16),
    "Chipset Model: Apple M3 Max": ("apple-m3-max", 36),
    "NVIDIA RTX A2000 8GB Laptop GPU": ("nvidia-rtx-a2000-laptop", None),
}


@pytest.mark.parametrize("printed", PRINTED)
def test_a_name_that_a_driver_prints_is_found(printed):
    """The very name leads to the GPU and its memory; a name of several sizes is asked about."""
    gpu_id, sold_gb = PRINTED[printed]
    gpus, _ = gpus_of(printed)
    assert [gpu.spec.id for gpu in gpus] == [gpu_id]
    meant = meant_gpu(printed)
    assert meant.near == ()
    if sold_gb is not None and not meant.shared:
        assert gpus[0].sold_gib == (sold_gb,)
        hardware, _ = stated_hardware(meant.found.name, from_flag=True)
        assert hardware.gpus[0].spec.id == gpu_id


@pytest.mark.parametrize(
    ("typed", "name", "memory_gib", "count"),
    [
        ("2x 4090", "RTX 4090", None, 2),
        ("RTX 4060 laptop 8gb", "RTX 4060 Laptop", None, None),
        ("3080 laptop 16gb", "RTX 3080 Laptop", 16, None),
        ("A100 80", "A100 SXM4 80GB", None, None),
        ("MacBook Pro M3 Max 64 GB", "Apple M3 Max", 64, None),
        ("M3 36GB", "Apple M3 Pro", 36, None),
        ("MacBook 36GB", "MacBook 36GB", 36, None),
        ("GRID T4-16Q", "GRID T4-16Q", 16, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5, None),
        ("Mystery 9000 24 GB", "Mystery 9000 24 GB", 24, None),
    ],
)
def test_what_needs_no_question(typed, name, memory_gib, count):
    """A count, a size in the name, a share of a GPU, and a name nobody knows that says its size."""
    meant = meant_gpu(typed)
    assert (meant.found.name, meant.found.memory_gib, meant.count) == (name, memory_gib, count)
    hardware, _ = stated_hardware(name, count, memory_gib, from_flag=True)
    assert len(hardware.gpus) == (count or 1)


@pytest.mark.parametrize(
    ("typed", "labels", "note"),
    [
        # Of several the smallest comes first, which is what "I don't know" takes.
        ("NVIDIA GeForce RTX 3080 Laptop GPU",
         ["RTX 3080 Laptop with 8 GB", "RTX 3080 Laptop with 16 GB"], ""),
        ("M2 Ultra", [f"Apple M2 Ultra with {size} GB" for size in (64, 128, 192)], ""),
        ("AMD Instinct MI250X / MI250", ["MI250X", "MI250"], ""),
        ("Navi 31 [Radeon RX 7900 XT/7900 XTX]", ["RX 7900 XT", "RX 7900 XTX"], ""),
        ("M1", [f"Apple M1{size} GB" for size in
                (" with 8", " with 16", " Pro with 16", " Pro with 32", " Max with 32",
                 " Max with 64")], ""),
        ("MacBook Pro", [], "which About This Mac shows"),
        # What nobody knows is no error, and nothing is guessed.
        *[(typed, [], "") for typed in
          ("XYZ", "RTX", "NVIDIA Graphics Device", "AMD Radeon Graphics")],
        # Named as it is, so that the answer can say what to do instead.
        *[(typed, [], "cannot train on") for typed in
          ("Tesla K80", "Intel Arc A770", "Intel(R) UHD Graphics 620", "Quadro K2200")],
    ],
)  # fmt: skip
def test_what_is_left_to_a_question(typed, labels, note):
    """What several GPUs are called is a list by memory; what cannot be trained on says why."""
    meant = meant_gpu(typed)
    assert ([variant.label for variant in meant.variants], note in meant.note) == (labels, True)
    assert labels or note or meant.found is None


EVERY = list(load_catalogue())
NOT_ROUND = {
    2: (5, 11, 141, 153, 273, 307, 347, 645, 651, 717, 819, 897, 933, 981, 1555, 1935, 2039),
    5: (18, 23, 31, 53, 72, 107, 132, 176, 263, 304),
}
# An architecture has one generation of PCIe, and of NVLink if any of its cards has one.
PCIE = dict.fromkeys(["ampere", "ada", "cdna1", "cdna2", "gcn5", "rdna1", "rdna2", "rdna3"], 4)
PCIE |= {"pascal": 3, "volta": 3, "turing": 3}  # others: 5
NVLINK = {"pascal": 1, "volta": 2, "turing": 2, "ampere": 3, "hopper": 4}  # others: 5
OTHER_PCIE = ("nvidia-rtx-2050", "nvidia-mx450", "nvidia-mx550", "amd-radeon-vii")


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_gpu_is_found_by_each_of_its_names(gpu_id):
    """In any case, as flag or probed, with its memory; a laptop's is another, of other speed."""
    gpu = catalogue_gpus()[gpu_id]
    for name in (gpu_id, gpu.name, *gpu.names):
        for written in (name, name.upper(), name.removeprefix("NVIDIA ").removeprefix("AMD ")):
            match = find_gpu(written)
            assert match.spec.id == gpu_id, written
            assert match.memory_bytes, written
            assert not match.not_sold, written
        assert stated_hardware(name, from_flag=True)[0].device_memory_bytes
    for name in gpu.names:
        for memory_bytes in (None, gpu.spec.memory_bytes):
            assert match_probed(name, memory_bytes) is gpu.spec, name
    short = gpu.name.removesuffix(" Laptop")
    if "-laptop" in gpu_id and short not in gpu.names:  # some desktop card has this number
        spec = find_gpu(short).spec
        assert spec is None or "Laptop" not in spec.name


def test_no_two_gpus_claim_one_name():
    """A name that two entries hold would find the first one of them only."""
    claims = Counter()
    for gpu in catalogue_gpus().values():
        names = (name.lower() for name in (gpu.name, *gpu.names))
        claims.update({name.removeprefix("nvidia ").removeprefix("amd ") for name in names})
    assert [name for name, count in claims.items() if count > 1] == []


@pytest.mark.parametrize("gpu_id", EVERY)
def test_every_entry_is_sane(gpu_id):
    """Sizes, rates and speeds lie where such GPUs lie, and rest on named sources or links."""
    gpu, entry = catalogue_gpus()[gpu_id], gpu_entry(gpu_id)
    memory, spec, rates = entry["memory"], gpu.spec, entry["tflops_dense"]
    assert gpu.sold_gib
    assert all(2 <= size <= 600 for size in gpu.sold_gib)
    assert gpu.usual_gib is None or gpu.usual_gib in gpu.sold_gib
    assert ("usual_gb" in memory) == ("usual_because" in memory)
    if memory.get("nvml_mib"):
        assert 0.9 < spec.memory_bytes / GIB / gpu.sold_gib[0] <= 1.03
    assert spec.compute_capability is None or (6, 0) <= spec.compute_capability <= (12, 9)
    assert (spec.vendor == "nvidia") == (spec.compute_capability is not None)
    assert 30e9 <= (spec.bandwidth_bytes_per_s or 30e9) <= 10e12
    assert all(0.5 <= rate <= 6000 for rate in rates.values())
    assert rates.get("bf16", 0) in (0, rates.get("fp16"))
    assert entry["supports"]["bf16"] is not False or "bf16" not in rates
    # Makers round: sizes and bandwidths to even numbers, watts to fives, but for a few.
    numbers = {2: (memory.get("sold_gb"), entry.get("bandwidth_gb_s")), 5: (entry.get("tdp_w"),)}
    whole = [(step, one) for step, ones in numbers.items() for one in ones if one and one % 1 == 0]
    assert [one for step, one in whole if one % step and one not in NOT_ROUND[step]] == []
    assert 5 <= (entry.get("tdp_w") or 5) <= 1500
    halved = entry.get("fp32_accumulate", {}).get(
        "fp16_accumulate_tflops", rates.get("fp16", 0) * 2
    )
    assert halved / 2 == pytest.approx(rates.get("fp16", 0), abs=0.06)
    if {"fp16", "fp32"} <= rates.keys() and entry["segment"] != "datacenter":
        doubled = math.log2(rates["fp16"] / rates["fp32"])
        assert doubled == pytest.approx(round(doubled), abs=0.04)
    link, family = entry["interconnect"], entry["architecture"]
    assert link.get("pcie_generation") in (None, PCIE.get(family, 5)) or gpu_id in OTHER_PCIE
    assert link.get("nvlink_generation") in (None, NVLINK.get(family, 5))
    assert entry["sources"]
    assert re.fullmatch(LINK, entry.get("spec_url", "https://www.techpowerup.com"))
    assert "tpu" not in entry["sources"] or "spec_url" in entry


@pytest.mark.parametrize(
    ("typed", "gpu_id", "gib"),
    [
        ("4090 laptop", "nvidia-rtx-4090-laptop", 16),
        ("rtx4060laptop", "nvidia-rtx-4060-laptop", 8),
        ("RTX 4060 mobile", "nvidia-rtx-4060-laptop", 8),
        ("4060m", "nvidia-rtx-4060-laptop", 8),
        ("RTX 3070 Max-Q", "nvidia-rtx-3070-laptop", 8),
        ("RTX 3080 Laptop 16GB", "nvidia-rtx-3080-laptop", 16),
        ("3060ti", "nvidia-rtx-3060-ti", 8),
        ("4070tisuper", "nvidia-rtx-4070-ti-super", 16),
        ("rtx4070 super", "nvidia-rtx-4070-super", 12),
        ("4060 ti 16", "nvidia-rtx-4060-ti-16gb", 16),
        ("A100 80", "nvidia-a100-sxm4-80gb", 80),
        ("V100 32", "nvidia-v100-sxm2-32gb", 32),
        ("m3 max", "apple-m3-max", 36),
        ("M3Max 64", "apple-m3-max", 64),
        ("MacBook Pro M3", "apple-m3", 8),
        ("MacBook Pro with M3 Max 128GB", "apple-m3-max", 128),
        ("Mac Studio M2 Ultra 192 GB", "apple-m2-ultra", 192),
        ("rx7900xtx", "amd-rx-7900-xtx", 24),
        ("9070 xt", "amd-rx-9070-xt", 16),
        ("W7900", "amd-radeon-pro-w7900", 48),
        ("Ryzen AI Max+ 395 128GB", "amd-radeon-8060s", 128),
        ("RTX 8000", "nvidia-quadro-rtx-8000", 48),
        ("tesla p100 16gb", "nvidia-p100-pcie", 16),
        ("1660 super", "nvidia-gtx-1660-super", 6),
        ("RTX 5090D", "nvidia-rtx-5090-d", 32),
        ("jetson thor", "nvidia-jetson-thor-t5000", 128),
        ("GH200 480GB", "nvidia-gh200-96gb", 96),
        ("H100 80GB HBM3", "nvidia-h100-sxm5-80gb", 79.6),
    ],
)
def test_sloppy_writing_is_understood(typed, gpu_id, gib):
    """Glued, shortened, with a bare size, or with the name of the computer."""
    match = find_gpu(typed)
    assert (match.spec.id, match.memory_bytes / GIB) == (gpu_id, pytest.approx(gib, abs=0.1))


@pytest.mark.parametrize("name", ["RTX 6060 Laptop", "Titan Z9", "RTX 4091"])
def test_an_unknown_name_is_not_sized_by_guess(name):
    """The next card of that number may have a third of the size."""
    _, warnings = stated_hardware(name, from_flag=False)
    assert not re.search(r"\d+ ?(GB|GiB)", warnings[-1].replace(name, "")), warnings
