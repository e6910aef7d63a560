"""The shape of a model of which only the family is known, by its name."""

from __future__ import annotations

from advisor.estimate.model.seq2seq import ABOUT
from advisor.ground.types import ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import NAMED, SEQ2SEQ, Family


def shape_of_family(family: Family, name: str, params: int | None) -> ModelShape:
    """The dimensions of the size that was stated, or that the name says, or that is usual; marked
    as a guess by its origin.

    Args:
        family: One that lists sizes.
        name: What was stated.
        params: As stated, or as the name says; None if neither does.
    """
    size = family.size_of(name, params)
    assert size is not None
    return ModelShape(
        id=name, origin="size", params=params or size.params, architecture=family.model_types[0],
        hidden_size=size.hidden_size, layers=size.layers, heads=size.heads, kv_heads=size.heads,
        head_dim=size.hidden_size // size.heads, intermediate_size=size.intermediate_size,
        vocab_size=size.vocab_size, tied_embeddings=True,
        source=f"rules/families.yaml ({family.source})",
        note=ABOUT if family.kind == SEQ2SEQ else "",
    )  # fmt: skip


def about_family(family: Family, name: str, params: int | None, shape: ModelShape) -> str:
    """What was taken of a model that only the family is known of, for a person."""
    usual = "" if params or family.says_size(name) else ", the usual size of its family"
    return (
        f"'{name}': taken as {NAMED[family.kind]} of the {family.id} family by its name, with"
        f" {format_count(shape.params)} parameters{usual}"
    )
