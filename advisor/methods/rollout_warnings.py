"""rules/data/rollouts.yaml: when a stage that learns from its own answers warns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.from_dataclass import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Integer, Keys, ListOf, Number, Text
from advisor.ground.sources import shipped_sources
from advisor.ground.yaml_cache import read_shipped


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutWarning:
    """A limit on one number of a run."""

    limit: Annotated[float, Number(above=0), "above it a warning is due"]
    lines: Annotated[int, Integer(min=1), "lines of metrics.jsonl whose mean counts"]
    what: Annotated[str, "what the number is a share of, or a multiple"]
    because: Annotated[str, "why it matters"]
    hint: Annotated[str, "what to change"]
    sources: Annotated[tuple[str, ...], ListOf(of=Text(), least=1)]
    confidence: Literal["study", "practice", "judgement"]


ROLLOUT_WARNINGS = ("zero_spread", "cut", "clipped", "length")
ROLLOUTS_FILE = Keys(
    help="When a stage that learns from its own answers warns",
    keys={
        "warnings": Keys(
            keys={name: shape_of(RolloutWarning) for name in ROLLOUT_WARNINGS},
            required=ROLLOUT_WARNINGS,
        )
    },
    required=("warnings",),
)


@cache
def rollout_warnings() -> Mapping[str, RolloutWarning]:
    """Name -> limit. Raises InputError with the faults of the file."""
    document = read_shipped(rules_dir() / "data" / "rollouts.yaml", shape=ROLLOUTS_FILE)
    known = list(shipped_sources())
    found = {
        name: build(RolloutWarning, entry) for name, entry in document.data["warnings"].items()
    }
    faults = [
        unknown_name("source", source, known, at=document.at(("warnings", name, "sources")))
        for name, entry in found.items()
        for source in entry.sources
        if source not in known
    ]
    if faults:
        raise InputError(faults=faults)
    return found
