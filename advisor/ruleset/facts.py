"""The facts of rules/facts.yaml: the one list that questions, flags, answer files, rules and
schemas derive from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground.annotated import shape_of
from advisor.ground.errors import Fault, refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import (
    VERSION,
    Choice,
    Keys,
    ListOf,
    MapOf,
    Number,
    Path_,
    Shape,
    Text,
    check_shape,
)
from advisor.ground.yaml_files import Document, read_shipped
from advisor.methods import objectives, schemes, updates

TYPES = ("choice", "number", "flag", "text", "path", "map")
ORIGINS = ("asked", "probed", "data", "model", "estimated", "concluded", "method")
VALUES_FROM: Mapping[str, Callable[[], Iterable[str]]] = {
    "objectives": objectives,
    "updates": updates,
    "schemes": schemes,
}
NAMES = (  # of other facts
    "implies",
    "implies_either_way",
    "read_from",
    "ask_without",
    "ask_when",
    "compared_with",
)
UNKNOWN = "unknown"
LONG_FLAG = Text(pattern="--[a-z][a-z-]*", such_as="--data-rows")


class Value(Struct, frozen=True, kw_only=True):
    """One value of a choice: what a person reads in the wizard, and inside a sentence."""

    label: str
    help: str = ""
    short: Annotated[str, "how a sentence names it; default: the label with a small letter"] = ""
    such_as: Annotated[str, "an example of it, for somebody who does not know which one it is"] = ""


class Fact(Struct, frozen=True, kw_only=True):
    """One fact: its type, its domain, where it comes from and how a person is asked for it."""

    id: str
    type: Annotated[str, Choice(values=TYPES)]
    origin: Annotated[str, Choice(values=ORIGINS), "where its value comes from"]
    values: Mapping[str, Value] = field(default_factory=dict)
    unit: str = ""
    min: Annotated[int | float | None, Number(null=True)] = None
    max: Annotated[int | float | None, Number(null=True)] = None
    integer: bool = False
    answer: Annotated[str | None, "its key in an answers file, dotted"] = None
    flag: Annotated[str | None, LONG_FLAG] = None
    required: bool = False
    order: Annotated[int | None, "place in the wizard; left out: asked only if a plan needs it"] = (
        None
    )
    refines: Annotated[bool, "asked only once something is known of the examples"] = False
    ask: Annotated[str, "the question, for somebody who knows no machine learning"] = ""
    ask_when: Annotated[
        Mapping[str, tuple[Any, ...]], "asked only if these facts have one of these values"
    ] = field(default_factory=dict)
    ask_without: Annotated[tuple[str, ...], "asked only if none of these facts was stated"] = ()
    unknown: Annotated[str, 'what "I don\'t know" means'] = ""
    signal: Annotated[bool, "stated by name under `signals`"] = False
    implies: Annotated[tuple[str, ...], "signals that are true if this one is"] = ()
    implies_either_way: Annotated[
        tuple[str, ...], "signals that are true if this one is stated, yes or no"
    ] = ()
    read_from: Annotated[tuple[str, ...], "the facts that tell this one too"] = ()
    # How a reason says it (ruleset/phrases.py).
    phrase: Annotated[str, "what a reason says of it: you chose {value}"] = ""
    denied: Annotated[str, "the same of a no, or of any other value"] = ""
    name: Annotated[str, "what a sentence calls it if its value is not known"] = ""
    per: Annotated[str, Choice(values=("scheme",)), "each scheme has one of its own"] = ""
    values_from: Annotated[
        str, Choice(values=tuple(VALUES_FROM)), "the methods whose names are its values"
    ] = ""
    instance_of: str = ""  # the fact with `per` that this one is an instance of
    trait: Annotated[str, "what the file of a method says under this key"] = ""
    compared_with: Annotated[str, "true if the trait holds the value of this other fact"] = ""

    def implied_by(self, value: Any) -> tuple[str, ...]:
        """The signals that are true where this fact has that value.

        A no is a statement as well, and says something only where `implies_either_way` does: that
        a prompt was not good enough tells that one was tried, while having no stored answers tells
        nothing of who could write some.
        """
        if value is None:
            return ()
        either = self.implies_either_way
        return either if value is False else (*self.implies, *either)


# --------------------------------------------------------------------------- the file's shape

FACT_NAME = Text(pattern="[a-z][a-z0-9_]*", such_as="data_rows")
_VALUE = replace(shape_of(Value), required=(), null=True)
_FACT = shape_of(Fact, without=("id", "instance_of"))
FACT = replace(_FACT, keys={**_FACT.keys, "values": MapOf(of=_VALUE)})
ASSUMPTION = Keys(
    keys={
        "id": Text(),
        "never": MapOf(of=Shape(), least=1, help="these do not hold together"),
        "because": Text(),
    },
    required=("id", "never"),
)
FACTS_FILE = Keys(
    help="Facts and questions",
    keys={
        "version": VERSION,
        "facts": MapOf(of=FACT, named=FACT_NAME),
        "assume": ListOf(of=ASSUMPTION, help="what cannot occur"),
        "refuse": ListOf(of=ASSUMPTION, help="what a person does not state together"),
    },
    required=("facts",),
)


@cache
def load_facts() -> Mapping[str, Fact]:
    """Fact id -> Fact, in file order. Raises InputError with every fault of the file, located."""
    return facts_of(read_shipped(rules_dir() / "facts.yaml", shape=FACTS_FILE))


def facts_of(document: Document, base: Mapping[str, Fact] | None = None) -> Mapping[str, Fact]:
    """The facts of a document after those of `base`. Raises InputError with every fault."""
    faults = [] if base or document.checked else check_shape(document, FACTS_FILE)
    refuse(faults)
    entries: Mapping[str, Any] = document.data["facts"]
    facts = {**(base or {}), **{name: _fact(name, entry) for name, entry in entries.items()}}
    for fact_id, entry in entries.items():
        key: Path_ = ("facts", fact_id)
        if entry["type"] == "choice" and not {"values", "values_from"} & set(entry):
            faults.append(Fault(where=document.at(key, key=True), what="a choice needs `values`"))
        faults += _unknown_names(document, fact_id, entry, facts)
    refuse(faults)
    return facts


def _unknown_names(
    document: Document, fact_id: str, entry: Mapping[str, Any], facts: Mapping[str, Fact]
) -> Iterator[Fault]:
    for key in NAMES:
        said = entry.get(key) or ()
        for name in [said] if isinstance(said, str) else said:
            if name not in facts:
                at = document.at(("facts", fact_id, key))
                yield unknown_name("fact", name, list(facts), at=at)


def _fact(fact_id: str, entry: Mapping[str, Any]) -> Fact:
    made = VALUES_FROM[entry["values_from"]]() if "values_from" in entry else ()
    said = {**dict.fromkeys(made), **entry.get("values", {})}
    values = {name: Value(**{"label": name, **(one or {})}) for name, one in said.items()}
    when = {name: tuple(listed) for name, listed in entry.get("ask_when", {}).items()}
    parts: dict[str, Any] = {
        key: tuple(one) if isinstance(one, list) else one for key, one in entry.items()
    }
    parts |= {"id": fact_id, "values": values, "ask_when": when}
    return Fact(**parts)


@cache
def read_from(fact_id: str) -> tuple[str, ...]:
    """The facts that are read from this one, as the kind of data from a data file."""
    return tuple(fact.id for fact in load_facts().values() if fact_id in fact.read_from)


def methods_named(fact: Fact) -> tuple[str, ...]:
    """The values of a fact that are names of methods, which need no rule of their own."""
    return tuple(VALUES_FROM[fact.values_from]()) if fact.values_from else ()


def signals(facts: Mapping[str, Fact]) -> list[str]:
    """Ids of the facts a person states by `signals:`."""
    return [fact.id for fact in facts.values() if fact.signal]
