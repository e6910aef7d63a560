"""JSON Schemas of the facts: as entries of rules/facts.yaml, as what is stated of them, as
conditions of rules, as answers of a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from advisor.ground.files import NAME_PATTERN
from advisor.methods import schemes
from advisor.ruleset.entries import BOUNDS
from advisor.ruleset.facts import KEYS, ORIGINS, TYPES, UNKNOWN, VALUES_FROM, Fact, Value
from advisor.schema.parts import (
    TEXT,
    VERSION,
    Schema,
    closed,
    head,
    map_of,
    needed,
    offered,
    one_or_more,
    or_null,
    ordered,
    ref,
    schema_of,
)
from advisor.situation.answers_shape import answers_shape, fact_shape


def named_facts(facts: Mapping[str, Fact]) -> list[Fact]:
    """The facts as rules name them, without those that each scheme has of its own."""
    return [fact for fact in facts.values() if not fact.instance_of]


def described(fact: Fact) -> str:
    """The question and what each value means, for the editor's hover."""
    lines = [fact.ask or f"{fact.id} ({fact.origin})"]
    if fact.unit:
        lines.append(f"in {fact.unit}")
    lines += [
        f"{name}: {value.label}" for name, value in fact.values.items() if value.label != name
    ]
    if fact.unknown:
        lines.append(f"not known: {fact.unknown}")
    return "\n".join(lines)


def value_of(fact: Fact) -> Schema:
    """What the fact can be, `unknown` included."""
    match fact.type:
        case "number":
            return {"anyOf": [schema_of(fact_shape(fact)), {"const": UNKNOWN}]}
        case "flag":
            return {"enum": [True, False, UNKNOWN]}
        case "choice":
            return {"enum": list(dict.fromkeys([*fact.values, UNKNOWN]))}
    return {}


def condition(fact: Fact, value: Schema) -> Schema:
    """What a rule's `when` may ask of a fact that can be `value`."""
    if fact.type == "number":
        value = {"anyOf": [value, ref("bounds")]}
    asked = one_or_more(value)
    if fact.per:
        asked["anyOf"].append(of_schemes(one_or_more(value)))
    return {**asked, "description": described(fact)}


def bounds() -> Schema:
    """{gte: 1, lt: 5}: what a rule may ask of a number."""
    sides = {side: {"type": "number", "description": words} for side, words in BOUNDS.items()}
    twice = {"anyOf": [{"required": ["gt", "gte"]}, {"required": ["lt", "lte"]}]}
    return closed(sides, minProperties=1, **{"not": twice})


def of_schemes(value: Schema) -> Schema:
    """A map from a scheme to such a value: {lora: tight}."""
    return {**map_of(value), "propertyNames": {"enum": list(schemes())}, "minProperties": 1}


def fact_definitions(facts: Iterable[Fact]) -> dict[str, Schema]:
    """Each fact once: `fact.X` is what it can be, `when.X` what a rule may ask of it."""
    facts = list(facts)
    found = {"bounds": bounds()} | {f"fact.{fact.id}": value_of(fact) for fact in facts}
    return found | {f"when.{fact.id}": condition(fact, ref(f"fact.{fact.id}")) for fact in facts}


def fact_entry(facts: Mapping[str, Fact]) -> Schema:
    """One entry under `facts:`."""
    names = [fact.id for fact in named_facts(facts)]
    known: dict[str, Schema] = {
        "type": {"enum": list(TYPES)},
        "origin": {"enum": list(ORIGINS), "description": "where its value comes from"},
        "values": map_of(
            or_null(closed({item.name: {"type": "string"} for item in fields(Value)}))
        ),
        "values_from": {
            "enum": list(VALUES_FROM),
            "description": "the methods whose names are its values",
        },
        "unit": TEXT,
        "min": {"type": "number"},
        "max": {"type": "number"},
        "integer": {"type": "boolean"},
        "answer": {**TEXT, "description": "its key in an answers file, dotted"},
        "flag": {"type": "string", "pattern": "^--[a-z][a-z-]*$"},
        "required": {"type": "boolean"},
        "order": {
            "type": "integer",
            "description": "place in the wizard; left out: asked only where a plan needs it",
        },
        "ask": {**TEXT, "description": "the question, for somebody who knows no machine learning"},
        "ask_when": {
            **map_of({"type": "array"}),
            "propertyNames": offered(names),
            "description": "asked only if these facts have one of these values",
        },
        "ask_without": {
            "type": "array",
            "items": offered(names),
            "description": "asked only if none of these facts was stated",
        },
        "unknown": {**TEXT, "description": 'what "I don\'t know" means'},
        "phrase": {**TEXT, "description": "what a reason says of it: you chose {value}"},
        "denied": {**TEXT, "description": "the same of a no, or of any other value"},
        "name": {**TEXT, "description": "what a sentence calls it while its value is not known"},
        "per": {"const": "scheme", "description": "each scheme has one of its own"},
        "trait": {**TEXT, "description": "what the file of an update says under this key"},
        "compared_with": {**offered(names), "description": "true if the trait lists its value"},
        "signal": {"type": "boolean", "description": "stated by name under `signals`"},
        "implies": {
            "type": "array",
            "items": offered(names),
            "description": "signals that are true wherever this one is",
        },
        "read_from": {
            "type": "array",
            "items": offered(names),
            "description": "the facts that tell this one too",
        },
    }
    entry = closed(ordered(known, KEYS), "type", "origin")
    return {
        **entry,
        "if": {"properties": {"type": {"const": "choice"}}, "required": ["type"]},
        "then": {"anyOf": [{"required": ["values"]}, {"required": ["values_from"]}]},
    }


def facts_schema(facts: Mapping[str, Fact]) -> Schema:
    """rules/facts.yaml."""
    named = named_facts(facts)
    never = {
        **closed({fact.id: ref(f"when.{fact.id}") for fact in named}),
        "minProperties": 1,
        "description": "these do not hold together",
    }
    assumption = closed({"id": TEXT, "never": never, "because": TEXT}, "id", "never")
    properties: dict[str, Schema] = {
        "version": VERSION,
        "facts": map_of(fact_entry(facts)),
        "assume": {"type": "array", "items": assumption, "description": "what cannot occur"},
    }
    return needed(
        head("Facts and questions", **closed(properties, "version", "facts")),
        fact_definitions(named),
    )


def answers_schema(facts: Mapping[str, Fact]) -> Schema:
    """The answers of `advise --answers`; null is 'not stated'."""
    schema = schema_of(answers_shape(facts))
    properties = schema["properties"]
    for fact in facts.values():
        group, _, key = (fact.answer or "").partition(".")
        if key:
            parts = next(part for part in properties[group]["anyOf"] if "properties" in part)
            parts["properties"][key]["description"] = described(fact)
        elif group:
            properties[group]["description"] = described(fact)
    properties["tasks"]["propertyNames"] = {"pattern": f"^{NAME_PATTERN}$"}
    stated: Schema = {"enum": [fact.id for fact in facts.values() if fact.signal]}
    told = {**map_of({"type": ["boolean", "null"]}), "propertyNames": ref("signal")}
    properties["signals"] = or_null({"anyOf": [{"type": "array", "items": ref("signal")}, told]})
    required = [fact.answer for fact in facts.values() if fact.required and fact.answer]
    schema["required"] = required
    return head("Answers for `advise --answers`", **schema, **{"$defs": {"signal": stated}})
