"""The prices of rules/prices/: what one GPU costs an hour on demand, by provider."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from advisor.ground.errors import Fault, did_you_mean, unknown_name
from advisor.ground.shape import (
    VERSION,
    Choice,
    Date,
    Flag,
    Keys,
    ListOf,
    MapOf,
    Number,
    Shape,
    Text,
)
from advisor.ground.yaml_files import Document

HOURLY = ("on_demand_usd_per_h", "spot_usd_per_h")  # GPU -> provider -> US dollars


def price_file_shape(citation: Shape) -> Shape:
    """What a file of rules/prices/ may hold; the price of a bought GPU rests on the `citation`."""
    price = Number(above=0, help="US dollars per GPU and hour")
    provider = Keys(
        keys={
            "kind": Choice(values=("cloud", "marketplace", "broker")),
            "date": Date(help="of the price list"),
            "dates": MapOf(of=Date(), help="of single GPUs, where they differ"),
            "source": Text(),
            "count": Flag(help="false: listed, but the price of no GPU is taken from it"),
            "most": MapOf(
                of=Number(whole=True, min=1),
                help="GPUs of which it has no machine with eight -> the most of one machine",
            ),
        },
        required=("kind", "date", "source"),
    )
    bought = Keys(
        keys={
            "value": Number(above=0),
            "kind": Text(),
            "street": Choice(values=("above", "below"), help="what shops asked beside it"),
            "source": citation,
        },
        required=("value", "source"),
    )
    free = Keys(
        help="A GPU that costs nothing",
        keys={
            "provider": Text(),
            "gpu": Text(),
            "gpus": Number(whole=True, min=1),
            "hours_a_week": Number(above=0),
            "hours_a_session": Number(above=0),
            "conditions": Text(),
            "source": citation,
            "checked": Date(help="the day somebody read the source"),
        },
        required=("provider", "gpu", "gpus", "conditions", "source", "checked"),
    )
    return Keys(
        help="Prices of GPUs in US dollars",
        keys={
            "version": VERSION,
            "compiled": Date(help="the day the list was made"),
            "providers": MapOf(of=provider),
            **dict.fromkeys(HOURLY, MapOf(of=MapOf(of=price))),
            "version_not_stated_usd_per_h": MapOf(of=MapOf(of=price)),
            "purchase_usd": MapOf(of=bought),
            "free_tiers": MapOf(of=free),
            "left_out": ListOf(of=Text(), least=1, help="prices that were not taken, and why"),
        },
        required=("version",),
    )


class Prices(Struct, eq=False):
    """On-demand prices of all files; a later file wins, provider by provider."""

    providers: Mapping[str, Mapping[str, Any]]
    on_demand: Mapping[str, Mapping[str, float]]  # GPU -> provider -> price
    free_tiers: Mapping[str, Mapping[str, Any]]

    def lowest(self, gpu_id: str) -> tuple[float | None, str, int | None]:
        """The price a GPU is shown with, its provider and date, and the most of one machine there.

        The lowest outside marketplaces, else the lowest; who lends it out for nothing is named
        beside it. (None, "", None) if nobody rents it out.
        """
        rows = self.on_demand.get(gpu_id, {})
        named = {name: self.providers[name] for name in rows}
        counted = [name for name in rows if named[name].get("count", True)]
        firm = [name for name in counted if named[name]["kind"] != "marketplace"]
        if not counted:
            return None, "", None
        provider = min(firm or counted, key=lambda name: rows[name])
        facts = named[provider]
        date = facts.get("dates", {}).get(gpu_id) or facts["date"]
        note = f"{provider}{'' if firm else ' marketplace'}, {date}"
        most = facts.get("most", {}).get(gpu_id)
        return rows[provider], "; ".join(filter(None, (note, self.free(gpu_id)))), most

    def free_tiers_of(self, gpu_id: str) -> list[Mapping[str, Any]]:
        """The offers of this GPU that cost nothing."""
        return [tier for tier in self.free_tiers.values() if tier["gpu"] == gpu_id]

    def free(self, gpu_id: str) -> str:
        """Who lends this GPU out for nothing: "free at Kaggle (2, 30 h a week)"; "" for nobody."""
        named = []
        for tier in self.free_tiers_of(gpu_id):
            limits = [f"{tier['gpus']} of them"] if tier["gpus"] > 1 else []
            limits += [f"{tier['hours_a_week']:g} h a week"] if "hours_a_week" in tier else []
            named.append(tier["provider"] + (f" ({', '.join(limits)})" if limits else ""))
        return f"free at {' and '.join(named)}" if named else ""


def merge_prices(documents: Iterable[Document]) -> Prices:
    """The prices of files that have the shape above, in the order in which later ones win."""
    providers: dict[str, Mapping[str, Any]] = {}
    on_demand: dict[str, dict[str, float]] = {}
    free_tiers: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        providers |= document.data.get("providers", {})
        for gpu_id, row in document.data.get("on_demand_usd_per_h", {}).items():
            prices = {provider: float(price) for provider, price in row.items()}
            on_demand.setdefault(gpu_id, {}).update(prices)
        free_tiers |= document.data.get("free_tiers", {})
    return Prices(providers=providers, on_demand=on_demand, free_tiers=free_tiers)


def unknown_names(documents: Iterable[Document], gpu_ids: Collection[str]) -> Iterator[Fault]:
    """GPUs and providers that no file declares; the files may have other faults, too."""
    documents = list(documents)
    providers = {name for document in documents for name in map_at(document, "providers")}
    for document in documents:
        for table in (*HOURLY, "purchase_usd"):
            for gpu_id, row in map_at(document, table).items():
                if gpu_id not in gpu_ids:
                    at = document.at((table, gpu_id), key=True)
                    yield _unknown_gpu(at, gpu_id, gpu_ids)
                if table == "purchase_usd" or not isinstance(row, dict):
                    continue
                for provider in row:
                    if provider not in providers:
                        at = document.at((table, gpu_id, provider), key=True)
                        yield unknown_name("provider", provider, list(providers), at=at)
        for tier, facts in map_at(document, "free_tiers").items():
            if isinstance(facts, dict) and facts.get("gpu") not in gpu_ids:
                at = document.at(("free_tiers", tier, "gpu"))
                yield _unknown_gpu(at, str(facts.get("gpu")), gpu_ids)


def _unknown_gpu(at: str, gpu_id: str, gpu_ids: Collection[str]) -> Fault:
    return Fault(
        where=at,
        what=f"unknown GPU '{gpu_id}'",
        allowed="the keys under `gpus` in rules/hardware/",
        hint=did_you_mean(gpu_id, gpu_ids),
    )


def map_at(document: Document, key: str) -> Mapping[str, Any]:
    """The map under a key of a file, empty where there is none."""
    found = document.data.get(key) if isinstance(document.data, dict) else None
    return found if isinstance(found, dict) else {}
