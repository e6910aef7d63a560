"""The prices of rules/prices/: what one GPU costs an hour on demand, by provider."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.ground.errors import Fault, nearest, unknown_name
from advisor.ground.shape import Choice, Date, Flag, Keys, ListOf, MapOf, Number, Shape, Text
from advisor.ground.yaml_reader import Document

HOURLY = ("on_demand_usd_per_h", "spot_usd_per_h")  # GPU -> provider -> US dollars


def price_file_shape(citation: Shape, gpu_ids: Collection[str] = ()) -> Shape:
    """What a file of rules/prices/ may hold; an editor offers the `gpu_ids`.

    Args:
        citation: What the price of a bought GPU may rest on.
        gpu_ids: GPUs of rules/hardware/, for an editor; without them `unknown_names` checks.
    """
    price = Number(above=0, help="US dollars per GPU and hour")
    provider = Keys(
        keys={
            "kind": Choice(values=("cloud", "marketplace", "broker")),
            "date": Date(null=True, help="of the price list; null if it carries none"),
            "dates": MapOf(of=Date(), help="of single GPUs, where they differ"),
            "source": Text(),
            "count": Flag(help="false: listed, but the price of no GPU is taken from it"),
        },
        required=("kind", "source"),
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
    named = Choice(values=tuple(gpu_ids)) if gpu_ids else Text()
    by_gpu = MapOf(of=MapOf(of=price), named=named)
    return Keys(
        help="Prices of GPUs in US dollars",
        keys={
            "version": Choice(values=(1,)),
            "compiled": Date(help="the day the list was made"),
            "providers": MapOf(of=provider),
            **dict.fromkeys(HOURLY, by_gpu),
            "version_not_stated_usd_per_h": MapOf(of=MapOf(of=price)),
            "purchase_usd": MapOf(of=bought, named=named),
            "left_out": ListOf(of=Text(), least=1, help="prices that were not taken, and why"),
        },
        required=("version",),
    )


@dataclass(eq=False, repr=False)
class Prices:
    """On-demand prices of all files; a later file wins, provider by provider."""

    providers: Mapping[str, Mapping[str, Any]]
    on_demand: Mapping[str, Mapping[str, tuple[float, str]]]  # GPU -> provider -> price, compiled

    def lowest(self, gpu_id: str) -> tuple[float | None, str]:
        """The price a GPU is shown with, and its provider and date.

        The lowest outside marketplaces, else the lowest. (None, "") if nobody rents it out.
        """
        rows = {
            name: row
            for name, row in self.on_demand.get(gpu_id, {}).items()
            if self.providers[name].get("count", True)
        }
        firm = {
            name: row for name, row in rows.items() if self.providers[name]["kind"] != "marketplace"
        }
        pool = firm or rows
        if not pool:
            return None, ""
        provider = min(pool, key=lambda name: pool[name][0])
        price, compiled = pool[provider]
        facts = self.providers[provider]
        date = facts.get("dates", {}).get(gpu_id) or facts.get("date")
        when = date or (f"undated, read by {compiled}" if compiled else "undated")
        return price, f"{provider}{'' if firm else ' marketplace'}, {when}"


def merge_prices(documents: Iterable[Document]) -> Prices:
    """The prices of files that have the shape above, in the order in which later ones win."""
    providers: dict[str, Mapping[str, Any]] = {}
    on_demand: dict[str, dict[str, tuple[float, str]]] = {}
    for document in documents:
        providers |= document.data.get("providers", {})
        for gpu_id, row in document.data.get("on_demand_usd_per_h", {}).items():
            prices = on_demand.setdefault(gpu_id, {})
            for provider, price in row.items():
                prices[provider] = (float(price), document.data.get("compiled", ""))
    return Prices(providers=providers, on_demand=on_demand)


def unknown_names(documents: Iterable[Document], gpu_ids: Collection[str]) -> Iterator[Fault]:
    """The faults of GPUs and providers that no file declares, each located.

    It reads files that may have other faults, which the check of their shape reports.
    """
    documents = list(documents)
    providers = {name for document in documents for name in map_at(document, "providers")}
    for document in documents:
        for table in (*HOURLY, "purchase_usd"):
            for gpu_id, row in map_at(document, table).items():
                if gpu_id not in gpu_ids:
                    yield _unknown_gpu(document, (table, gpu_id), gpu_ids)
                if table == "purchase_usd" or not isinstance(row, dict):
                    continue
                for provider in row:
                    if provider not in providers:
                        at = document.at((table, gpu_id, provider), key=True)
                        yield unknown_name("provider", provider, list(providers), at=at)


def _unknown_gpu(document: Document, path: tuple[str, str], gpu_ids: Collection[str]) -> Fault:
    return Fault(
        what=f"{document.at(path, key=True)}: unknown GPU '{path[1]}'",
        allowed="the keys under `gpus` in rules/hardware/",
        hint=nearest(path[1], gpu_ids),
    )


def map_at(document: Document, key: str) -> Mapping[str, Any]:
    """The map under a key of a file, empty where there is none."""
    found = document.data.get(key) if isinstance(document.data, dict) else None
    return found if isinstance(found, dict) else {}
