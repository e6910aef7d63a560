"""rules/verdict.yaml: the numbers that make the verdict on a finished run, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Keys, ListOf, Number, Text
from advisor.ground.sources import shipped_sources
from advisor.ground.yaml_cache import read_shipped

LIMIT = Keys(
    keys={
        "value": Number(min=0),
        "unit": Text(help="what the value counts"),
        "because": Text(),
        "sources": ListOf(of=Text()),
    },
    required=("value", "unit", "because", "sources"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits by their ids, in the units that the file states."""

    general_lost: float
    general_halved: float
    general_rows: float
    answers_end: float
    repeats: float
    still_falling: float
    no_effect: float
    rate_factor: float


NAMES = tuple(Limits.__dataclass_fields__)
VERDICT_FILE = Keys(
    help="What makes the verdict on a finished run",
    keys={"limits": Keys(keys=dict.fromkeys(NAMES, LIMIT), required=NAMES)},
    required=("limits",),
)


@cache
def limits() -> Limits:
    """The limits. Raises InputError with every fault of the file, located."""
    document = read_shipped(rules_dir() / "verdict.yaml", shape=VERDICT_FILE)
    known = shipped_sources()
    stated = document.data["limits"]
    faults = [
        unknown_name("source", name, list(known), at=document.at(("limits", limit)))
        for limit in NAMES
        for name in stated[limit]["sources"]
        if name not in known
    ]
    if faults:
        raise InputError(faults=faults)
    return Limits(**{name: float(stated[name]["value"]) for name in NAMES})
