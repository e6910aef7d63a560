"""rules/hardware/accelerators.yaml: GPUs on which the trainers were never run, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.sources import SOURCE
from advisor.ground.yaml_cache import read_shipped

ACCELERATORS_FILE = Keys(
    help="GPUs on which this tool's trainers were never run",
    keys={
        "version": Choice(values=(1,)),
        "review_by": Date(),
        "accelerators": MapOf(
            named=Choice(values=("mps", "rocm")),
            of=Keys(
                keys={
                    "says": Text(help="of every training there"),
                    "in_4_bit": Text(help="of a base in 4 bits besides"),
                    "sources": ListOf(of=SOURCE, least=1),
                },
                required=("says", "in_4_bit", "sources"),
            ),
        ),
    },
    required=("version", "accelerators"),
)


def never_tried(kind: str, quantization: str | None) -> tuple[str, ...]:
    """What is said of training on hardware of a kind (`Hardware.kind`), on such a base."""
    if kind not in ("mps", "rocm"):
        return ()
    entry = accelerators()[kind]
    return (entry["says"], *([entry["in_4_bit"]] if quantization == "nf4" else []))


@cache
def accelerators() -> Mapping[str, Mapping[str, Any]]:
    """Kind of hardware -> what the file says of it."""
    path = rules_dir() / "hardware" / "accelerators.yaml"
    found: Mapping[str, Mapping[str, Any]] = read_shipped(path, shape=ACCELERATORS_FILE).data[
        "accelerators"
    ]
    return found
