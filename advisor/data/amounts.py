"""How much data each objective wants (rules/objectives/), and how a file compares."""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import Struct

from advisor.ground.errors import refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Keys
from advisor.ground.types import DataProfile, Source
from advisor.ground.units import format_count
from advisor.ground.yaml_files import read_shipped, shipped_sources, source_from
from advisor.methods import methods
from advisor.methods.load import AMOUNTS


class DataRequirement(Struct, frozen=True, kw_only=True):
    """What one objective wants."""

    objective: str
    unit: str  # rows | tokens
    floor: int  # below it no training is advised
    too_few: int  # below it training is documented to fail; warned of
    usual: tuple[int, int]
    text: str
    sources: tuple[Source, ...]


REQUIREMENTS_FILE = Keys(
    help="How much data sorting texts wants; each objective's own file says what that one wants",
    keys={"classification": AMOUNTS},
    required=("classification",),
)


@cache
def data_requirements() -> dict[str, DataRequirement]:
    """Objective (and `classification`) -> how much data it wants, if its file says so.

    Raises InputError with every fault, located.
    """
    document = read_shipped(rules_dir() / "data" / "amounts.yaml", shape=REQUIREMENTS_FILE)
    known = dict(shipped_sources())
    for method in methods().objectives.values():
        known |= method.sources
    stated = {one.id: (one.amounts, one.at) for one in methods().objectives.values() if one.amounts}
    stated["classification"] = (document.data["classification"], document.at(("classification",)))
    refuse(
        unknown_name("source", name, list(known), at=at)
        for entry, at in stated.values()
        for name in entry["sources"]
        if name not in known
    )
    return {
        objective: DataRequirement(
            objective=objective,
            unit=entry.get("unit", "rows"),
            floor=entry.get("floor", entry["too_few"]),
            too_few=entry["too_few"],
            usual=(entry["usual"][0], entry["usual"][1]),
            text=entry["text"],
            sources=tuple(source_from(known[name]) for name in entry["sources"]),
        )
        for objective, (entry, _) in stated.items()
    }


def compare_amounts(profile: DataProfile) -> list[dict[str, Any]]:
    """For each objective the data can train: how much it has, how much is wanted, and a verdict:
    too_few, thin, usual, plenty or unknown.
    """
    tokens = None if profile.tokens is None else profile.tokens.total
    known = data_requirements()
    named = (known[objective] for objective in profile.objectives if objective in known)
    return [_row(wanted, profile.rows, tokens) for wanted in named]


def shortages(*, rows: int | None, tokens: int | None) -> dict[str, str]:
    """Objective -> what is said of these data if it wants more: '300 rows are too few: below 500
    it seldom works; ...'.
    """
    table = [_row(wanted, rows, tokens) for wanted in data_requirements().values()]
    return {row["objective"]: in_words(row) for row in table if row["verdict"] == "too_few"}


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
    """too_few | thin | usual | plenty, or unknown if it was not measured."""
    if has is None:
        return "unknown"
    if has < wanted.too_few:
        return "too_few"
    return "thin" if has < wanted.usual[0] else "usual" if has <= wanted.usual[1] else "plenty"


def in_words(row: dict[str, Any]) -> str:
    """'1,000 rows, within the usual 500 to 10,000'."""
    low, high = (format_count(number) for number in row["usual"])
    unit = row["unit"].removesuffix("s") if row["has"] == 1 else row["unit"]
    has = f"{format_count(row['has'])} {unit}" if row["has"] is not None else "amount not known"
    verb = "is" if row["has"] == 1 else "are"
    words = {
        "too_few": (
            f" {verb} too few: below {format_count(row['too_few_below'])} it seldom works;"
            f" {low} to {high} are usual"
        ),
        "thin": f" {verb} few: {low} to {high} are usual",
        "usual": f", within the usual {low} to {high}",
        "plenty": f", more than the usual {low} to {high}",
        "unknown": f"; {low} to {high} are usual",
    }
    return f"{has}{words[row['verdict']]}"
