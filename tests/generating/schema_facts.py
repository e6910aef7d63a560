"""JSON Schemas of the facts: as entries of rules/facts.yaml, as conditions of rules, as answers of
a person.
"""

from collections.abc import Mapping

from advisor.ground.files import NAME_PATTERN
from advisor.ruleset.entries import BOUNDS
from advisor.ruleset.facts import KEYS, ORIGINS, TYPES, UNKNOWN, Fact
from advisor.ruleset.model import Ruleset
from tests.generating.schema_parts import (
    TEXT,
    VERSION,
    Schema,
    closed,
    head,
    map_of,
    needed,
    offered,
    one_or_more,
    ordered,
    ref,
)


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


def number(fact: Fact) -> Schema:
    bounds = {"minimum": fact.min, "maximum": fact.max}
    return {
        "type": "integer" if fact.integer else "number",
        **{key: bound for key, bound in bounds.items() if bound is not None},
    }


def value_of(fact: Fact) -> Schema:
    """What the fact can be, `unknown` included."""
    match fact.type:
        case "number":
            return {"anyOf": [number(fact), {"const": UNKNOWN}]}
        case "flag":
            return {"enum": [True, False, UNKNOWN]}
        case "choice":
            return {"enum": list(dict.fromkeys([*fact.values, UNKNOWN]))}
    return {}


def condition(fact: Fact) -> Schema:
    """What a rule's `when` may ask of the fact."""
    one = value_of(fact)
    if fact.type == "number":
        bounds = closed(
            {bound: {"type": "number", "description": words} for bound, words in BOUNDS.items()},
            minProperties=1,
        )
        bounds["not"] = {"anyOf": [{"required": ["gt", "gte"]}, {"required": ["lt", "lte"]}]}
        one = {"anyOf": [*one["anyOf"], bounds]}
    return {**one_or_more(one), "description": described(fact)}


def fact_entry(rules: Ruleset) -> Schema:
    facts = list(rules.facts)
    known: dict[str, Schema] = {
        "type": {"enum": list(TYPES)},
        "origin": {"enum": list(ORIGINS), "description": "where its value comes from"},
        "values": map_of({"anyOf": [{"type": "null"}, closed({"label": TEXT,
        "help": {"type": "string"}, "short": {**TEXT,
        "description": "how a sentence names it, where the label does not fit into one"}})]}),
        "unit": TEXT,
        "min": {"type": "number"},
        "max": {"type": "number"},
        "integer": {"type": "boolean"},
        "answer": {**TEXT, "description": "its key in an answers file, dotted"},
        "flag": {"type": "string", "pattern": "^--[a-z][a-z-]*$"},
        "required": {"type": "boolean"},
        "order": {"type": "integer",
        "description": "place in the wizard; left out: asked only where a plan needs it"},
        "ask": {**TEXT, "description": "the question, for somebody who knows no machine learning"},
        "ask_when": {"type": "object", "properties": {fact: {"type": "array"} for fact in facts},
        "additionalProperties": {"type": "array"},
        "description": "asked only where these facts have one of these values"},
        "ask_without": {"type": "array", "items": offered(facts),
        "description": "asked only where none of these facts was stated"},
        "unknown": {**TEXT, "description": "what \"I don't know\" means"},
        "signal": {"type": "boolean", "description": "stated by name under `signals`"},
        "implies": {"type": "array", "items": offered(facts),
        "description": "signals that are true wherever this one is"},
        "phrase": {**TEXT, "description": "what a reason says of it: \"you chose {value}\"; a verb has"
        " two forms, [is|were]: what is so, and what would have to be"},
        "denied": {**TEXT, "description": "the same of a no, or of any other value"},
        "name": {**TEXT, "description": "what a sentence calls it: \"how much it may cost\""},
        "read_from": {"type": "array", "items": offered(facts),
        "description": "the facts that tell this one too"},
    }  # fmt: skip
    entry = closed(ordered(known, KEYS), "type", "origin")
    return {
        **entry,
        "if": {"properties": {"type": {"const": "choice"}}, "required": ["type"]},
        "then": {"required": ["values"]},
    }


def facts_schema(rules: Ruleset) -> Schema:
    never = {
        **closed({fact.id: ref(f"when.{fact.id}") for fact in rules.facts.values()}),
        "minProperties": 1,
        "description": "these do not hold together",
    }
    assumption = closed({"id": TEXT, "never": never, "because": TEXT}, "id", "never")
    properties: dict[str, Schema] = {
        "version": VERSION,
        "facts": map_of(fact_entry(rules)),
        "assume": {"type": "array", "items": assumption, "description": "what cannot occur"},
    }
    return needed(
        head("Facts and questions", **closed(properties, "version", "facts")),
        {f"when.{fact.id}": condition(fact) for fact in rules.facts.values()},
    )


def answer(fact: Fact) -> Schema:
    """What an answers file may say of the fact; null is 'not stated'."""
    kinds: dict[str, Schema] = {
        "number": {**number(fact), "type": ["integer" if fact.integer else "number", "null"]},
        "choice": {"enum": [*fact.values, None]},
        "map": {"type": ["object", "null"], "additionalProperties": TEXT},
    }
    return {**kinds.get(fact.type, {"type": ["string", "null"]}), "description": described(fact)}


def answers_schema(facts: Mapping[str, Fact]) -> Schema:
    """Dotted keys become maps; such a map also takes the value of its head, or of its first key:
    `data: train.jsonl`.
    """
    properties: dict[str, Schema] = {}
    parts: dict[str, dict[str, Schema]] = {}
    for fact in facts.values():
        if fact.answer is None:
            continue
        group, _, key = fact.answer.partition(".")
        properties.setdefault(group, answer(fact))
        if key:
            parts.setdefault(group, {})[key] = answer(fact)
    properties["tasks"]["propertyNames"] = {"pattern": f"^{NAME_PATTERN}$"}
    for group, keys in parts.items():
        properties[group] = {"anyOf": [properties[group], closed(keys)]}
    stated: Schema = {"enum": [fact.id for fact in facts.values() if fact.signal]}
    properties["signals"] = {
        "anyOf": [
            {"type": ["array", "null"], "items": stated},
            {
                "type": "object",
                "propertyNames": stated,
                "additionalProperties": {"type": "boolean"},
            },
        ]
    }
    required = [fact.answer for fact in facts.values() if fact.required and fact.answer]
    return head("Answers for `advise --answers`", **closed(properties, *required))
