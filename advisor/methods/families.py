"""Families of models: what kind of model an architecture or a name stands for, and what a name
says of its size. The list is rules/families.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from msgspec import Struct

from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Choice, Date, Keys, ListOf, MapOf, Number, Shape, Text
from advisor.ground.yaml_files import read_shipped

ENCODER, SEQ2SEQ, DECODER = KINDS = ("encoder", "seq2seq", "decoder")
NAMED = {
    ENCODER: "an encoder",
    SEQ2SEQ: "a sequence-to-sequence model",
    DECODER: "a model that writes",
}
_ROW = ListOf(
    of=Number(whole=True, min=1),
    least=6,
    most=6,
    help="parameters, layers, hidden_size, heads, intermediate_size, vocab_size",
)
FAMILIES_FILE: Shape = Keys(
    help="Families of models that a name gives away",
    keys={
        "version": VERSION,
        "checked": Date(),
        "families": MapOf(
            of=Keys(
                keys={
                    "kind": Choice(values=KINDS),
                    "model_types": ListOf(of=Text(), help="what config.json calls it"),
                    "names": ListOf(of=Text(), least=1, help="regular expressions for words"),
                    "sizes": MapOf(of=_ROW, help="word in the name -> dimensions"),
                    "usual": Text(help="the size taken where the name says none"),
                    "source": Text(),
                },
                required=("kind", "model_types", "names", "sizes", "source"),
            )
        ),
    },
    required=("version", "checked", "families"),
)


class Size(Struct, frozen=True, kw_only=True):
    """The dimensions of one size of a family; the layers of encoder and decoder together."""

    word: str
    params: int
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int


class Family(Struct, frozen=True, kw_only=True):
    """Models of one architecture."""

    id: str
    kind: str  # one of KINDS
    model_types: tuple[str, ...]
    names: str  # a pattern of the words that name it
    sizes: Mapping[str, Size]
    usual: str | None
    source: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What finds the words that name it."""
        return _compiled(self.names)

    def size_of(self, name: str, params: int | None = None) -> Size | None:
        """The size that a name states by a word, the nearest to a stated number of parameters, or
        the usual one; None if the family lists none.
        """
        if not self.sizes:
            return None
        if params is not None:
            return min(
                self.sizes.values(),
                key=lambda size: max(size.params / params, params / size.params),
            )
        words = re.findall(r"[a-z0-9.]+", name.lower())
        stated = [size for word, size in self.sizes.items() if word in words]
        return stated[0] if stated else self.sizes[self.usual or next(iter(self.sizes))]

    def says_size(self, name: str) -> bool:
        """Whether a word of the name is the name of a size."""
        return bool(self.sizes.keys() & set(re.findall(r"[a-z0-9.]+", name.lower())))


@cache
def families() -> tuple[Family, ...]:
    """Every family, in the order of the file."""
    data = read_shipped(rules_dir() / "families.yaml", shape=FAMILIES_FILE).data
    return tuple(
        Family(
            id=family_id,
            kind=entry["kind"],
            model_types=tuple(entry["model_types"]),
            names=rf"(?<![a-z0-9])(?:{'|'.join(entry['names'])})(?![a-z])",
            sizes={
                str(word): Size(
                    word=str(word), params=row[0], layers=row[1], hidden_size=row[2],
                    heads=row[3], intermediate_size=row[4], vocab_size=row[5],
                )
                for word, row in entry["sizes"].items()
            },
            usual=entry.get("usual"),
            source=f"{entry['source']}, {data['checked']}",
        )
        for family_id, entry in data["families"].items()
    )  # fmt: skip


@cache
def _kinds() -> Mapping[str, str]:
    return {name: family.kind for family in families() for name in family.model_types}


def kind_of_type(model_type: str | None) -> str:
    """encoder, seq2seq or decoder: what a `model_type` of config.json stands for. A type that no
    family lists is a decoder's.
    """
    return _kinds().get(model_type or "", DECODER)


def is_encoder(model_type: str | None) -> bool:
    """Whether a model of this type reads and sorts, and writes nothing."""
    return kind_of_type(model_type) == ENCODER


@cache
def _compiled(names: str) -> re.Pattern[str]:
    """Compiled where a name is looked at: most answers ask for the kind of a known type alone."""
    return re.compile(names)


def family_of_name(name: str) -> Family | None:
    """The family that a hub id, a path or a description names; None if no word of it is known."""
    last = name.strip().rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
    return next((family for family in families() if family.pattern.search(last)), None)
