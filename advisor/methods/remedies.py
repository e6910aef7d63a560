"""rules/remedies/*.yaml as values: what helps without training, and how one begins with it.

One file each: a new file is a new remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Keys, MapOf, Shape
from advisor.ground.types import Source
from advisor.ground.yaml_files import SOURCE, read_shipped, source_from

OTHER_TOOL = "other_tool"  # the remedy for what is out of scope


class Way(Struct, frozen=True, kw_only=True):
    """One way to begin: on one's own machine, or at a provider."""

    where: Literal["local", "hosted"]
    text: Annotated[str, "what it is, as a sentence goes on"]
    commands: Annotated[tuple[str, ...], "to paste, one after the other"]
    cost: Annotated[str, "what it costs"]
    when: Annotated[
        Mapping[str, Any], MapOf(of=Shape()), "fact -> value: shown there alone, before the others"
    ] = field(default_factory=dict)


class Also(Struct, frozen=True, kw_only=True):
    """What is said besides where these facts have these values."""

    when: Annotated[Mapping[str, Any], MapOf(of=Shape()), "fact -> value"]
    text: str


class Remedy(Struct, frozen=True, kw_only=True):
    """What helps without training."""

    id: str
    order: int  # its place in every list
    phrase: Annotated[str, "for people: 'let the model look things up ...'"]
    meaning: Annotated[str, "for the legend of an answer"]
    first: Annotated[str, "the first step, in a sentence"] = ""
    ways: tuple[Way, ...] = ()
    measure: Annotated[str, "how to tell that it is not enough"] = ""
    helps_then: Annotated[str, "what of this product helps then"] = ""
    write: Annotated[str, "what to write down for it, as a sentence goes on"] = ""
    again: Annotated[Mapping[str, Any], MapOf(of=Shape()), "what to state then: fact -> value"] = (
        field(default_factory=dict)
    )
    beside_training: Annotated[str, "which half does what, where something is trained too"] = ""
    also: tuple[Also, ...] = ()
    begun: Annotated[tuple[Also, ...], "the first step where it is there already"] = ()
    sources: tuple[Source, ...] = ()

    def notes_for(
        self, facts: Mapping[str, Any], notes: tuple[Also, ...] | None = None
    ) -> tuple[str, ...]:
        """What is said besides in a situation with these facts, or of other notes."""
        return tuple(
            one.text
            for one in (self.also if notes is None else notes)
            if all(facts.get(name) == value for name, value in one.when.items())
        )


def remedy_file() -> Keys:
    """What a file of rules/remedies/ may hold."""
    own = shape_of(Remedy, without=("sources",))
    keys = {"version": VERSION, **own.keys, "sources": MapOf(of=SOURCE)}
    return replace(own, keys=keys, help="A remedy: what helps without training")


@cache
def remedies() -> tuple[str, ...]:
    """The names of all remedies, in the order of their files' `order`."""
    names = sorted(path.stem for path in (rules_dir() / "remedies").glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: remedy(name).order))


@cache
def remedy(name: str) -> Remedy:
    """The remedy of that name. Raises InputError where there is none, or its file has faults."""
    path = rules_dir() / "remedies" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"unknown remedy '{name}'", f"known: {', '.join(remedies())}")
    document = read_shipped(path, shape=remedy_file())
    given = {key: value for key, value in document.data.items() if key != "version"}
    if given["id"] != name:
        raise InputError(
            f"id '{given['id']}'", f"the file's name: {name}", where=document.at(("id",))
        )
    sources = given.pop("sources", {})
    return build(Remedy, given, {"sources": tuple(map(source_from, sources.values()))})
