"""rules/hardware/links.yaml: how fast GPUs reach each other and host memory, by kind of link."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Choice, Date, Keys, ListOf, MapOf, Number, Text
from advisor.ground.types import GpuLink
from advisor.ground.yaml_files import SOURCE, read_shipped

GB = 1e9
USUAL_PCIE, ALL_LANES = 4, 16  # what a machine of the last years has, where nothing says so
_SHARE = Number(min=0, max=1)
_BY_GENERATION = MapOf(of=Number(min=0), help="by generation")
_SOURCES = {"sources": ListOf(of=SOURCE, least=1)}
LINKS_FILE = Keys(
    help="How fast GPUs reach each other and host memory",
    keys={
        "version": VERSION,
        "checked": Date(),
        "links": MapOf(
            named=Choice(values=("nvlink", "nvlink_bridge", "xgmi", "pcie", "unified")),
            of=Keys(
                keys={
                    "both_ways_gb_s": _BY_GENERATION,
                    "one_way_gb_s": _BY_GENERATION,
                    "share": _SHARE,
                    "gather_share": MapOf(
                        of=_SHARE, help="of weights beside a computation, by generation"
                    ),
                    "host_share": _SHARE,
                    **_SOURCES,
                },
                required=("share", "sources"),
            ),
        ),
        "between_machines": Keys(
            keys={
                "gbit_s": MapOf(
                    named=Choice(values=("linked", "consumer", "other")), of=Number(min=0)
                ),
                "share": _SHARE,
                **_SOURCES,
            },
            required=("gbit_s", "share", "sources"),
        ),
        "no_peer_to_peer": Keys(
            keys={
                "gpus": MapOf(of=ListOf(of=Text(), least=1), help="vendor -> segments"),
                "gb_s": Number(min=0),
                **_SOURCES,
            },
            required=("gpus", "gb_s", "sources"),
        ),
    },
    required=("version", "links", "between_machines", "no_peer_to_peer"),
)


class LinkSpeeds(Struct, frozen=True, kw_only=True):
    """What a GPU moves in one direction.

    `pair_bytes_per_s` is that of two GPUs, of which a bridge joins no more; `guess` says what was
    taken to be so, empty where the machine or the GPU itself says it.
    """

    bytes_per_s: float
    pair_bytes_per_s: float
    host_bytes_per_s: float
    words: str
    gathers: float = 1.0  # of these speeds, what gathering weights beside a computation reaches
    guess: str = ""
    is_slow: bool = False  # through host memory, or over a network


@lru_cache(maxsize=256)
def link_speeds(link: GpuLink | None, interconnect: str | None = None) -> LinkSpeeds:
    """How fast GPUs with this link reach each other: as the driver says it (`interconnect`, such as
    "PCIe 3 x8" or "NVLink 3 (4 active links per card)") where it does, else as their kind has it.
    """
    said = (interconnect or "").lower()
    lanes = re.search(r"pcie (\d+(?:\.\d+)?)?(?: ?x(\d+))?", said)
    generation = _number(lanes and lanes[1]) or (link and link.pcie_generation)
    width = _number(lanes and lanes[2]) or (link and link.pcie_lanes) or ALL_LANES
    one_way = _pcie_one_way(generation or USUAL_PCIE) * width / ALL_LANES
    pcie_words = f"PCIe {generation or USUAL_PCIE:g} x{width:g}"
    pcie = links()["pcie"]
    host = one_way * pcie["host_share"] * GB
    between, no_peers = one_way * pcie["share"] * GB, _has_no_peers(link)
    if no_peers:
        between, pcie_words = (
            min(between, link_file()["no_peer_to_peer"]["gb_s"] * GB),
            f"{pcie_words}, no peer-to-peer",
        )
    kind = None if link is None else link.kind
    active = "active link" in said
    if kind in ("nvlink", "xgmi", "nvlink_bridge") or active or said.startswith("nvlink"):
        joined = _joined(link)
        is_bridge = kind == "nvlink_bridge"
        on_pcie = lanes is not None or said == "pcie"
        if not on_pcie and (not is_bridge or active):
            return LinkSpeeds(
                bytes_per_s=between if is_bridge else joined,
                pair_bytes_per_s=joined,
                host_bytes_per_s=host,
                words=_words(link),
                gathers=_gathers(link),
                is_slow=is_bridge and no_peers,
            )
        guess = (
            f"a bridge between two GPUs is taken to be absent: {pcie_words}"
            if is_bridge and not on_pcie
            else ""
        )
        return LinkSpeeds(
            bytes_per_s=between, pair_bytes_per_s=between, host_bytes_per_s=host,
            words=pcie_words, guess=guess, is_slow=no_peers,
        )  # fmt: skip
    guess = "" if lanes is not None or (link and link.pcie_generation) else f"{pcie_words} assumed"
    if not guess and lanes is None and link is not None:
        guess = f"{pcie_words}, if its slot has all of it"
    return LinkSpeeds(
        bytes_per_s=between, pair_bytes_per_s=between, host_bytes_per_s=host,
        words=pcie_words, guess=guess, is_slow=no_peers,
    )  # fmt: skip


@lru_cache(maxsize=256)
def network_speeds(link: GpuLink | None, interconnect: str | None = None) -> LinkSpeeds:
    """How fast GPUs of several machines reach each other: as those of one machine do, but never
    faster than a machine's network.

    A ring over all GPUs crosses each border once, so that all of them are as fast as the network of
    one machine, however many GPUs it has.
    """
    inside = link_speeds(link, interconnect)
    entry = link_file()["between_machines"]
    kind = "other"
    if link is not None and link.kind in ("nvlink", "xgmi"):
        kind = "linked"
    elif _has_no_peers(link):
        kind = "consumer"
    gbit = entry["gbit_s"][kind]
    between = min(inside.bytes_per_s, gbit / 8 * entry["share"] * GB)
    words = f"a network of {gbit:g} Gbit/s"
    return replace(
        inside,
        bytes_per_s=between,
        pair_bytes_per_s=between,
        words=words,
        gathers=1.0,
        guess=f"{words} for each machine assumed",
        is_slow=True,
    )


@cache
def links() -> Mapping[str, Mapping[str, Any]]:
    """Kind of link -> what the file says of it."""
    return dict(link_file()["links"])


@cache
def link_file() -> Mapping[str, Any]:
    """The whole file. Raises InputError with its faults, located."""
    return dict(read_shipped(rules_dir() / "hardware" / "links.yaml", shape=LINKS_FILE).data)


def _has_no_peers(link: GpuLink | None) -> bool:
    without = link_file()["no_peer_to_peer"]["gpus"]
    return link is not None and link.segment in without.get(link.vendor, ())


def _joined(link: GpuLink | None) -> float:
    """Bytes a second in one direction over NVLink or xGMI."""
    kind = link.kind if link is not None and link.kind in ("nvlink_bridge", "xgmi") else "nvlink"
    entry = links()[kind]
    table = {int(key): value for key, value in entry["both_ways_gb_s"].items()}
    both = link.both_ways_bytes_per_s if link is not None else None
    if both is None:
        own = None if link is None or link.generation is None else int(link.generation)
        both = table.get(own or min(table), min(table.values())) * GB
    return float(both / 2 * entry["share"])


def _gathers(link: GpuLink | None) -> float:
    if link is None or link.kind != "nvlink" or link.generation is None:
        return 1.0
    entry = links()["nvlink"]
    share = entry["gather_share"].get(str(int(link.generation)), entry["share"])
    return float(share / entry["share"])


def _pcie_one_way(generation: float) -> float:
    table = {int(key): value for key, value in links()["pcie"]["one_way_gb_s"].items()}
    return float(table.get(int(generation), table[USUAL_PCIE]))


def _words(link: GpuLink | None) -> str:
    if link is None or link.kind not in ("nvlink", "nvlink_bridge", "xgmi"):
        return "NVLink"
    if link.kind == "xgmi":
        return "xGMI"
    return f"NVLink {link.generation:g}" if link.generation else "NVLink"


def _number(text: str | None) -> float | None:
    return float(text) if text else None
