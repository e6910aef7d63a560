"""JSON Schemas of the facts: as entries of rules/facts.yaml, as what is stated of them, as
conditions of rules, as answers of a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from advisor.ground.files import NAME_PATTERN
from advisor.methods import schemes
from advisor.ruleset.entries import BOUNDS
from advisor.ruleset.facts import FACT, FACTS_FILE, UNKNOWN, Fact
from advisor.schema.parts import (
    Schema,
    closed,
    head,
    map_of,
    needed,
    offered,
    one_or_more,
    or_null,
    ref,
    schema_of,
)
from advisor.situation.answers import answers_shape, fact_shape


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
    elif fact.type == "choice":
        value = or_all_but(value)
    asked = one_or_more(value)
    if fact.per:
        asked["anyOf"].append(of_schemes(one_or_more(value)))
    return {**asked, "description": described(fact)}


def or_all_but(value: Schema) -> Schema:
    """A value, or every value but those of `{not: ...}`."""
    return {"anyOf": [value, closed({"not": one_or_more(value)}, "not")]}


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
    schema = schema_of(FACT)
    names = offered([fact.id for fact in named_facts(facts)])
    properties = schema["properties"]
    properties["ask_when"]["propertyNames"] = properties["compared_with"] = names
    for key in ("ask_without", "implies", "implies_either_way", "read_from"):
        properties[key]["items"] = names
    return {
        **schema,
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
    schema = schema_of(FACTS_FILE)
    schema["properties"]["facts"]["additionalProperties"] = fact_entry(facts)
    for key in ("assume", "refuse"):
        schema["properties"][key]["items"]["properties"]["never"] = never
    title = schema.pop("description")
    return needed(head(title, **schema), fact_definitions(named))


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
