"""The facts of rules/facts.yaml: the one list that questions, flags, answer files, rules and
schemas derive from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_cache import read_shipped
from advisor.ground.yaml_reader import Document, read_yaml
from advisor.methods import objectives, schemes, updates

TYPES = ("choice", "number", "flag", "text", "path", "map")
ORIGINS = ("asked", "probed", "data", "model", "estimated", "concluded", "method")
KEYS = {
    "type", "origin", "values", "values_from", "unit", "min", "max", "integer", "answer", "flag",
    "required", "order", "ask", "ask_when", "ask_without", "unknown", "signal", "implies",
    "read_from", "phrase", "denied", "name", "per", "trait", "compared_with",
}  # fmt: skip
VALUES_FROM: Mapping[str, Callable[[], Iterable[str]]] = {
    "objectives": objectives,
    "updates": updates,
    "schemes": schemes,
}
NAMES = ("implies", "read_from", "ask_without")  # keys that name other facts
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One value of a choice: what a person reads in the wizard, and inside a sentence."""

    label: str
    help: str
    short: str = ""  # how a sentence names it; empty: the label with a small letter


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One fact: its type, its domain, where it comes from and how a person is asked for it."""

    id: str
    type: str
    origin: str
    values: Mapping[str, Value] = field(default_factory=dict)
    unit: str = ""
    min: float | None = None
    max: float | None = None
    integer: bool = False
    answer: str | None = None  # key in an answers file, dotted
    flag: str | None = None
    required: bool = False
    order: int | None = None  # place in the wizard; None: asked only where a plan needs it
    ask: str = ""
    ask_when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ask_without: tuple[str, ...] = ()  # asked only where none of these was stated
    unknown: str = ""  # what "I don't know" means
    signal: bool = False
    implies: tuple[str, ...] = ()  # signals that are true wherever this one is
    read_from: tuple[str, ...] = ()  # the facts that tell this one too
    phrase: str = ""  # what a reason says of it: "you chose {value}" (ruleset/phrases.py)
    denied: str = ""  # the same of a no, or of any other value
    name: str = ""  # what a sentence calls it where its value is not known: "how much it may cost"
    per: str = ""  # "scheme": a fact of each candidate, under an id of its own for each
    values_from: str = ""  # the list of methods that its values are the names of
    instance_of: str = ""  # the fact with `per` that this one is an instance of
    trait: str = ""  # an attribute of the method: what its file says, not a person
    compared_with: str = ""  # true if the trait holds the value of this other fact


@cache
def load_facts(path: Path | None = None) -> Mapping[str, Fact]:
    """Fact id -> Fact, in file order. Raises InputError with every fault of the file, located."""
    document = read_yaml(path, name=str(path)) if path else read_shipped(rules_dir() / "facts.yaml")
    return facts_of(document)


def facts_of(document: Document, base: Mapping[str, Fact] | None = None) -> Mapping[str, Fact]:
    """The facts a document declares, after those of `base` (an overlay may add facts, never change
    one).
    """
    faults: list[Fault] = []
    facts: dict[str, Fact] = dict(base or {})
    entries = document.data.get("facts") if isinstance(document.data, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{document.at()}: a map with the key 'facts' is expected")
    for fact_id, entry in entries.items():
        at = document.at(("facts", fact_id), key=True)
        if fact_id in (base or {}):
            faults.append(
                Fault(
                    what=f"{at}: fact '{fact_id}' exists already",
                    allowed="a file may add facts, never change one",
                )
            )
        elif not isinstance(entry, dict):
            faults.append(Fault(what=f"{at}: fact '{fact_id}' must be a map"))
        else:
            faults.extend(_faults(document, fact_id, entry))
            facts[fact_id] = _fact(fact_id, entry)
    if faults:
        raise InputError(faults=faults)
    return facts


def _faults(document: Document, fact_id: str, entry: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for key in entry:
        if key not in KEYS:
            faults.append(
                Fault(
                    what=f"{document.at(('facts', fact_id, key), key=True)}: unknown key '{key}'",
                    allowed=f"known: {', '.join(sorted(KEYS))}",
                )
            )
    for key, allowed in (("type", TYPES), ("origin", ORIGINS)):
        if entry.get(key) not in allowed:
            faults.append(
                Fault(
                    what=f"{document.at(('facts', fact_id, key))}: {key} is {entry.get(key)!r}",
                    allowed=f"one of {', '.join(allowed)}",
                )
            )
    named = entry.get("values_from")
    if named is not None and named not in VALUES_FROM:
        at = document.at(("facts", fact_id, "values_from"))
        faults.append(unknown_name("list of methods", named, list(VALUES_FROM), at=at))
    if entry.get("type") == "choice" and not isinstance(entry.get("values"), dict) and not named:
        faults.append(Fault(what=f"{document.at(('facts', fact_id))}: a choice needs `values`"))
    return faults


def _fact(fact_id: str, entry: Mapping[str, Any]) -> Fact:
    fields = {
        key: value
        for key, value in entry.items()
        if key in KEYS and key not in ("values", "ask_when", *NAMES)
    }
    raw_values = entry.get("values")
    if entry.get("values_from"):
        made: dict[str, Any] = {name: {} for name in VALUES_FROM[entry["values_from"]]()}
        raw_values = {**made, **(raw_values or {})}
    values = {
        name: Value(
            label=str((help_ or {}).get("label", name)),
            help=str((help_ or {}).get("help", "")),
            short=str((help_ or {}).get("short", "")),
        )
        for name, help_ in (raw_values.items() if isinstance(raw_values, dict) else ())
    }
    when = entry.get("ask_when") or {}
    named = {key: tuple(entry.get(key) or ()) for key in NAMES}
    return Fact(
        id=fact_id,
        values=values,
        ask_when={key: tuple(allowed) for key, allowed in when.items()},
        **{**fields, **named},
    )


@cache
def read_from(fact_id: str) -> tuple[str, ...]:
    """The facts that are read from this one (`read_from`): of a data file its kind, of a model its
    size.
    """
    return tuple(fact.id for fact in load_facts().values() if fact_id in fact.read_from)


def methods_named(fact: Fact) -> tuple[str, ...]:
    """The values of a fact that are names of methods: one of them without a rule of its own is no
    mistake.
    """
    return tuple(VALUES_FROM[fact.values_from]()) if fact.values_from else ()


def signals(facts: Mapping[str, Fact]) -> list[str]:
    """Ids of the facts a person states by `signals:`."""
    return [fact.id for fact in facts.values() if fact.signal]
