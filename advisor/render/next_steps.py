"""What to do first where an answer trains nothing, or something beside training: the same steps for
the page and for the JSON document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from advisor.advice.types import Advice
from advisor.ground.types import Source
from advisor.methods import remedy
from advisor.methods.remedies import OTHER_TOOL, Way

NOT_SO = "if it is a model of text after all, say so: --choose {composition} --force"


@dataclass(frozen=True, kw_only=True, slots=True)
class NextSteps:
    """How to begin with one remedy."""

    remedy: str
    first: str  # the first step, in a sentence
    ways: tuple[Way, ...]
    measure: str = ""  # how to tell that it is not enough
    helps_then: str = ""  # what of this product helps then
    also: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


def next_steps(advice: Advice) -> tuple[NextSteps, ...]:
    """The steps for each remedy of the recommendation that has any, in its order."""
    return tuple(_steps(advice))


def _steps(advice: Advice) -> Iterator[NextSteps]:
    composition = advice.recommendation.composition
    privacy = advice.facts.get("priority") == "privacy"
    for name in composition.remedies:
        if name == OTHER_TOOL:
            yield _other_tool(advice)
            continue
        found = remedy(name)
        if not found.first:
            continue
        halves = (found.beside_training,) if composition.chain and found.beside_training else ()
        yield NextSteps(
            remedy=name,
            first=found.first,
            # What must not leave the house is not sent to a provider.
            ways=tuple(way for way in found.ways if way.where == "local" or not privacy),
            measure=found.measure,
            helps_then="" if composition.chain else found.helps_then,
            also=(*halves, *found.said_also(advice.facts)),
            sources=found.sources,
        )


def _other_tool(advice: Advice) -> NextSteps:
    outside = advice.situation.outside
    assert outside is not None  # nothing else leads to this remedy
    instead = tuple(
        f"to train {model} here in its place: the same command with --model {model}"
        for model in outside.instead[:1]
    )
    trains = next((c.composition for c in advice.alternatives if c.composition.chain), None)
    certain = outside.instead or not outside.is_model  # it is known, and can be had in another form
    doubt = () if certain or trains is None else (NOT_SO.format(composition=trains),)
    return NextSteps(
        remedy=OTHER_TOOL,
        first=outside.where,
        ways=(Way(where="local", text="", commands=outside.first, cost=""),)
        if outside.first
        else (),
        also=(*instead, *doubt),
        sources=outside.sources,
    )
