"""The GPU catalogue of rules/hardware/ with the prices of rules/prices/, and the two ways into it.

A probed device is recognised by the exact name its driver reports; a typed name by its words.
Memory decides only where one name stands for several cards, since the reported size moves with
driver and ECC.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import rules_dir
from advisor.ground.types import GpuSpec
from advisor.ground.units import GIB, MIB
from advisor.ground.yaml_cache import read_shipped
from advisor.ground.yaml_reader import Document
from advisor.probe.names import FORM, TELLS_APART, catalogue_words, split_name

NOT_CARDS = ("sources.yaml", "cuda.yaml")  # facts about cards in general
SAME_SIZE = (
    0.03  # a size people name and the size a driver reports for it differ by up to this share
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuMatch:
    """What a typed name was understood as.

    `spec` None: not in the catalogue; `near` then says what is like it.
    """

    spec: GpuSpec | None
    memory_bytes: int | None  # to plan with: the catalogue's, or the stated one where they differ
    warnings: tuple[str, ...] = ()
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Card:
    spec: GpuSpec
    entry: Mapping[str, Any]
    names: tuple[str, ...]  # exactly as a driver or vendor writes them
    words: frozenset[str]
    own_words: frozenset[str]  # of its short name
    sold_gib: tuple[float, ...]  # its own size first, then others under the same name


# --------------------------------------------------------------------------- reading


@cache
def load_catalogue() -> Mapping[str, GpuSpec]:
    """GPU id -> GpuSpec with its price, in file order.

    Raises InputError, located, for a faulty file.
    """
    return MappingProxyType({card_id: card.spec for card_id, card in _cards().items()})


def gpu_entry(gpu_id: str) -> Mapping[str, Any]:
    """Everything rules/hardware/ says of one card, as written there (rates per format,
    interconnect, sources).
    """
    return _cards()[gpu_id].entry


@cache
def cuda_facts() -> Mapping[str, Any]:
    """The facts of rules/hardware/cuda.yaml: drivers, wheels, number formats."""
    data: Mapping[str, Any] = read_shipped(rules_dir() / "hardware" / "cuda.yaml").data
    return data


@cache
def _cards() -> Mapping[str, _Card]:
    cards: dict[str, _Card] = {}
    faults: list[Fault] = []
    documents = []
    for path in sorted((rules_dir() / "hardware").glob("*.yaml")):
        if path.name not in NOT_CARDS:
            documents.append(read_shipped(path))
    prices = _Prices()
    for document in documents:
        for gpu_id in _entries(document, faults):
            prices.known.add(gpu_id)
    for path in sorted((rules_dir() / "prices").glob("*.yaml")):
        prices.add(read_shipped(path))
    for document in documents:
        for gpu_id, entry in _entries(document, []).items():
            try:
                cards[gpu_id] = _card(
                    gpu_id, entry, vendor=str(document.data["vendor"]), price=prices.lowest(gpu_id)
                )
            except (KeyError, TypeError, ValueError) as error:
                faults.append(
                    Fault(
                        what=(
                            f"{document.at(('gpus', gpu_id), key=True)}: {gpu_id}:"
                            f" {error.__class__.__name__}: {error}"
                        )
                    )
                )
    faults.extend(prices.faults)
    if faults:
        raise InputError(faults=faults)
    return cards


def _entries(document: Document, faults: list[Fault]) -> Mapping[str, Any]:
    data = document.data
    if isinstance(data, dict) and isinstance(data.get("gpus"), dict) and "vendor" in data:
        return dict(data["gpus"])
    faults.append(
        Fault(what=f"{document.at()}: a map with the keys 'vendor' and 'gpus' is expected")
    )
    return {}


def _card(
    gpu_id: str, entry: Mapping[str, Any], *, vendor: str, price: tuple[float | None, str]
) -> _Card:
    devices = int(entry.get("devices_per_board", 1))  # a run sees the devices, not the board
    memory = entry["memory"]
    sold_gib = memory.get("sold_gb")
    seen_mib = memory.get("nvml_mib") or memory.get("probe_mib")
    memory_bytes = int(seen_mib * MIB) if seen_mib else int(sold_gib * GIB) if sold_gib else None
    rates = entry["tflops_dense"]
    rate = rates.get("bf16") or rates.get("fp16")
    achieved = entry.get("achieved_matmul_bf16")
    spec = GpuSpec(
        id=gpu_id,
        name=str(entry["name"]),
        vendor=vendor,
        memory_bytes=memory_bytes // devices if memory_bytes else None,
        compute_capability=capability(entry.get("compute_capability")),
        bf16=entry["supports"]["bf16"],
        bf16_flops=rate * 1e12 / devices if rate else None,
        achieved_flops=achieved["tflops"] * 1e12 / devices if achieved else None,
        bandwidth_bytes_per_s=(
            entry["bandwidth_gb_s"] * 1e9 / devices if entry.get("bandwidth_gb_s") else None
        ),
        power_w=entry["tdp_w"] / devices if entry.get("tdp_w") else None,
        price_usd_per_h=price[0],
        price_note=price[1],
    )
    names = (*entry.get("nvml_names", ()), *entry.get("other_names", ()))
    return _Card(
        spec=spec,
        entry=entry,
        names=names,
        words=catalogue_words((gpu_id, spec.name, *names)),
        own_words=catalogue_words((spec.name,)),
        sold_gib=tuple(
            float(size) / devices for size in (sold_gib, *memory.get("also_sold_gb", ())) if size
        ),
    )


def capability(text: object) -> tuple[int, int] | None:
    """A compute capability as numbers: "8.9" -> (8, 9); None for anything else."""
    major, dot, minor = str(text).partition(".")
    return (int(major), int(minor)) if dot and major.isdigit() and minor.isdigit() else None


@dataclass(slots=True)
class _Prices:
    """The on-demand prices of every file in rules/prices/; a later file wins provider by
    provider.
    """

    known: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    providers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    on_demand: dict[str, dict[str, tuple[float, str]]] = field(
        default_factory=dict
    )  # gpu -> provider -> price, compiled

    def add(self, document: Document) -> None:
        data = document.data
        if not isinstance(data, dict):
            self.faults.append(Fault(what=f"{document.at()}: a map is expected"))
            return
        self.providers.update(data.get("providers") or {})
        for table in ("on_demand_usd_per_h", "spot_usd_per_h"):
            for gpu_id, row in (data.get(table) or {}).items():
                for provider, price in (row or {}).items():
                    self._check(document, (table, gpu_id, provider), price)
                if table == "on_demand_usd_per_h":
                    dated = {
                        provider: (float(price), str(data.get("compiled") or ""))
                        for provider, price in row.items()
                        if isinstance(price, int | float)
                    }
                    self.on_demand.setdefault(gpu_id, {}).update(dated)

    def _check(self, document: Document, path: tuple[str, str, str], price: object) -> None:
        _, gpu_id, provider = path
        at = document.at(path)
        if gpu_id not in self.known:
            self.faults.append(
                Fault(
                    what=f"{at}: unknown GPU '{gpu_id}'",
                    allowed="the keys under `gpus` in rules/hardware/",
                    hint=_did_you_mean(gpu_id, self.known),
                )
            )
        if provider not in self.providers:
            self.faults.append(
                Fault(
                    what=f"{at}: unknown provider '{provider}'",
                    allowed=f"known: {', '.join(sorted(self.providers))}",
                )
            )
        if not isinstance(price, int | float) or isinstance(price, bool) or price <= 0:
            self.faults.append(
                Fault(
                    what=f"{at}: the price is {price!r}",
                    allowed="US dollars per GPU and hour, above zero",
                )
            )

    def lowest(self, gpu_id: str) -> tuple[float | None, str]:
        """The price a card is shown with: the lowest outside marketplaces, else the lowest, with
        provider and date.
        """
        rows = {
            name: row
            for name, row in self.on_demand.get(gpu_id, {}).items()
            if self.providers.get(name, {}).get("count", True)
        }
        firm = {
            name: row
            for name, row in rows.items()
            if self.providers.get(name, {}).get("kind") != "marketplace"
        }
        pool = firm or rows
        if not pool:
            return None, ""
        provider = min(pool, key=lambda name: pool[name][0])
        price, compiled = pool[provider]
        facts = self.providers.get(provider, {})
        date = (facts.get("dates") or {}).get(gpu_id) or facts.get("date")
        when = str(date) if date else f"undated, read by {compiled}" if compiled else "undated"
        return price, f"{provider}{'' if firm else ' marketplace'}, {when}"


# --------------------------------------------------------------------------- a probed device


def match_probed(nvml_name: str, memory_bytes: int | None) -> GpuSpec | None:
    """The card behind the name a driver reports, or None.

    The exact string counts, then the same with "NVIDIA " added or removed (older drivers leave it
    out). A name that is sold with several sizes needs the memory to agree. A MIG slice never
    matches: it is not the card whose name it bears.
    """
    if " MIG " in f"{nvml_name} ":
        return None
    bare = nvml_name.removeprefix("NVIDIA ")
    for name in (nvml_name, f"NVIDIA {bare}", bare):
        for card in _cards().values():
            if name in card.names and (
                len(card.sold_gib) < 2
                or memory_bytes is None
                or _own_size(card, memory_bytes / GIB)
            ):
                return card.spec
    return None


def _own_size(card: _Card, size_gib: float) -> bool:
    """True where the size is nearer to this card's own than to any other the name is sold with."""
    return min(card.sold_gib, key=lambda sold: abs(sold - size_gib)) == card.sold_gib[0]


# --------------------------------------------------------------------------- a typed name


def find_gpu(name: str, *, memory_gib: float | None = None, lenient: bool = False) -> GpuMatch:
    """What a typed name means: a catalogue id, an exact driver or vendor name, or all its words.

    Where it fits several cards, `memory_gib` or a size in the name decides, else the smaller card,
    with a warning. `lenient` reads a description by its known part ("RTX 4090 in the paper") and
    says so.
    """
    typed = split_name(name)
    stated_gib = memory_gib if memory_gib is not None else typed.size_gib
    warnings: list[str] = []
    if (
        memory_gib is not None
        and typed.size_gib is not None
        and not _same(memory_gib, typed.size_gib)
    ):
        warnings.append(
            f"'{name}' says {typed.size_gib:g} GB and the stated memory is {memory_gib:g} GiB: the"
            " stated memory counts"
        )
    cards = () if typed.mig else _exact(name) or _by_words(typed.words)
    if not cards and lenient and not typed.mig:
        cards = _by_known_part(typed.words)
        if cards:
            warnings.append(f"'{name}' read by the part that is known: {cards[0].spec.name}")
    if not cards:
        memory_bytes = None if stated_gib is None else int(stated_gib * GIB)
        return GpuMatch(
            spec=None, memory_bytes=memory_bytes, warnings=tuple(warnings), near=_near(name)
        )
    card, memory_bytes, more = _variant(name, cards, stated_gib)
    return GpuMatch(spec=card.spec, memory_bytes=memory_bytes, warnings=(*warnings, *more))


def _exact(name: str) -> tuple[_Card, ...]:
    wanted = name.strip().lower()
    cards = _cards()
    if wanted in cards:
        return (cards[wanted],)
    bare = wanted.removeprefix("nvidia ")
    for form in (wanted, f"nvidia {bare}"):
        found = tuple(
            card
            for card in cards.values()
            if form in (exact.lower() for exact in (*card.names, card.spec.name))
        )
        if found:
            return found
    return ()


def _by_words(words: Sequence[str]) -> tuple[_Card, ...]:
    typed = frozenset(words)
    if not any(any(letter.isdigit() for letter in word) or word == "orin" for word in typed):
        return ()  # "card", "RTX": says nothing about which
    return tuple(
        card
        for card in _cards().values()
        if typed <= card.words and not (card.own_words - typed) & TELLS_APART
    )


def _by_known_part(words: Sequence[str]) -> tuple[_Card, ...]:
    """Cards that fit the first model number of a description and as many of its other words as go
    with it.
    """
    found: tuple[_Card, ...] = ()
    taken: list[str] = []
    numbers = [
        word for word in words if any(letter.isdigit() for letter in word) and word not in FORM
    ]
    for word in (*numbers, *(word for word in words if word not in numbers)):
        wider = _by_words([*taken, word])
        if wider:
            found, taken = wider, [*taken, word]
    # "RTX 4090 Laptop" is another card, not a wordy 4090.
    return () if TELLS_APART & (set(words) - set(taken)) else found


def _variant(
    name: str, cards: Sequence[_Card], stated_gib: float | None
) -> tuple[_Card, int | None, list[str]]:
    options = [(card, size) for card in cards for size in card.sold_gib or (None,)]
    named = ", ".join(
        dict.fromkeys(
            card.spec.name if len(card.sold_gib) < 2 else f"{card.spec.name} {size:g}GB"
            for card, size in options
        )
    )
    if stated_gib is not None:
        fitting = [
            (card, size)
            for card, size in options
            if size is None or _same(stated_gib, size) or _reported(card, size, stated_gib)
        ]
        if fitting:
            card, size = fitting[0]
            others = tuple(
                dict.fromkeys(other.spec.name for other, _ in fitting[1:] if other is not card)
            )
            more = (
                [
                    f"'{name}' with {stated_gib:g} GB is also sold as {', '.join(others)}: taken as"
                    f" {card.spec.name} (another speed and price, the same memory)"
                ]
                if others
                else []
            )
            return (
                card,
                int(stated_gib * GIB) if size is None else _memory(card, size),
                [*more, *_filled_in(name, card)],
            )
        card, _ = min(options, key=lambda option: abs((option[1] or 0) - stated_gib))
        return (
            card,
            int(stated_gib * GIB),
            [
                f"{named}: none has {stated_gib:g} GiB; the speed is that of {card.spec.name}, the"
                " memory is taken as stated"
            ],
        )
    card, size = min(options, key=lambda option: option[1] or 0)
    if len(options) == 1:
        return card, _memory(card, size), _filled_in(name, card)
    chosen = card.spec.name if len(card.sold_gib) < 2 else f"{card.spec.name} with {size:g} GB"
    why = (
        "the smaller one"
        if len({size for _, size in options}) > 1
        else "the first; speed and price differ"
    )
    return (
        card,
        _memory(card, size),
        [
            f"'{name}' may be {named}: taken as {chosen} ({why}); add the memory or write the name"
            " out to choose another"
        ],
    )


def _filled_in(name: str, card: _Card) -> list[str]:
    """A warning where the catalogue's name holds a word that changes the chip and that nobody
    typed.
    """
    typed = set(split_name(name).words)
    added = card.own_words - typed - FORM
    return (
        [f"'{name}' read as {card.spec.name}"]
        if typed and added and typed < card.own_words and name.lower() != card.spec.id
        else []
    )


def _memory(card: _Card, size_gib: float | None) -> int | None:
    """What the driver reports of a card of this size; another size under the same name counts as it
    is sold.
    """
    if size_gib is None or (card.sold_gib and size_gib == card.sold_gib[0]):
        return card.spec.memory_bytes
    return int(size_gib * GIB)


def _same(stated_gib: float, sold_gib: float) -> bool:
    return abs(stated_gib - sold_gib) <= SAME_SIZE * sold_gib


def _reported(card: _Card, size_gib: float, stated_gib: float) -> bool:
    """True where the stated size is what the driver shows for this card (15 GiB on a T4 sold as 16
    GB).
    """
    shown = _memory(card, size_gib)
    return shown is not None and _same(stated_gib, shown / GIB)


def _near(name: str) -> tuple[str, ...]:
    """Up to three names like it: those with the same number first, then those spelt alike."""
    words = split_name(name).words
    numbers = {word for word in words if any(letter.isdigit() for letter in word)}
    same_number = [card.spec.name for card in _cards().values() if numbers & card.own_words]
    by_words = {
        " ".join(split_name(card.spec.name).words): card.spec.name for card in _cards().values()
    }
    alike = [
        by_words[close]
        for close in difflib.get_close_matches(" ".join(words), list(by_words), n=3, cutoff=0.6)
    ]
    return tuple(dict.fromkeys([*same_number, *alike]))[:3]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


# --------------------------------------------------------------------------- what else is asked of


def cheapest_cards(min_bytes: int, *, vendor: str | None = "nvidia") -> tuple[GpuSpec, ...]:
    """Cards with at least this memory that somebody rents out, the cheapest hour first (then the
    larger card).
    """
    fitting = [
        spec
        for spec in load_catalogue().values()
        if spec.price_usd_per_h is not None
        and spec.memory_bytes is not None
        and spec.memory_bytes >= min_bytes
        and vendor in (None, spec.vendor)
    ]
    return tuple(
        sorted(
            fitting,
            key=lambda spec: (spec.price_usd_per_h or 0.0, -(spec.memory_bytes or 0), spec.id),
        )
    )


def interconnect_of(spec: GpuSpec) -> str | None:
    """How several of these cards reach each other, in words: "NVLink 4, 900 GB/s both ways"; None
    where not known.
    """
    link = _cards()[spec.id].entry.get("interconnect") or {}
    kind = link.get("kind")
    speed = (
        f", {link['bidirectional_gb_s']:g} GB/s both ways" if link.get("bidirectional_gb_s") else ""
    )
    if kind in ("nvlink", "nvlink_bridge"):
        bridge = " bridge between two cards" if kind == "nvlink_bridge" else ""
        return f"NVLink {link.get('nvlink_generation', '')}".strip() + bridge + speed
    if kind == "xgmi":
        return f"xGMI{speed}"
    if kind == "pcie":
        lanes = f" x{link['pcie_lanes']}" if link.get("pcie_lanes") else ""
        return f"PCIe {link.get('pcie_generation', '')}{lanes}".strip()
    return "memory shared with the CPU" if kind == "unified" else None
