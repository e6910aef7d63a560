"""The catalogue of hardware: whole, sourced, and found by every name that drivers and people use."""

import math
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from timeit import timeit
from unittest.mock import ANY

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB, MIB
from advisor.ground.yaml_files import LINK, read_yaml
from advisor.probe import cpu_hardware, gpu_files, stated_hardware
from advisor.probe.catalogue import (
    cheapest_cards,
    find_gpu,
    free_gpus,
    gpu_entry,
    gpus_of,
    interconnect_of,
    load_catalogue,
    match_probed,
)
from advisor.probe.gpu_files import catalogue_gpus, not_supported
from advisor.probe.meant import meant_gpu


def test_the_catalogue_is_whole():
    """Some two hundred GPUs: bf16 begins with capability 8.0, and no measurement exceeds a peak."""
    cards = load_catalogue()
    assert len(cards) >= 200
    assert {spec.vendor for spec in cards.values()} == {"nvidia", "amd", "apple"}
    assert all(gpu_id.startswith(f"{spec.vendor}-") for gpu_id, spec in cards.items())
    files = [*(rules_dir() / "hardware").glob("*.yaml"), *(rules_dir() / "prices").glob("*.yaml")]
    assert len(files) >= 10
    assert {read_yaml(path).data["version"] for path in files} == {1}
    for spec in cards.values():
        assert spec.compute_capability is None or spec.bf16 is (spec.compute_capability >= (8, 0))
    measured = [spec for spec in cards.values() if spec.achieved_flops]
    assert len(measured) >= 12
    assert all(spec.achieved_flops < spec.bf16_flops for spec in measured)


def test_every_figure_names_its_source():
    """Reported memory and measured matmuls have a source, and every rate a basis."""
    every = {gpu_id: gpu_entry(gpu_id) for gpu_id in load_catalogue()}
    memory = [entry["memory"] for entry in every.values()]
    reported = [one for one in memory if one.get("nvml_mib") or one.get("probe_mib")]
    assert len(reported) > 40
    assert [one for one in reported if "source" not in one] == []
    for gpu_id, entry in every.items():
        based = [name for names in entry["tflops_basis"].values() for name in names]
        assert sorted(based) == sorted(entry["tflops_dense"]), gpu_id
        assert set(entry["tflops_basis"]) <= {"published", "secondary", "derived", "unlinked"}


FACTS = {
    "memory": lambda spec: spec.memory_bytes and spec.memory_bytes / MIB,
    "tflops": lambda spec: spec.bf16_flops / 1e12,
    "price": lambda spec: (spec.price_usd_per_h, spec.price_note),
    "link": interconnect_of,
}


@pytest.mark.parametrize(
    ("fact", "gpu_id", "expected", "why"),
    [
        # Planning memory in MiB is what the driver shows, of one device.
        ("memory", "nvidia-t4", 15360, "sold as 16 GB"),
        ("memory", "nvidia-rtx-4060", 8 * 1024, "its driver was not observed: as it is sold"),
        ("memory", "apple-m4-max", None, "depends on the computer"),
        ("memory", "amd-mi250x", 64 * 1024, "two devices: a run sees one of them"),
        # Rates are dense with fp32 accumulate: the traps of published peak tables.
        ("tflops", "nvidia-a10g", 70,
         "a measured matmul of 66.6 rules out the A10's 125 that popular tables print"),
        ("tflops", "nvidia-a10", 125, "the A10 itself"),
        ("tflops", "nvidia-h100-sxm5-80gb", 989,
         "dense, not the 1979 with sparsity, nor the A100's 312"),
        ("tflops", "nvidia-h100-nvl-94gb", 835, "dense, not doubled"),
        ("tflops", "nvidia-h200-sxm", 989, "dense, not doubled"),
        ("tflops", "nvidia-rtx-4090", 165.2,
         "fp32 accumulate at half rate, not the shader rate nor 330.3 with fp16 accumulate"),
        ("tflops", "nvidia-rtx-3090", 71.2, "fp32 accumulate at half rate"),
        ("tflops", "nvidia-l4", 121, "the maintained peak tables"),
        ("tflops", "nvidia-l40s", 362, "the maintained peak tables"),
        ("tflops", "nvidia-l40", 181, "half of the L40S"),
        ("tflops", "nvidia-t4", 65, "fp16, it has no bf16"),
        ("tflops", "nvidia-a100-sxm4-80gb", 312, "dense"),
        ("tflops", "amd-mi250x", 191.5, "of one of its two devices"),
        # The lowest price outside marketplaces counts, else the lowest, with provider and date.
        ("price", "nvidia-rtx-4090", (0.74, "runpod, 2026-09-25"),
         "openrelay (0.29) is a marketplace, runpod_community (0.34) is listed apart"),
        ("price", "nvidia-rtx-3090", (0.18, "openrelay marketplace, 2026-09-20"),
         "nobody else lists it"),
        ("price", "nvidia-a100-pcie-80gb", (1.79, "runpod, 2026-11-09"), ""),
        ("price", "nvidia-a10g", (1.006, "aws, 2026-09-06"), ""),
        ("price", "nvidia-rtx-5090", (0.99, "runpod, 2026-08-27"),
         "dated apart from others of its provider"),
        ("price", "nvidia-t4", (0.51,
         "gcp, 2026-09-06; free at Kaggle (2 of them, 30 h a week) and Google Colab"), ""),
        ("price", "nvidia-gb300", (None, ""), ""),
        # How several GPUs reach each other, with the speed where it has a source.
        ("link", "nvidia-h100-sxm5-80gb", "NVLink 4, 900 GB/s both ways", ""),
        ("link", "nvidia-rtx-3090", "NVLink 3 bridge between two GPUs", ""),
        ("link", "nvidia-rtx-4090", "PCIe 4 x16", ""),
        ("link", "amd-mi300x", "xGMI, 896 GB/s both ways", ""),
        ("link", "nvidia-gb10", "memory shared with the CPU", ""),
    ],
)  # fmt: skip
def test_each_number_is_this_one_for_a_reason(fact, gpu_id, expected, why):
    """Memory, rates, prices and connections of the catalogue."""
    found = FACTS[fact](load_catalogue()[gpu_id])
    assert found == (pytest.approx(expected) if fact == "tflops" else expected), why


@pytest.mark.parametrize(
    ("name", "memory_mib", "expected"),
    [
        ("NVIDIA GeForce RTX 3090", 24576, "nvidia-rtx-3090"),
        ("GeForce RTX 3090", 24268, "nvidia-rtx-3090"),  # an older driver
        ("A100-SXM4-80GB", 81251, "nvidia-a100-sxm4-80gb"),
        ("NVIDIA Tesla T4", 15360, "nvidia-t4"),
        ("NVIDIA RTX A6000", 46068, "nvidia-rtx-a6000"),  # with ECC
        # a modified board: its live memory counts
        ("NVIDIA GeForce RTX 4090", 49140, "nvidia-rtx-4090"),
        ("NVIDIA A10G", 22723, "nvidia-a10g"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "nvidia-rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, None),  # the same name with 8 GB is another card
        ("NVIDIA GeForce RTX 3080", 12288, None),
        ("NVIDIA GeForce RTX 3060", 12288, "nvidia-rtx-3060-12gb"),
        ("NVIDIA GB10", None, "nvidia-gb10"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "nvidia-rtx-4090-laptop"),
        ("NVIDIA A10", 23028, "nvidia-a10"),
        ("nvidia a10", 23028, None),  # exact
    ],
)  # fmt: skip
def test_a_probed_name_matches_exactly(name, memory_mib, expected):
    """With or without NVIDIA in front; memory decides an ambiguous one, a slice is none."""
    spec = match_probed(name, None if memory_mib is None else memory_mib * MIB)
    assert (spec and spec.id) == expected


TYPED = [  # name and stated memory; the GPU and GiB that are planned with, and what is said
    ("RTX 4090", None, "nvidia-rtx-4090", 23.99, None),
    ("rtx4090", None, "nvidia-rtx-4090", 23.99, None),
    ("4090", None, "nvidia-rtx-4090", 23.99, None),
    ("NVIDIA GeForce RTX 4090", None, "nvidia-rtx-4090", 23.99, None),
    ("nvidia-rtx-4090", None, "nvidia-rtx-4090", 23.99, None),
    ("RTX 3090", 24, "nvidia-rtx-3090", 24, None),
    ("H100 SXM", None, "nvidia-h100-sxm5-80gb", 79.65, None),
    # the very name its driver reports; the other is "H200 NVL"
    ("H200", None, "nvidia-h200-sxm", 140.4, None),
    ("h100-pcie", None, "nvidia-h100-pcie-80gb", 79.65, None),
    ("NVIDIA H100 NVL", None, "nvidia-h100-nvl-94gb", 93.58, None),
    ("NVIDIA A100-SXM4-80GB", None, "nvidia-a100-sxm4-80gb", 80, None),
    ("NVIDIA A40-48GB", None, "nvidia-a40", 44.99, None),
    ("T4", None, "nvidia-t4", 15, None),
    ("T4", 16, "nvidia-t4", 15, None),
    ("T4", 15, "nvidia-t4", 15, None),
    ("GTX 1080Ti", None, "nvidia-gtx-1080-ti", 11, None),
    ("4060ti 16gb", None, "nvidia-rtx-4060-ti-16gb", 16, None),
    ("RTX A6000", None, "nvidia-rtx-a6000", 47.99, None),
    ("RTX 6000 Ada", None, "nvidia-rtx-6000-ada", 47.99, None),
    ("RTX PRO 6000 Max-Q", None, "nvidia-rtx-pro-6000-maxq", 96, None),
    ("A10G", None, "nvidia-a10g", 22.49, None),
    ("A10", None, "nvidia-a10", 22.49, None),
    ("L40", None, "nvidia-l40", 44.99, None),
    ("MI300X", None, "amd-mi300x", 191.98, None),
    ("M4 Max", 48, "apple-m4-max", 48, None),
    ("DGX Spark", None, "nvidia-gb10", 125.25, None),
    ("nvidia-rtx-3060-12gb", None, "nvidia-rtx-3060-12gb", 12, None),
    ("RTX 3060", 12, "nvidia-rtx-3060-12gb", 12, None),
    ("RTX 4090", 48, "nvidia-rtx-4090", 48, None),  # a size that workshops make of it
    # A choice between variants is said.
    ("A100", None, "nvidia-a100-sxm4-40gb", 40, "A100 PCIe 80GB: taken as A100 SXM4 40GB"),
    ("A100", 80, "nvidia-a100-sxm4-80gb", 80, "may be A100 SXM4 80GB, A100 PCIe 80GB: taken as"),
    ("A100 80GB", None, "nvidia-a100-sxm4-80gb", 80,
     "may be A100 SXM4 80GB, A100 PCIe 80GB: taken as"),
    ("A100 40GB", 80, "nvidia-a100-sxm4-80gb", 80, "the stated memory counts"),
    ("H100", None, "nvidia-h100-sxm5-80gb", 79.65, "taken as H100 SXM5 80GB; add the memory"),
    ("RTX PRO 6000", None, "nvidia-rtx-pro-6000-server", 95.59,
     "write the name out to choose another"),
    ("RTX 4060 Ti", None, "nvidia-rtx-4060-ti-16gb", 8, "taken as RTX 4060 Ti with 8 GB"),
    ("A100", 20, "nvidia-a100-sxm4-40gb", 20, "none has 20 GiB"),
    ("RTX 4090", 40, "nvidia-rtx-4090", 40, "the memory is taken as stated"),
    ("RTX 3060", None, "nvidia-rtx-3060-12gb", 12, "taken as RTX 3060 with 12 GB"),
    ("P100", None, "nvidia-p100-pcie", 16, "taken as P100 PCIe with 16 GB"),
    ("M3 Max", None, "apple-m3-max", 36, "Apple M3 Max 96GB, Apple M3 Max 128GB: taken as"),
    ("GH200", None, "nvidia-gh200-96gb", 96, "may be GH200 96GB, GH200 144GB"),
    ("RTX 6000", None, "nvidia-rtx-6000-ada", 47.99, "read as RTX 6000 Ada"),
]  # fmt: skip
UNKNOWN = [  # name and stated memory, and the GiB that are planned with
    # A name with a word more, or one less that tells them apart, is unknown and has no memory.
    *[(name, None, None) for name in (
        "A8000", "RTX 5075", "RTX 4091 Laptop GPU", "Quadro RTX 7000", "M9", "GH300", "laptop",
        "Super", "RTX 4090 Super", "NVIDIA", "GPU", "", "4O90")],
    # A description with a size is no GPU of the catalogue, and its memory is known.
    ("8 GB class", 8, 8),
    ("48 GB card", 48, 48),
    ("80 GB class", None, 80),
    ("A8000", 80, 80),
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, 10),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "memory_gib", "expected", "plans_gib", "warns"),
    [*TYPED, *((name, given, None, plans, ANY) for name, given, plans in UNKNOWN)],
)
def test_a_typed_name_finds_its_card(name, memory_gib, expected, plans_gib, warns):
    """Ids, driver names and plain words find a GPU, without a size the smaller, which is said."""
    match = find_gpu(name, memory_gib=memory_gib)
    assert (match.spec and match.spec.id) == expected
    found_gib = match.memory_bytes and match.memory_bytes / GIB
    assert found_gib == (plans_gib and pytest.approx(plans_gib, abs=0.02 if expected else 0))
    if expected:
        assert (match.warnings == ()) == (warns is None)
        assert (warns or "") in "\n".join(match.warnings)


@pytest.mark.parametrize(
    ("name", "plain", "lenient", "near"),
    [
        # Published labels, by the part that is known, with a warning, and only where asked for.
        ("24 GB card (RTX 4090 in the paper)", None, "nvidia-rtx-4090", None),
        ("NVIDIA RTX 4090 (or A100 capped to it)", None, "nvidia-rtx-4090", None),
        ("NVIDIA B200/GB200 184 GiB", None, "nvidia-b200", None),
        # A slip and a missing sibling lead to what exists; one word tells a laptop's GPU.
        ("RTX 4O90", None, None, "RTX 4090"),
        ("RTX 3090 Super", None, None, "RTX 3090"),
        ("RTX 4090 Laptop GPU", "nvidia-rtx-4090-laptop", "nvidia-rtx-4090-laptop", None),
        ("RTX 3090 Laptop GPU", None, None, None),  # there is none
    ],
)
def test_a_description_is_read_by_its_known_part_on_request(name, plain, lenient, near):
    """Else near names are offered, and one word keeps GPUs apart."""
    match, asked = find_gpu(name), find_gpu(name, lenient=True)
    assert [one.spec and one.spec.id for one in (match, asked)] == [plain, lenient]
    assert near is None or match.near[0] == near
    told = any("read by the part that is known" in warning for warning in asked.warnings)
    assert told == (plain != lenient)


def test_the_cheapest_card_that_fits_comes_first():
    """Those with enough memory that somebody rents out, by price; free ones are named."""
    cards = cheapest_cards(60 * GIB)
    prices = [spec.price_usd_per_h for spec in cards]
    assert prices == sorted(price or 0 for price in prices)
    assert cards[0].id == "nvidia-a100-pcie-80gb"  # 1.79 at runpod
    assert all((spec.memory_bytes or 0) >= 60 * GIB for spec in cards)
    assert cheapest_cards(10_000 * GIB) == ()
    assert free_gpus() == ("Kaggle (2 x T4 or P100 PCIe, 30 h a week) and Google Colab (T4)")


@pytest.fixture
def own_rules(tmp_path, monkeypatch):
    """A copy of the hardware and price files that a test may change."""
    read = (gpu_files.catalogue_gpus, load_catalogue)
    for name in ("hardware", "prices"):
        shutil.copytree(rules_dir() / name, tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_files, "rules_dir", lambda: tmp_path)
        for one in read:
            one.cache_clear()
        yield tmp_path
    for one in read:
        one.cache_clear()


OURS = """\
version: 1
compiled: "2026-12-01"
providers:
  our_cluster: {kind: cloud, date: "2026-12-01", source: "our own bill"}
on_demand_usd_per_h:
  nvidia-rtx-4090: {our_cluster: 0.05}
"""
WRONG = """\
version: 1
on_demand_usd_per_h:
  nvidia-rtx-4091: {runpod: 1}
  nvidia-rtx-4090: {nobody: 1, runpod: free}
"""


GEFORCE, NUMBER = "hardware/nvidia-geforce.yaml", '"obs:43555651248"'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [  # a file of one's own, its text or what is changed in it, and what is said
        # A citation is a key of sources.yaml or a link; a number of somebody's index is neither.
        (GEFORCE, ("sources: [unlinked, tpu]", f"sources: [{NUMBER}, tpu]"),
         ["`sources[0]` is 'obs:43555651248'"]),
        (GEFORCE, ("source: vast-v8b", f"source: {NUMBER}"), ["`source` is 'obs:43555651248'"]),
        # Unknown GPU, unknown provider and a price that is none come together.
        ("prices/ours.yaml", WRONG,
         ["rules/prices/ours.yaml:3:", "did you mean 'nvidia-rtx-4090'?", "unknown provider 'nobody'",
          "`runpod` is 'free'"]),
        ("hardware/ours.yaml", "version: 1\nvendor: nvidia\ngpus:\n  nvidia-new:\n    name: New\n",
         ["rules/hardware/ours.yaml:4:3: `memory` is missing in"]),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_at_its_place(own_rules, name, text, said):
    """With all of its faults, each with what is allowed."""
    file = own_rules / name
    file.write_text(text if isinstance(text, str) else file.read_text().replace(*text, 1))
    with pytest.raises(InputError) as caught:
        load_catalogue()
    assert [part for part in said if part not in str(caught.value)] == []


def test_a_file_of_ones_own_wins(own_rules):
    """A price read after the shipped one; a source may be a link."""
    (own_rules / "prices" / "ours.yaml").write_text(OURS)
    file, link = own_rules / GEFORCE, 'source: "https://example.org/list.csv"'
    file.write_text(file.read_text().replace("source: vast-v8b", link, 1))
    spec = load_catalogue()["nvidia-rtx-4090"]
    assert (spec.price_usd_per_h, spec.price_note) == (0.05, "our_cluster, 2026-12-01")


def test_a_lookup_is_cheap_and_imports_nothing_heavy():
    """No package that makes a start slow is loaded, and the catalogue is read once."""
    code = (
        "import sys, time; from advisor.probe import find_gpu, probe; start = time.process_time();"
        " find_gpu('A100 80GB'); lookup = time.process_time() - start; probe();"
        " print(lookup, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lookup, *loaded = done.stdout.split()
    heavy = {"torch", "transformers", "numpy", "pydantic", "rich", "questionary", "subprocess"}
    assert not (heavy | {"importlib.metadata"}) & set(loaded)
    assert float(lookup) < 0.25  # some 0.02 s on an idle machine
    find_gpu("A100")
    assert timeit(lambda: find_gpu("RTX 4090"), timer=time.process_time, number=20) / 20 < 0.02


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
    """`none` plans with this machine's memory and cores, and drops only what concerned GPUs."""
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
         "say its memory with --gpu-memory, in GiB"),
    ],
)  # fmt: skip
def test_contradictions_and_impossible_numbers_are_refused(name, count, memory_gib, says):
    """Statements that exclude each other, and numbers no machine has, name the flag."""
    with pytest.raises(InputError, match=f"(?s){says}"):
        stated_hardware(name, count, memory_gib, from_flag=True)


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
    names = [name for gpu in catalogue_gpus().values() for name in (gpu.spec.name, *gpu.names)]
    assert len(names) > 400
    for name in (*names, "A100 80", "some card", "V100", "16 GB card", "H100"):
        assert not_supported(name) is None, name


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
        *(
            (typed, "RTX 4090", None, 2)
            for typed in (
                "4090 x2",
                "4090*2",
                "2 RTX 4090s",
                "dual 4090",
                "4090 x2 (nvlink)",
                "rtx4090x2",
            )
        ),
        ("8×H200 SXM NVLink 141GB", "H200 SXM", None, 8),
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
