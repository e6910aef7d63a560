"""Which families of models a GGUF file can hold, and what it calls their parts
(rules/serving/gguf.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import (
    Choice,
    Date,
    Flag,
    Integer,
    Keys,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Text,
)
from advisor.ground.sources import LINK
from advisor.ground.yaml_cache import read_shipped

NAMES = MapOf(of=Text())
VALUE = OneOf(options=(Text(), Integer(), Flag()), null=True)
FAMILY = Keys(
    keys={
        "architecture": Text(help="what GGUF calls it"),
        "layer": MapOf(of=Text(), help="names of tensors of a layer: transformers -> GGUF"),
        "pairs": Choice(values=("halves", "neighbours"), help="what llama.cpp rotates together"),
        "norm_offset": Number(help="added to the weights of norms"),
        "keys": MapOf(of=Text(), help="GGUF key -> key of config.json"),
        "fixed": MapOf(of=ListOf(of=VALUE, least=1), help="what llama.cpp has built in"),
        "patterns": MapOf(
            of=ListOf(of=VALUE, least=3, most=3),
            help="key that lists the layers -> value of most layers, of each Nth layer, N",
        ),
        "scaled_by_head_size": Keys(keys={"unless_layers": Integer(min=1)}),
    },
    required=("architecture", "layer", "pairs"),
)
STEP = Keys(
    keys={
        "type": Choice(values=("ByteLevel", "Digits", "Split")),
        "use_regex": Flag(),
        "individual_digits": Flag(),
        "pattern": Text(help="regular expression; matches are parts of their own"),
    },
    required=("type",),
)
PRE_TOKENIZER = Keys(
    keys={"steps": ListOf(of=STEP, least=1), "ignore_merges": Flag()}, required=("steps",)
)
AGREEMENT = Keys(
    keys={
        "same": Number(min=0, max=1, help="share of tokens that must be the same"),
        "divergence": Number(above=0, unit="nats", help="mean, at most"),
    },
    required=("same", "divergence"),
)
GGUF_FILE = Keys(
    help="What a GGUF file says of each family of models",
    keys={
        "version": Choice(values=(1,)),
        "checked": Date(help="the day somebody read it"),
        "source": Text(pattern=LINK, such_as="https://..."),
        "ends": NAMES,
        "layer": NAMES,
        "families": MapOf(of=FAMILY, least=1),
        "pre_tokenizers": MapOf(of=PRE_TOKENIZER, least=1),
        "near_tie": Number(above=0, unit="nats"),
        "agreement": MapOf(of=AGREEMENT, least=1),
    },
    required=(
        "version",
        "checked",
        "source",
        "ends",
        "layer",
        "families",
        "pre_tokenizers",
        "near_tie",
        "agreement",
    ),
)


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """What GGUF calls the parts of a family, and what llama.cpp has built in for it."""

    model_type: str  # of config.json
    architecture: str
    ends: Mapping[str, str]  # tensors outside the layers: transformers -> GGUF
    layer: Mapping[str, str]  # tensors of a layer
    swaps_pairs: bool  # rows of q and k are put in another order
    norm_offset: float
    keys: Mapping[str, str]
    fixed: Mapping[str, Sequence[Any]]
    patterns: Mapping[str, Sequence[Any]]
    scaled_by_head_size: bool
    unless_layers: int | None


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """How a byte-level tokenizer cuts a text, by the name that GGUF has for it."""

    name: str
    steps: Sequence[Mapping[str, Any]]
    ignore_merges: bool


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """When a file of some type counts as proved."""

    same: float  # share of tokens of greedy answers that must be the same
    divergence: float  # mean, in nats, at most
    near_tie: float  # nats


def _data() -> Mapping[str, Any]:
    path = rules_dir() / "serving" / "gguf.yaml"
    data: Mapping[str, Any] = read_shipped(path, shape=GGUF_FILE).data
    return data


@cache
def gguf_families() -> Mapping[str, GgufFamily]:
    """`model_type` of config.json -> family. Raises InputError with the faults of the file."""
    data = _data()
    return {
        name: GgufFamily(
            model_type=name,
            architecture=entry["architecture"],
            ends=data["ends"],
            layer=data["layer"] | entry["layer"],
            swaps_pairs=entry["pairs"] == "neighbours",
            norm_offset=float(entry.get("norm_offset", 0)),
            keys=entry.get("keys", {}),
            fixed=entry.get("fixed", {}),
            patterns=entry.get("patterns", {}),
            scaled_by_head_size="scaled_by_head_size" in entry,
            unless_layers=entry.get("scaled_by_head_size", {}).get("unless_layers"),
        )
        for name, entry in data["families"].items()
    }


@cache
def pre_tokenizers() -> Sequence[PreTokenizer]:
    """Every way of cutting that GGUF has a name for. Raises InputError as `gguf_families`."""
    return [
        PreTokenizer(
            name=name, steps=entry["steps"], ignore_merges=entry.get("ignore_merges", False)
        )
        for name, entry in _data()["pre_tokenizers"].items()
    ]


def agreement(kind: str) -> Agreement:
    """The limits for a type of file, such as Q8_0. Raises InputError as `gguf_families`."""
    data = _data()
    limits = data["agreement"].get(kind) or data["agreement"]["others"]
    return Agreement(**limits, near_tie=data["near_tie"])
