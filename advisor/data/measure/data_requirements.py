"""How much data each objective wants, from rules/data/amounts.yaml, and how a file compares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Number, Text
from advisor.ground.sources import SOURCE, SOURCES_FILE, source_from
from advisor.ground.types import DataProfile, Source
from advisor.ground.units import format_count
from advisor.ground.yaml_cache import read_shipped
from advisor.methods import objectives


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRequirement:
    """What one objective wants."""

    objective: str
    unit: str  # rows | tokens
    too_few: int
    usual: tuple[int, int]
    text: str
    sources: tuple[Source, ...]


_COUNT = Number(whole=True, min=1)
_REQUIREMENT = Keys(
    keys={
        "unit": Choice(values=("rows", "tokens"), help="left out: rows"),
        "too_few": Number(whole=True, min=1, help="below this it is documented to fail"),
        "usual": ListOf(of=_COUNT, least=2, most=2, help="the range that published runs sit in"),
        "text": Text(),
        "sources": ListOf(of=Text(), least=1, help="ids of rules/sources.yaml or of this file"),
    },
    required=("too_few", "usual", "text", "sources"),
)
REQUIREMENTS_FILE = Keys(
    help="How much data each objective wants",
    keys={
        "checked": Date(),
        "sources": MapOf(of=SOURCE, help="sources that rules/sources.yaml does not list"),
        "objectives": Keys(keys=dict.fromkeys((*objectives(), "classification"), _REQUIREMENT)),
    },
    required=("checked", "sources", "objectives"),
)


@cache
def data_requirements() -> dict[str, DataRequirement]:
    """Objective -> how much data it wants.

    Raises InputError with every fault of the file, located.
    """
    document = read_shipped(rules_dir() / "data" / "amounts.yaml", shape=REQUIREMENTS_FILE)
    shared = read_shipped(rules_dir() / "sources.yaml", shape=SOURCES_FILE).data["sources"]
    stated = document.data
    known = {**shared, **stated["sources"]}
    faults = [
        unknown_name(
            "source", name, list(known), at=document.at(("objectives", objective, "sources", index))
        )
        for objective, entry in stated["objectives"].items()
        for index, name in enumerate(entry["sources"])
        if name not in known
    ]
    if faults:
        raise InputError(faults=faults)
    return {
        objective: DataRequirement(
            objective=objective,
            unit=entry.get("unit", "rows"),
            too_few=entry["too_few"],
            usual=(entry["usual"][0], entry["usual"][1]),
            text=entry["text"],
            sources=tuple(
                source_from(known[name], checked=stated["checked"]) for name in entry["sources"]
            ),
        )
        for objective, entry in stated["objectives"].items()
    }


def compare_amounts(profile: DataProfile) -> list[dict[str, Any]]:
    """For each objective the data can train: how much it has, how much is wanted, and a verdict:
    too_few, thin, usual, plenty or unknown.
    """
    tokens = None if profile.tokens is None else profile.tokens.total
    return [
        _row(data_requirements()[objective], profile.rows, tokens)
        for objective in profile.objectives
        if objective in data_requirements()
    ]


def shortages(*, rows: int | None, tokens: int | None) -> dict[str, str]:
    """Objective -> what is said of these data where it wants more: '300 rows: too few: below 500 it
    seldom works; ...'.
    """
    table = {
        objective: _row(wanted, rows, tokens) for objective, wanted in data_requirements().items()
    }
    return {
        objective: in_words(row) for objective, row in table.items() if row["verdict"] == "too_few"
    }


def _row(wanted: DataRequirement, rows: int | None, tokens: int | None) -> dict[str, Any]:
    has = tokens if wanted.unit == "tokens" else rows
    return {
        "objective": wanted.objective,
        "unit": wanted.unit,
        "has": has,
        "too_few_below": wanted.too_few,
        "usual": list(wanted.usual),
        "verdict": verdict(has, wanted),
        "text": wanted.text,
        "sources": [{"title": source.title, "url": source.url} for source in wanted.sources],
    }


def verdict(has: int | None, wanted: DataRequirement) -> str:
    """too_few | thin | usual | plenty, or unknown where it was not measured."""
    if has is None:
        return "unknown"
    if has < wanted.too_few:
        return "too_few"
    return "thin" if has < wanted.usual[0] else "usual" if has <= wanted.usual[1] else "plenty"


def in_words(row: dict[str, Any]) -> str:
    """'1,000 rows: within the usual 500 to 10,000'."""
    low, high = (format_count(number) for number in row["usual"])
    has = (
        f"{format_count(row['has'])} {row['unit']}" if row["has"] is not None else "amount unknown"
    )
    words = {
        "too_few": (
            f"too few: below {format_count(row['too_few_below'])} it seldom works; usual are {low}"
            f" to {high}"
        ),
        "thin": f"thin: usual are {low} to {high}",
        "usual": f"within the usual {low} to {high}",
        "plenty": f"more than the usual {low} to {high}",
        "unknown": f"usual are {low} to {high}",
    }
    return f"{has}: {words[row['verdict']]}"
