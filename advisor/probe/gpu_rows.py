"""What the files of rules/hardware/ and rules/prices/ may hold, and what a search of the catalogue
looks at, read from them; their faults come in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.shape import (
    VERSION,
    Choice,
    Date,
    Flag,
    Keys,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Shape,
    Text,
    check_shape,
)
from advisor.ground.units import GIB, MIB
from advisor.ground.yaml_files import LINK, Document, read_shipped
from advisor.probe.gpu_facts import FOLDERS, FORMATS, NOT_GPUS, RELEASE, capability
from advisor.probe.names import catalogue_words
from advisor.probe.prices import map_at, merge_prices, price_file_shape, unknown_names

_AMOUNT = Number(min=0)

_AMOUNT_OR_UNKNOWN = Number(min=0, null=True)

_INTERCONNECT = Keys(
    keys={
        "kind": Choice(values=("pcie", "nvlink", "nvlink_bridge", "xgmi", "unified")),
        "bridge": Text(),
        "domain": Text(),
        "topology": Text(),
        "bidirectional_gb_s": Number(min=0, help="per GPU, both directions together"),
        "cards": Number(whole=True, min=2, help="how many a bridge joins"),
        "nvlink_generation": _AMOUNT,
        "pcie_generation": _AMOUNT,
        "pcie_lanes": Number(whole=True, min=1),
    },
    required=("kind",),
)

_ACCUMULATE = Keys(
    keys={"rate": Choice(values=("full", "half")), "fp16_accumulate_tflops": _AMOUNT},
    required=("rate",),
)

_FORMAT_LIST = ListOf(of=Choice(values=FORMATS))

_BASES = ("published", "secondary", "derived", "unlinked")


def citation_shape(sources: Iterable[str]) -> Shape:
    """What a figure may rest on: a key of rules/hardware/sources.yaml, or a link of its own."""
    link = Text(pattern=LINK, such_as="https://docs.nvidia.com/...")
    return OneOf(options=(Choice(values=tuple(sources)), link))


def gpu_file_shape(sources: Iterable[str]) -> Shape:
    """What a file of GPUs in rules/hardware/ may hold; `sources` are those that may be cited."""
    citation = citation_shape(sources)
    cited = {"source": citation, "where": Text(help="the row or the run of the source")}
    seen = Keys(
        keys=dict.fromkeys(("older_driver_mib", "ecc_on_mib", "ecc_off_mib"), _AMOUNT) | cited,
        required=("source",),
        help="totals that other hosts reported",
    )
    sold_gb = Number(min=0, null=True, help="the size on the box, in GiB as vendors mean it")
    memory = Keys(
        keys={
            "sold_gb": sold_gb,
            "also_sold_gb": ListOf(of=_AMOUNT, help="other sizes sold under the same name"),
            "usual_gb": Number(min=0, help="the size meant where none is stated"),
            "usual_because": Text(),
            "modified_gb": ListOf(of=_AMOUNT, help="sizes that workshops make of it"),
            "sizes_gb": ListOf(of=_AMOUNT, least=1, help="of computers with this chip"),
            "largest_sold_gb": _AMOUNT_OR_UNKNOWN,
            "nvml_mib": Number(min=0, null=True, help="the total that one host's driver reported"),
            "probe_mib": Number(min=0, null=True, help="the same, where another probe reads it"),
            **cited,
            "probe": Text(help="who can read the memory: nvml, torch, system, rocm-smi"),
            "seen_otherwise": seen,
        },
        required=("probe",),
    )
    achieved = Keys(
        keys={"tflops": _AMOUNT, "of_peak": Number(min=0, max=1.1), **cited},
        required=("tflops", "source"),
        help="the best dense matmul anyone measured: the ceiling of a time estimate",
    )
    gpu = Keys(
        keys={
            "name": Text(),
            "nvml_names": ListOf(of=Text(), least=1, help="exactly as the driver writes them"),
            "other_names": ListOf(of=Text(), least=1),
            "names_from": Text(),
            "segment": Text(),
            "architecture": Text(),
            "compute_capability": RELEASE,
            "gfx_target": Text(null=True),
            "memory": memory,
            "devices_per_board": Number(whole=True, min=1),
            "supports": Keys(keys=dict.fromkeys(FORMATS, Flag(null=True)), required=("bf16",)),
            "tflops_dense": Keys(
                keys=dict.fromkeys(FORMATS, _AMOUNT_OR_UNKNOWN),
                help="dense TFLOP/s with fp32 accumulate",
            ),
            "tflops_basis": Keys(keys=dict.fromkeys(_BASES, _FORMAT_LIST)),
            "fp32_accumulate": _ACCUMULATE,
            "achieved_matmul_bf16": achieved,
            "bandwidth_gb_s": _AMOUNT_OR_UNKNOWN,
            "interconnect": _INTERCONNECT,
            "tdp_w": _AMOUNT_OR_UNKNOWN,
            "spec_url": Text(),
            "sources": ListOf(of=citation, least=1),
            "note": Text(),
        },
        required=("name", "memory", "supports", "tflops_dense", "sources"),
    )
    return Keys(
        help="A catalogue of GPUs",
        keys={"version": VERSION, "vendor": Text(), "gpus": MapOf(of=gpu)},
        required=("version", "vendor", "gpus"),
    )


SOURCES_FILE = Keys(
    help="Where the facts about GPUs come from",
    keys={
        "version": VERSION,
        "compiled": Date(),
        "sources": MapOf(of=Text()),
        "derivation": MapOf(of=Shape()),
    },
    required=("version", "sources"),
)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """Everything that a search of the catalogue looks at, as plain data."""
    faults: list[Fault] = []

    def read(paths: Iterable[Path], shape: Callable[[], Shape]) -> list[Document]:
        """The files that are YAML; what is wrong in any of them goes to `faults`."""
        documents = []
        for path in paths:
            try:
                documents.append(read_shipped(path))
            except InputError as error:
                faults.extend(error.faults)
            else:
                faults.extend(check_shape(documents[-1], shape()))
        return documents

    hardware, prices = (sorted((root / name).glob("*.yaml")) for name in FOLDERS)
    cited = read([root / "hardware" / "sources.yaml"], lambda: SOURCES_FILE)
    sources = [name for document in cited for name in map_at(document, "sources")]
    gpu_paths = [path for path in hardware if path.name not in NOT_GPUS]
    gpu_files = read(gpu_paths, lambda: gpu_file_shape(sources))
    price_files = read(prices, lambda: price_file_shape(citation_shape(sources)))
    entries = {
        gpu_id: (document, entry)
        for document in gpu_files
        for gpu_id, entry in map_at(document, "gpus").items()
    }
    faults += unknown_names(price_files, entries)
    refuse(faults)
    on_demand = merge_prices(price_files)
    return {
        gpu_id: {
            **_row(gpu_id, entry, document.data["vendor"]),
            "file": document.name.rpartition("/")[2],
            "price": on_demand.lowest(gpu_id),
            "free": on_demand.free_tiers_of(gpu_id),
        }
        for gpu_id, (document, entry) in entries.items()
    }


def _row(gpu_id: str, entry: Mapping[str, Any], vendor: str) -> dict[str, Any]:
    devices = int(entry.get("devices_per_board", 1))  # a run sees the devices, not the board
    memory = entry["memory"]
    sold_gib = memory.get("sold_gb")
    seen_mib = memory.get("nvml_mib") or memory.get("probe_mib")
    memory_bytes = int(seen_mib * MIB) if seen_mib else int(sold_gib * GIB) if sold_gib else None
    rates = entry["tflops_dense"]
    # Per device, in units: (what the file says, how many of the unit it is).
    per_device = {
        "bf16_flops": (rates.get("bf16") or rates.get("fp16"), 1e12),
        "achieved_flops": (entry.get("achieved_matmul_bf16", {}).get("tflops"), 1e12),
        "bandwidth_bytes_per_s": (entry.get("bandwidth_gb_s"), 1e9),
        "power_w": (entry.get("tdp_w"), 1),
        **{f"{name}_flops": (rates.get(name), 1e12) for name in ("fp8", "fp4", "fp32")},
    }
    spec = {
        "vendor": vendor,
        "memory_bytes": memory_bytes // devices if memory_bytes else None,
        "bf16": entry["supports"]["bf16"],
        "half_rate": entry.get("fp32_accumulate", {}).get("rate") == "half",
        **{
            name: amount * unit / devices if amount else None
            for name, (amount, unit) in per_device.items()
        },
    }
    joined = entry.get("interconnect") or {}
    both_ways = joined.get("bidirectional_gb_s")
    link = {
        "kind": joined.get("kind"),
        "generation": joined.get("nvlink_generation"),
        "both_ways_bytes_per_s": both_ways * 1e9 if both_ways else None,
        "pcie_generation": joined.get("pcie_generation"),
        "pcie_lanes": joined.get("pcie_lanes"),
        "vendor": vendor,
        "segment": entry.get("segment", ""),
    }
    names = (*entry.get("nvml_names", ()), *entry.get("other_names", ()))
    own, *others = (catalogue_words((name,)) for name in (entry["name"], *names))
    usual = memory.get("usual_gb")
    sizes = memory.get("sizes_gb") or (sold_gib, *memory.get("also_sold_gb", ()))
    return {
        "name": entry["name"],
        "spec": spec,
        "link": link,
        "compute_capability": capability(entry.get("compute_capability")),
        "names": names,
        "words": sorted(catalogue_words((gpu_id,)).union(own, *others)),
        "own_words": sorted(own),
        "other_words": [sorted(words) for words in others],
        "sold_gib": [float(size) / devices for size in sizes if size],
        "usual_gib": None if usual is None else float(usual) / devices,
        "modified_gib": [float(size) for size in memory.get("modified_gb", ())],
    }
